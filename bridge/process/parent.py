"""The parent process of `meshca serve`: signals, reloads, the admin address, the end.

The parent imports neither grpc nor the ledger's database: it serves no certificate.
"""

import logging
import os
import queue
import shutil
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry, disable_created_metrics

from bridge.admin.endpoints import Admin, Views
from bridge.config import BridgeConfig, ConfigText
from bridge.errors import ConfigError
from bridge.process.helper_process import FEEDER, HelperProcesses, watcher
from bridge.process.merged_views import Pages
from bridge.process.own_rights import OwnRights
from bridge.process.reload import ConfigFile, Reloads
from bridge.process.role import index_in
from bridge.process.supervisor import Supervisor, WorkerDefaults
from bridge.process.worker_process import Spawn, WorkerProcess
from bridge.snapshot.continuity import remember, require_continuity
from bridge.system.clock import system_clock
from bridge.system.linux import harden
from bridge.system.ports import require_free

_BUSY_SECONDS = 0.03
_IDLE_SECONDS = 0.5
_APART_SECONDS = 1.0
"""Between two reloads: workers that are replaced at once run for about so long."""
_log = logging.getLogger(__name__)

Events = queue.SimpleQueue[int]
"""Numbers of signals; `put` may be called in a signal handler."""


def serve(source: ConfigText, *, log_level: str = "INFO") -> None:
    """Run workers until SIGTERM or SIGINT, and return when the last has ended.

    SIGHUP, or a change of the file or of the trust anchors, reloads the configuration.

    Args:
        source: The first configuration.
        log_level: The lowest level that workers log.

    Raises:
        ConfigError: The configuration cannot be used; nothing is left running.
    """
    events: Events = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda got, _frame: events.put(got))
    harden()
    run(source, events, log_level=log_level)


def run(
    source: ConfigText,
    events: Events,
    *,
    log_level: str = "INFO",
    spawn: Spawn = WorkerProcess,
) -> None:
    """Run workers until `events` has a SIGTERM. See `serve`.

    Args:
        source: The first configuration.
        events: Numbers of signals, whoever sends them.
        log_level: The lowest level that workers log.
        spawn: Starts a worker.
    """
    with ExitStack() as parts:
        folder = tempfile.mkdtemp(prefix="meshca-")
        parts.callback(shutil.rmtree, folder, ignore_errors=True)
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        reloads = Reloads(registry)
        defaults = WorkerDefaults(
            folder=folder, cpus=sorted(os.sched_getaffinity(0)), log_level=log_level
        )
        admin, shared = _AdminAddress(), _SharedAddresses()
        parts.callback(admin.close)
        anchors, rights = _TrustAnchors(), OwnRights()
        parts.callback(rights.stop)
        supervisor = Supervisor(
            source, spawn, defaults, reloads, [admin, shared, anchors, rights]
        )
        pages = Pages(supervisor, reloads, registry, rights.warnings)
        parts.callback(pages.close)
        try:
            pages.start()
        except RuntimeError as error:
            raise _no_thread(error) from error
        # Before any worker: an address in use means that another bridge runs.
        admin.open(source, pages.views())
        shared.prepare(source)
        shared.commit()
        anchors.prepare(source)
        rights.prepare(source)
        parts.callback(supervisor.kill)
        feeders = HelperProcesses(FEEDER, log_level)
        parts.callback(feeders.kill)
        watchers = HelperProcesses(watcher(index_in(Path(folder))), log_level)
        parts.callback(watchers.kill)
        _Loop(source, supervisor, feeders, watchers, reloads, events).run()
    _log.info("stopped in order")


class _AdminAddress:
    # The admin address in service and, during a reload, the one that follows it. See
    # `Replaceable`.
    def __init__(self) -> None:
        self._listen = ""
        self._views: Views | None = None
        self._current: Admin | None = None
        self._next: tuple[str, Admin] | None = None

    def open(self, source: ConfigText, views: Views) -> None:
        self._views = views
        self.prepare(source)
        self.commit()

    def prepare(self, source: ConfigText) -> None:
        listen = source.config.admin.listen
        if listen == self._listen or self._views is None:
            return
        new = Admin(listen, self._views)
        try:
            new.start()
        except RuntimeError as error:
            new.close()
            raise _no_thread(error) from error
        self._next = listen, new

    def commit(self) -> None:
        if self._next is None:
            return
        old = self._current
        self._listen, self._current = self._next
        self._next = None
        _log.info("health and metrics on %s", self._current.address)
        if old is not None:
            old.close()

    def discard(self) -> None:
        if self._next is not None:
            self._next[1].close()
            self._next = None

    def close(self) -> None:
        self.discard()
        if self._current is not None:
            self._current.close()


def _no_thread(error: RuntimeError) -> ConfigError:
    return ConfigError(
        "admin.listen: the system gives no more threads", detail=str(error)
    )


class _TrustAnchors:
    # The trust anchors of the configuration that follows. See `Replaceable`.
    def __init__(self) -> None:
        self._next: tuple[BridgeConfig, bytes] | None = None

    def prepare(self, source: ConfigText) -> None:
        config, content = source.config, source.anchors
        if content is None:
            raise ConfigError(
                f"{source.path}: trust_anchors: {config.trust_anchors}: cannot be read"
            )
        try:
            require_continuity(config, content, system_clock())
        except ConfigError as error:
            raise ConfigError(f"{source.path}: {error}", rule=error.rule) from error
        self._next = config, content

    def commit(self) -> None:
        if self._next is not None:
            remember(*self._next)
            self._next = None

    def discard(self) -> None:
        self._next = None


class _SharedAddresses:
    # The addresses on which the workers listen together. An address that is in use is
    # refused before a worker signs or writes anything. See `Replaceable`.
    def __init__(self) -> None:
        self._current: frozenset[str] = frozenset()
        self._next = self._current

    def prepare(self, source: ConfigText) -> None:
        config = source.config
        found = {**config.fronts.addresses(), **config.admin.addresses()}
        del found["admin.listen"]  # the parent's own
        for key, address in found.items():
            if address not in self._current:
                require_free(key, address)
        self._next = frozenset(found.values())

    def commit(self) -> None:
        self._current = self._next

    def discard(self) -> None:
        self._next = self._current


def _awaits_archive(config: BridgeConfig) -> bool:
    # A first login waits for what other hosts have latched.
    plugins = {issuing_ca.plugin for issuing_ca in config.issuing_cas.values()}
    return config.ledger.archive_is_shared and plugins != {"file"}


class _Loop:
    def __init__(
        self,
        source: ConfigText,
        supervisor: Supervisor,
        feeders: HelperProcesses,
        watchers: HelperProcesses,
        reloads: Reloads,
        events: Events,
    ) -> None:
        self._path = source.path
        self._file = ConfigFile(source)
        self._supervisor = supervisor
        self._feeders = feeders
        self._watchers = watchers
        self._reloads = reloads
        self._events = events
        self._look_at = time.monotonic() + _IDLE_SECONDS
        self._reload_from = 0.0
        self._is_asked = False
        self._refusal: ConfigError | None = None

    def run(self) -> None:
        supervisor = self._supervisor
        while not supervisor.is_over:
            try:
                wait = _IDLE_SECONDS if supervisor.is_settled else _BUSY_SECONDS
                event = self._events.get(timeout=wait)
            except queue.Empty:
                event = 0
            now = time.monotonic()
            if event in {signal.SIGTERM, signal.SIGINT}:
                supervisor.stop(now)
            if event == signal.SIGHUP or self._has_changed(now):
                self._is_asked = True
            if self._is_asked and now >= self._reload_from:
                self._is_asked, self._reload_from = False, now + _APART_SECONDS
                self._reload(now)
            self._tick(now)
            # Rows can wait for seconds, and callers cannot: the workers start alone.
            if supervisor.has_started:
                self._watchers.run(supervisor.source, now)
            if supervisor.has_started or _awaits_archive(supervisor.config):
                self._feeders.run(supervisor.source, now)
        # After the workers: the archive gets their last rows.
        _end(self._watchers)
        _end(self._feeders)
        if self._refusal is not None:
            raise self._refusal

    def _tick(self, now: float) -> None:
        try:
            self._supervisor.tick(now)
        except ConfigError as error:
            # The workers that run are ended in order: they have rows to write.
            self._refusal = error
            self._supervisor.stop(now)

    def _has_changed(self, now: float) -> bool:
        if now < self._look_at:
            return False
        self._look_at = now + _IDLE_SECONDS
        return self._file.changed()

    def _reload(self, now: float) -> None:
        try:
            source = ConfigText.read(self._path)
        except ConfigError as error:
            self._reloads.refused(error)
            return
        self._file.told(source)
        self._supervisor.reload(source, now)


def _end(helpers: HelperProcesses) -> None:
    helpers.stop(time.monotonic())
    while not helpers.is_gone:
        time.sleep(_BUSY_SECONDS)
        helpers.tick(time.monotonic())
