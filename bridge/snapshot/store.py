"""Hold the current snapshot, and swap in issuing CAs that have changed.

A changed issuing CA is built beside the old one, its chain is validated, and it signs a
probe that is recorded. Only then do new requests use it. If a change is refused, the
old issuing CA keeps serving, and `problems` says why.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial

from bridge.errors import BridgeError, ConfigError
from bridge.metrics.instruments import Metrics
from bridge.resilience.boundary import close_plugin, from_plugin
from bridge.resilience.failover import Guards
from bridge.snapshot.builder import Assembly
from bridge.snapshot.model import Issuer, Snapshot
from bridge.snapshot.prober import Probe, Prober
from bridge.snapshot.revocation import read_lists
from bridge.spi import IssuingCA, Watcher
from bridge.system.file_watch import FileWatch

_log = logging.getLogger(__name__)
_PROBE_AGAIN_SECONDS = 5.0
_REFUSED_AGAIN_SECONDS = 60.0
_STOP = ""
"""Stops the thread. No issuing CA has this name."""
_CRLS = "*"
"""The revocation lists have changed. No issuing CA has this name either."""


class Snapshots:
    """Holds the current snapshot, and runs the thread that keeps it up to date.

    Args:
        assembly: Builds snapshots and issuing CAs.
        first: The first snapshot; `close` closes its issuing CAs.
        metrics: Shows the expiry of the chains' certificates.
        guards: The health of the issuing CAs.
        linger_seconds: How long a request may still use an issuing CA after its swap.
    """

    def __init__(
        self,
        assembly: Assembly,
        first: Snapshot,
        metrics: Metrics,
        guards: Guards,
        *,
        linger_seconds: float,
    ) -> None:
        self._assembly = assembly
        self._current = first
        self._metrics = metrics
        self._linger_seconds = linger_seconds
        self._changes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.prober = Prober(guards, self.current)
        """Proves the issuing CAs."""
        self._refused: dict[str, str] = {}
        self._refused_crls = ""
        self._crl_watch: FileWatch | None = None
        self._unproven_changes: set[str] = set()
        self._old: list[tuple[float, IssuingCA]] = []
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._show()

    def current(self) -> Snapshot:
        """Return the current snapshot. It is immutable."""
        return self._current

    def start(self, probe: Probe) -> None:
        """Probe every issuing CA (see `Prober.start`), and start to watch their files.

        An issuing CA that does not sign now is probed again in the background.
        """
        self.prober.start(probe)
        for issuer in self._current.issuers.values():
            self._watch(issuer)
        self._watch_crls()
        self._thread.start()

    def crl_warnings(self, now: datetime) -> list[str]:
        """Return what is wrong with the revocation lists, and each revoked chain."""
        refused = [self._refused_crls] if self._refused_crls else []
        return [*refused, *self._current.crl_warnings(now)]

    def problems(self) -> Mapping[str, str]:
        """Return the current problem of each issuing CA that has one."""
        return {**self.prober.problems(), **self._refused}

    def stop(self) -> None:
        """Stop the threads: no more probes and swaps. May be called again."""
        self.prober.close()
        if self._crl_watch is not None:
            self._crl_watch.close()
        if self._thread.is_alive():
            self._changes.put(_STOP)
            self._thread.join()

    def close(self) -> None:
        """Stop the thread and close every issuing CA."""
        self.stop()
        self._close_old(float("inf"))
        self._current.close()

    def _watch_crls(self) -> None:
        paths = self._assembly.config.crls
        if paths:
            # The first look reads the files again, which may have changed since.
            changed = partial(self._changes.put, _CRLS)
            self._crl_watch = FileWatch(paths, "", changed)
            self._crl_watch.start()

    def _take_crls(self) -> None:
        try:
            crls = read_lists(self._assembly.config.crls)
            current = self._current.under(crls)
        except BridgeError as error:
            text = f"a change is refused, the old revocation lists hold: {error}"
            if text != self._refused_crls:
                _log.error("%s", text)
            self._refused_crls = text
            return
        self._refused_crls = ""
        if crls.lists == self._current.crls.lists:
            return
        for issuer in current.issuers.values():
            if issuer.revoked and not self._current.issuers[issuer.name].revoked:
                _log.error(
                    "issuing CA %s issues nothing any more: %s",
                    issuer.name,
                    issuer.revoked,
                )
        self._current = current
        self._show()

    def _watch(self, issuer: Issuer) -> None:
        if isinstance(issuer.ca, Watcher):
            changed = partial(self._changes.put, issuer.name)
            from_plugin(issuer.ca.watch, type(None), changed)

    def _wait_seconds(self) -> float | None:
        # A refused change is tried again: the watch does not see a file's mode, and a
        # certificate may become valid.
        waits = [due - time.monotonic() for due, _ in self._old[:1]]
        if self._unproven_changes:
            waits.append(_PROBE_AGAIN_SECONDS)
        elif self._refused:
            waits.append(_REFUSED_AGAIN_SECONDS)
        return max(0.0, min(waits)) if waits else None

    def _run(self) -> None:
        while True:
            try:
                name = self._changes.get(timeout=self._wait_seconds())
            except queue.Empty:
                self._close_old(time.monotonic())
                for name in {*self._unproven_changes, *self._refused}:
                    self._guarded(name, self._renew)
                continue
            if name == _STOP:
                return
            if name == _CRLS:
                self._take_crls()
            else:
                self._guarded(name, self._renew)

    def _guarded(self, name: str, step: Callable[[str], None]) -> None:
        try:
            step(name)
        except Exception as error:  # noqa: BLE001 - the edge of a thread, see below
            # If the thread ended here, a bug in a plugin would stop every rotation, and
            # nobody would notice until a certificate expires.
            self._refused[name] = f"could not be examined: {type(error).__name__}"
            _log.exception("issuing CA %s could not be examined", name)

    def _renew(self, name: str) -> None:
        before = self._current.issuers[name]
        self._unproven_changes.discard(name)
        try:
            issuer = self._assembly.issuer(name, self._current.bundle)
        except BridgeError as error:
            self._refuse(name, self._cause(name, error))
            return
        if issuer.description == before.description:
            self._refused.pop(name, None)
            close_plugin(issuer.ca.close)
            self.prober.again(name)
            return
        try:
            # All that can fail comes before the swap.
            self._watch(issuer)
            self.prober.prove(issuer, self._current)
        except BridgeError as error:
            # The cause may be the ledger, the network or a lack of threads, so it is
            # tried again.
            self._unproven_changes.add(name)
            close_plugin(issuer.ca.close)
            self._refuse(name, error)
            return
        self._refused.pop(name, None)
        self._swap(issuer)

    def _cause(self, name: str, error: BridgeError) -> BridgeError:
        # An issuing CA that was replaced together with its root is in order: only the
        # trust anchors in service are not its own.
        path = self._assembly.config.trust_anchors
        try:
            # What a process was given for its life is not what the file holds now.
            bundle = replace(self._assembly, anchors=None).bundle()
            if bundle.anchors == self._current.bundle.anchors:
                return error
            close_plugin(self._assembly.issuer(name, bundle).ca.close)
        except BridgeError:
            return error
        return ConfigError(
            f"its chain leads to the trust anchors that {path} holds now, and the ones "
            "in service are others. A reload puts them in service together. If there "
            "was one, the warning configuration in /readyz says why it was refused",
            rule="config.trust-anchors",
        )

    def _refuse(self, name: str, error: BridgeError) -> None:
        text = f"a change is refused, the old issuing CA serves: {error}"
        if self._refused.get(name) != text:
            _log.error("a change of issuing CA %s is refused: %s", name, error)
        self._refused[name] = text

    def _swap(self, issuer: Issuer) -> None:
        old = self._current
        self._current = replace(
            old,
            generation=old.generation + 1,
            issuers={**old.issuers, issuer.name: issuer.under(old.crls)},
        )
        # Requests in progress may still use the old one. No timer: it needs a thread.
        gone = old.issuers[issuer.name].ca
        self._old.append((time.monotonic() + self._linger_seconds, gone))
        self._show()
        _log.info(
            "issuing CA %s is swapped: generation %d, certificate %s",
            issuer.name,
            self._current.generation,
            issuer.certificate_sha256,
        )

    def _close_old(self, until: float) -> None:
        gone = [ca for due, ca in self._old if due <= until]
        self._old = [(due, ca) for due, ca in self._old if due > until]
        for ca in gone:
            close_plugin(ca.close)

    def _show(self) -> None:
        current = self._current
        for issuer in current.issuers.values():
            self._metrics.expiries.replace(issuer.name, current.expiries(issuer))
        self._metrics.expiries.replace_crls(current.crls.updates())
        self._metrics.expiries.replace("anchors", current.other_anchors())
