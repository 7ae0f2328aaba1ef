"""One server process, put together from parts that are already built."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from bridge.admin.endpoints import PARTS, Admin, Views
from bridge.config import BridgeConfig
from bridge.errors import ConfigError
from bridge.metrics.instruments import Metrics
from bridge.process.place import ALONE, Place
from bridge.server.doors import IstioDoor, LinkerdDoor
from bridge.server.front import Issuer
from bridge.server.grpc_health import Health
from bridge.server.listener import Door
from bridge.server.serving_certificate import PART as SERVING
from bridge.server.serving_certificate import IssueServing
from bridge.server.transport.socket_drain import leave_to_others
from bridge.system.clock import Clock

_FLUSH_SECONDS = 0.5
_CUT_SECONDS = 2.0
"""How long the end waits for what should take no time: it comes, whatever hangs."""
_log = logging.getLogger(__name__)


class Server:
    """The fronts, their health, and the admin address.

    Args:
        config: The whole configuration.
        issuer: Decides and issues.
        issue_serving: Issues the certificate of Istio's listener.
        anchors_pem: Returns the trust anchors that client certificates lead to; asked
            at each new connection.
        metrics: Shown at /metrics.
        clock: The time that the serving certificate is renewed by.
        problems: What stands against being ready, by part (`admin.PARTS`); the
            server adds its listeners and their certificate.
        warnings: What does not, and is shown beside it.
        place: Where this process stands.
    """

    def __init__(  # noqa: PLR0913 - the composition root passes each by keyword
        self,
        config: BridgeConfig,
        issuer: Issuer,
        *,
        issue_serving: IssueServing,
        anchors_pem: Callable[[], bytes],
        metrics: Metrics,
        clock: Clock,
        problems: Callable[[], Mapping[str, str]],
        warnings: Callable[[], Mapping[str, str]] = dict,
        place: Place = ALONE,
    ) -> None:
        self._place = place
        self._problems = problems
        self._warnings = warnings
        self._listening = threading.Lock()
        self._failure = "waiting for the serving certificate"
        self._draining = False
        self._drained = threading.Event()
        self._doors: tuple[Door, ...] = ()
        self._admin = Admin(
            place.admin or config.admin.listen,
            Views(self.problems, self.warnings, metrics.render, parts=_parts(config)),
        )
        # From here on nothing raises: there are threads to end.
        doors: list[Door] = []
        if config.fronts.istio is not None:
            istio = IstioDoor(
                config,
                issuer,
                metrics,
                place,
                issue_serving=issue_serving,
                anchors_pem=anchors_pem,
                clock=clock,
            )
            istio.serving.on_pair = lambda: self._open_late(istio)
            doors.append(istio)
        if config.fronts.linkerd is not None:
            doors.append(LinkerdDoor(config, issuer, metrics, place))
        self._doors = tuple(doors)
        self._health = Health(self.problems, tuple(door.service for door in doors))
        for door in doors:
            self._health.add_to(door.grpc, door.side)
        metrics.in_flight.set_function(
            lambda: sum(door.lanes.calls.count for door in doors)
        )

    @property
    def istio_address(self) -> str:
        """`host:port` of the token port as bound; empty until the listeners are up."""
        return self._ports().get("fronts.istio.listen", "")

    @property
    def mtls_address(self) -> str:
        """`host:port` of the client-certificate port; empty if there is none."""
        return self._ports().get("fronts.istio.mtls_listen", "")

    @property
    def linkerd_address(self) -> str:
        """`host:port` of Linkerd's front; empty if there is none."""
        return self._ports().get("fronts.linkerd.listen", "")

    @property
    def admin_address(self) -> str:
        """`host:port` of the admin address as bound."""
        return self._admin.address

    def problems(self) -> dict[str, str]:
        """Return what stands against being ready, by part; empty when ready."""
        found = dict(self._problems())
        for door in self._doors:
            found |= door.problems()
        if self._draining:
            found["listeners"] = "the process is about to end"
        elif not self._doors or not all(door.ports for door in self._doors):
            found["listeners"] = self._failure
        return found

    def warnings(self) -> dict[str, str]:
        """Return what wants attention although it does not stop the bridge."""
        found = dict(self._warnings())
        for door in self._doors:
            found |= door.warnings()
        return found

    def start(self) -> None:
        """Listen, and return.

        Without a serving certificate, because no issuing CA answers, the port of
        Istio's front stays shut; it follows as soon as there is one.

        Raises:
            ConfigError: An address cannot be listened on, or the system gives fewer
                threads than `limits.threads`.
        """
        try:
            self._start_threads()
            for door in self._doors:
                if door.is_ready():
                    self._open(door)
        except ConfigError:
            self.drain(0)
            raise
        for door in self._doors:
            door.start()
        self._health.look()
        self._health.start()

    def prepare(
        self, config: BridgeConfig, issue_serving: IssueServing
    ) -> Callable[[], None]:
        """Make ready for another configuration with the same listeners and threads.

        Args:
            config: The other configuration.
            issue_serving: Issues by it, before it is in service.

        Returns:
            What puts it in service. It does not fail.

        Raises:
            BridgeError: There is no serving certificate as it wants it.
        """
        commits = [door.prepare(config, issue_serving) for door in self._doors]

        def commit() -> None:
            for each in commits:
                each()
            # It may have brought what a door had to wait for.
            for door in self._doors:
                self._open_late(door)

        return commit

    def drain(self, grace: float) -> None:
        """Stop in order: say so, finish the calls under way, close. May be repeated.

        Args:
            grace: Seconds that calls under way may take; what is left then is cut off.
        """
        began = time.monotonic()
        with self._listening:
            self._draining = True
        self._health.drain()
        if self._place.shares_ports:
            leave_to_others(self._ports().values(), grace)
        for door in self._doors:
            door.rest()
        ended = [door.stop(grace) for door in self._doors]
        for door, left in zip(self._doors, _left(began, grace), strict=False):
            door.lanes.calls.wait_until_idle(left)
        # Only watchers of our health are left, or replies on their way out.
        for event, left in zip(ended, _left(began, grace), strict=False):
            event.wait(min(left, _FLUSH_SECONDS))
        for event in [door.stop(0) for door in self._doors]:
            if not event.wait(_CUT_SECONDS):
                _log.error("the listeners did not close in time")
        for door in self._doors:
            door.close()
        self._admin.close()
        self._drained.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until `drain` is done; False if that takes longer."""
        return self._drained.wait(timeout)

    def _ports(self) -> dict[str, str]:
        return {key: port for door in self._doors for key, port in door.ports.items()}

    def _start_threads(self) -> None:
        self._admin.start()
        try:
            for door in self._doors:
                door.start_threads()
        except RuntimeError as error:
            raise ConfigError(
                "limits.threads: the system gives no more threads", detail=str(error)
            ) from error

    def _open_late(self, door: Door) -> None:
        try:
            self._open(door)
        except Exception as error:  # noqa: BLE001 - who calls has to go on
            known, self._failure = self._failure, str(error)
            if self._failure != known:
                _log.error("a front does not open: %s", error)

    def _open(self, door: Door) -> None:
        with self._listening:
            if not self._draining and not door.ports and door.can_open():
                door.open()


def _parts(config: BridgeConfig) -> tuple[str, ...]:
    absent = set() if config.fronts.istio else {SERVING}
    return tuple(part for part in PARTS if part not in absent)


def _left(began: float, grace: float) -> Iterator[float]:
    # Asked again for each door: they share the time.
    while True:
        yield max(0.0, began + grace - time.monotonic())
