"""The composition root: builds, starts and stops everything that serves."""

import gc
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from bridge import __version__
from bridge.config import APIServerConfig, BridgeConfig
from bridge.errors import LedgerError
from bridge.identity.clusters import ClusterRegistry
from bridge.issuance.own_certificates import OwnCertificates
from bridge.issuance.procedure import Issuance
from bridge.issuance.signing import Signing
from bridge.kubernetes.clients import access_source_of, api_server_of
from bridge.kubernetes.events import AccountEvents
from bridge.kubernetes.rights import has_events
from bridge.ledger.journal.journal import JournalOptions
from bridge.ledger.latch_rows import LatchRecorder, begin
from bridge.ledger.ledger import Ledger
from bridge.metrics.instruments import Metrics
from bridge.policy.bars import Bars
from bridge.policy.certificate_renewal import CertificateRenewal
from bridge.process.role import ALONE, HELD, UNPROVEN, WITHOUT_KEYS, ProcessRole
from bridge.resilience.failover import Failover, Guards
from bridge.resilience.latch_file import Entry, Kind
from bridge.resilience.quarantine import StoppedCAs
from bridge.server.server import Server
from bridge.server.status import status_name
from bridge.snapshot.builder import Assembly
from bridge.snapshot.expiry import ExpiryWatch
from bridge.snapshot.store import Snapshots
from bridge.system.background import BackgroundLoop
from bridge.system.clock import Clock, system_clock
from bridge.system.linux import bound_malloc

_log = logging.getLogger(__name__)
_LATCH_SECONDS = 0.5
_BARS_SECONDS = 0.25
_COLLECT_AFTER = (50_000, 20, 100)
"""Thresholds of the garbage collector, see `gc.set_threshold`."""


class Process:
    """Everything that serves in one process. Serves one configuration until it stops.

    Args:
        config: The configuration.
        clock: The time.
        warn: Tells the operator of a setting that is legal and unwise.
        role: What the process is in the bridge.
    """

    def __init__(
        self,
        config: BridgeConfig,
        *,
        warn: Callable[[str], None] = _log.warning,
        clock: Clock = system_clock,
        role: ProcessRole = ALONE,
    ) -> None:
        self._config = config
        self._role = role
        self.metrics = Metrics(__version__, clock)
        """What the process measures."""
        self._assembly = Assembly(
            config=config,
            clock=clock,
            warn=warn,
            shared=role.shared,
            watched=role.watched,
            anchors=role.anchors,
            state=config.ledger.state,
            plugin_metrics=self.metrics.plugin,
        )
        self._clock = clock
        self._parts = ExitStack()
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        """The server of a started process.

        Raises:
            RuntimeError: The process is not started.
        """
        if self._server is None:
            raise RuntimeError("the process is not started")
        return self._server

    def start(self) -> None:
        """Build, prove and listen. Return when the listeners are open, or will be.

        Raises:
            ConfigError: The configuration, or a file that it names, cannot be used; the
                message lists every problem. Nothing is left running.
            LedgerError: The ledger cannot be opened.
        """
        bound_malloc()
        with ExitStack() as parts:
            self._start(parts)
            self.server.start()
            self._parts = parts.pop_all()
        self._tell_addresses()
        # Objects made at load live as long as the process: no collection looks at them.
        gc.collect()
        gc.freeze()
        # A request leaves no cycles. To look for them after every 700 objects takes a
        # fourteenth of the processor.
        gc.set_threshold(*_COLLECT_AFTER)

    def release(self) -> None:
        """Listen, where the role held the process. May be repeated.

        Raises:
            ConfigError: An address cannot be listened on.
        """
        self.server.release()
        self._tell_addresses()

    def stop(self) -> None:
        """Finish the calls under way, and close everything. May be repeated."""
        self._parts.close()
        _log.info("stopped in order")

    def _tell_addresses(self) -> None:
        for what, address in self.addresses().items():
            _log.info("%s on %s", what, address)

    def _start(self, parts: ExitStack) -> None:
        config, clock, metrics = self._config, self._clock, self.metrics
        first = self._assembly.snapshot()
        first.bundle.warn(clock())
        guards = Guards(config.limits.threads, metrics.backend)
        snapshots = Snapshots(
            self._assembly,
            first,
            metrics,
            guards,
            linger_seconds=_linger_seconds(config),
        )
        parts.callback(snapshots.close)
        ledger = self._open_ledger(parts)
        parts.callback(snapshots.stop)
        stopped = self._open_latch(snapshots, ledger, parts)
        bars = self._open_bars(ledger, parts)
        signing = Signing(ledger, metrics, status_name, stopped, guards)
        again = config.issuance.second_certificate
        failover = Failover(guards, second_certificate=again)
        own = OwnCertificates(snapshots.current, signing, failover, clock)
        events = self._start_clusters(first.clusters, parts)
        issuance = Issuance(
            snapshot=snapshots.current,
            ledger=ledger,
            signing=signing,
            failover=failover,
            metrics=metrics,
            clock=clock,
            status_name=status_name,
            ready=snapshots.prober.ready,
            renewal=_renewal(config, parts),
            bars=bars,
            events=events,
        )
        expiry = self._watch_expiry(snapshots, parts)
        snapshots.start(own.probe)
        self._server = Server(
            config,
            issuance,
            issue_serving=own.issue_serving,
            anchors_pem=lambda: first.bundle.pem(clock()).encode("ascii"),
            metrics=metrics,
            clock=clock,
            problems=lambda: _problems(snapshots, ledger, config, stopped, expiry),
            warnings=lambda: _warnings(snapshots, ledger, stopped, expiry, clock, bars),
            shares_ports=self._role.shares_ports,
            admin_address=self._role.admin,
            held=HELD["listeners"] if self._role.is_held else "",
        )
        parts.callback(self._drain)

    def _open_ledger(self, parts: ExitStack) -> Ledger:
        ledger = Ledger.open(
            self._config.ledger,
            writer=self._role.writer,
            clock=self._clock,
            options=JournalOptions(observe_commit=_observer(self.metrics)),
        )
        parts.callback(ledger.close)
        self.metrics.watch_archive(lambda: ledger.lag()[0], lambda: ledger.lag()[1])
        return ledger

    def _start_clusters(
        self, clusters: ClusterRegistry, parts: ExitStack
    ) -> AccountEvents | None:
        clusters.start()
        self.metrics.watch_tokens(clusters)
        linkerd = self._config.linkerd_cluster()
        if linkerd is None or not has_events(self._config, linkerd):
            return None
        if not isinstance(linkerd.tokens, APIServerConfig):
            return None
        # Its own client: what is sent by it takes no place from reviews.
        source = access_source_of(linkerd, clusters.secrets)
        results = self.metrics.events
        events = AccountEvents(
            api_server_of(linkerd.tokens, source=source),
            lambda result, number: results[result].inc(number),
        )
        events.start()
        parts.callback(events.close)
        return events

    def _open_latch(
        self, snapshots: Snapshots, ledger: Ledger, parts: ExitStack
    ) -> StoppedCAs:
        section, clock = self._config.ledger, self._clock
        now = clock().timestamp()
        begin(section.latch, now, is_shared=section.archive_is_shared)
        stopped = StoppedCAs(section.latch, clock)
        _record_changes(section.latch, stopped.write, _LATCH_SECONDS, ledger, parts)
        self.metrics.watch_latch(
            lambda: [(each.name, each.kind) for each in _waiting(snapshots, stopped)]
        )
        return stopped

    def _open_bars(self, ledger: Ledger, parts: ExitStack) -> Bars:
        path = self._config.ledger.bars
        bars = Bars(path)
        _record_changes(path, bars.look, _BARS_SECONDS, ledger, parts)
        return bars

    def _watch_expiry(self, snapshots: Snapshots, parts: ExitStack) -> ExpiryWatch:
        known = self.metrics.expiries.known
        watch = ExpiryWatch(known, snapshots.current, self._clock)
        watch.start()
        parts.callback(watch.close)
        return watch

    def _drain(self) -> None:
        self.server.drain(self._config.limits.drain.total_seconds())

    def addresses(self) -> Mapping[str, str]:
        """Return the open listeners by name, each as `host:port`."""
        found = {
            "Istio front": self.server.istio_address,
            "Istio front with client certificates": self.server.mtls_address,
            "Linkerd front": self.server.linkerd_address,
            "health and metrics": self.server.admin_address,
            "gRPC health": self.server.health_address,
        }
        return {what: address for what, address in found.items() if address}


def _record_changes(
    path: Path,
    step: Callable[[], None],
    seconds: float,
    ledger: Ledger,
    parts: ExitStack,
) -> None:
    # Runs `step` again and again, and writes the rows that the file asks for.
    recorder = LatchRecorder(path, ledger.record)

    def look() -> None:
        step()
        with suppress(LedgerError):  # the ledger, or who has the file, says so
            recorder.run()

    loop = BackgroundLoop(path.stem, look, seconds)
    loop.start()
    parts.callback(look)
    parts.callback(loop.close)


def _renewal(config: BridgeConfig, parts: ExitStack) -> CertificateRenewal:
    front = config.fronts.istio
    if front is None or front.mtls_listen is None or not front.mtls_identities:
        return CertificateRenewal()
    # Only here: it imports SQLAlchemy.
    from bridge.ledger.archive.lineages import Lineages  # noqa: PLC0415 - see above

    lineages = Lineages(config.ledger.archive)
    parts.callback(lineages.close)
    return CertificateRenewal.of(config, lineages)


def _linger_seconds(config: BridgeConfig) -> float:
    # The longest that a call may use the issuing CA that it began with.
    deadlines = [config.limits.deadline]
    if config.fronts.linkerd is not None:
        deadlines.append(config.fronts.linkerd.deadline)
    return max(deadlines).total_seconds() + 1


def _observer(metrics: Metrics) -> Callable[[float, int], None]:
    seconds, rows = metrics.journal_commit_seconds, metrics.journal_batch_rows

    def observe(took: float, count: int) -> None:
        seconds.observe(took)
        rows.observe(count)

    return observe


def _problems(
    snapshots: Snapshots,
    ledger: Ledger,
    config: BridgeConfig,
    stopped: StoppedCAs,
    expiry: ExpiryWatch,
) -> dict[str, str]:
    found: dict[str, str] = {}
    if (shut := ledger.problem()) is not None:
        found["ledger"] = shut
    if reason := _no_issuing_ca(snapshots, stopped, expiry):
        found["issuing CAs"] = reason
    if unserved := snapshots.current().clusters.unserved(config.callers_by_front()):
        found["token keys"] = "; ".join(unserved)
    return found


def _no_issuing_ca(
    snapshots: Snapshots, stopped: StoppedCAs, expiry: ExpiryWatch
) -> str:
    # Why no issuing CA can be used; empty if one can.
    latched = (
        entry.name
        for entry in _waiting(snapshots, stopped)
        if entry.kind != Kind.CREDENTIAL
    )
    reasons = [expiry.problem({*snapshots.prober.unproven(), *latched})]
    if not snapshots.prober.ready():
        reasons.append(_sentence(snapshots.problems()))
    return "; ".join(filter(None, reasons))


def _warnings(  # noqa: C901 - one line for each part
    snapshots: Snapshots,
    ledger: Ledger,
    stopped: StoppedCAs,
    expiry: ExpiryWatch,
    clock: Clock,
    bars: Bars,
) -> dict[str, str]:
    # One issuing CA that signs is enough to serve; problems of another are warnings.
    found = expiry.warnings()
    if rebuild := ledger.rebuild():
        found["archive"] = rebuild
    if snapshots.prober.ready() and snapshots.problems():
        found["issuing CAs"] = _sentence(snapshots.problems())
    if waiting := [
        f"{entry.name}: {entry.state}: {entry.reason}"
        for entry in _waiting(snapshots, stopped)
    ]:
        found["latched"] = f"{'; '.join(waiting)} (see `meshca ledger latch list`)"
    for part, trouble in ("latch", stopped.trouble()), ("bars", bars.trouble()):
        if trouble:
            found[part] = trouble
    if told := snapshots.crl_warnings(clock()):
        found["revocation"] = "; ".join(told)
    if told := snapshots.current().bundle.problems(clock()):
        found["trust anchors"] = "; ".join(told)
    clusters, ended = snapshots.current().clusters, expiry.ended()
    if stale := clusters.problems():
        found["token keys"] = "; ".join(stale)
    for warning, names in (
        (WITHOUT_KEYS, clusters.without_keys() + clusters.without_credentials()),
        (UNPROVEN, [one for one in snapshots.prober.unproven() if one not in ended]),
    ):
        if names:
            found[warning] = ", ".join(names)
    return found


def _waiting(snapshots: Snapshots, stopped: StoppedCAs) -> list[Entry]:
    # What waits for an operator. A stop holds for one certificate of an issuing CA.
    issuers = snapshots.current().issuers.values()
    certificates = {issuer.certificate_sha256 for issuer in issuers}
    return [
        entry
        for entry in stopped.latched()
        if entry.kind == Kind.CREDENTIAL or entry.scope in certificates
    ]


def _sentence(problems: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {text}" for name, text in problems.items())
