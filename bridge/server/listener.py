"""The listeners of one front: its grpc server, and the threads behind it.

Each front has a server of its own: what grpc serves, it serves on all its ports, and
what is asked for over TLS must not be had in the clear.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import grpc

from bridge.admin.endpoints import split_address
from bridge.config import BridgeConfig
from bridge.errors import ConfigError
from bridge.metrics.instruments import Metrics
from bridge.server.front import Front, FrontSettings, Issuance, Pools
from bridge.server.serving_certificate import IssueServing
from bridge.server.transport.auxiliary_calls import SideCalls
from bridge.server.transport.call_pool import CallPool, SteadyPool
from bridge.server.transport.message_reader import MessageReader
from bridge.server.transport.reaper import Reaper

_CUT_SECONDS = 2.0
"""How long the end waits for what should take no time: it comes, whatever hangs."""
_OPTIONS = (
    # Messages are small: to measure the line by a ping for each costs more than a
    # window that fits.
    ("grpc.http2.bdp_probe", 0),
    # Above these the transport answers by itself, with a status that Istio's client
    # tries again on; up to them the refusal is ours.
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    # A peer that resets streams as fast as it can would make the transport cancel the
    # calls of others: it has to answer a ping for each.
    ("grpc.http2.ping_on_rst_stream_percent", 100),
    ("grpc.max_metadata_size", 1024 * 1024),
    ("grpc.absolute_max_metadata_size", 1024 * 1024),
    # istiod's: clients may ping every 15 s, also between calls.
    ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 15_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Who is gone is noticed, and a new replica gets its share in the end.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
)
_log = logging.getLogger(__name__)


def grpc_options(
    streams: int | None, *, shares_ports: bool
) -> tuple[tuple[str, int], ...]:
    """Return the options of a gRPC server.

    Args:
        streams: The most concurrent calls on one connection; None sets no bound.
        shares_ports: Other processes listen on the same ports (SO_REUSEPORT).
    """
    bound = () if streams is None else (("grpc.max_concurrent_streams", streams),)
    return (("grpc.so_reuseport", int(shares_ports)), *bound, *_OPTIONS)


class Listener(ABC):
    """The listeners of one front.

    Args:
        config: The whole configuration.
        issuance: Decides and issues.
        metrics: Counts calls by how they ended.
        shares_ports: Other processes listen on the same ports (SO_REUSEPORT).
    """

    front: ClassVar[type[Front]]
    service: ClassVar[str]
    """The API's name in gRPC."""
    streams: ClassVar[int | None] = None
    """The most calls under way on one connection; None is any number."""
    message_seconds: ClassVar[float] = 2.0
    """The longest that a call's message is waited for."""
    honest_seconds: ClassVar[float] = 0.25
    """The same, while many are waited for: somebody may fill the line on purpose."""
    is_behind_proxy: ClassVar[bool] = False
    """A connection carries the calls of many clients."""
    most_messages: ClassVar[int] = 64
    """The most messages that are waited for at a time."""

    def __init__(
        self,
        config: BridgeConfig,
        issuance: Issuance,
        metrics: Metrics,
        *,
        shares_ports: bool = False,
    ) -> None:
        in_flight, queue_seconds = self.bounds(config)
        reaper = self._reaper(self._message_seconds(config))
        self.pools = Pools(
            calls=CallPool(
                config.limits.threads,
                in_flight,
                queue_seconds,
                MessageReader(reaper, self.most_messages),
            ),
            refusals=SteadyPool(1, "refusals"),
            reaper=reaper,
        )
        self.side = SideCalls(
            self._reaper(self.message_seconds), self.most_messages, self.pools.refusals
        )
        """Runs what is served beside the CA."""
        self._front = self.front(issuance, metrics, self.pools, self.settings(config))
        self.grpc = grpc.server(
            self.side.pool,
            options=grpc_options(self.streams, shares_ports=shares_ports),
        )
        """To be told of more services before the listener opens."""
        self.grpc.add_generic_rpc_handlers((self._front,))
        self._bound: dict[str, str] = {}
        self.ports: Mapping[str, str] = {}
        """What is listened on, `host:port` by the key of the configuration; empty while
        the listener is shut."""

    @staticmethod
    @abstractmethod
    def bounds(config: BridgeConfig) -> tuple[int, float]:
        """Return how many calls may be under way, and how many seconds one may wait."""

    @staticmethod
    @abstractmethod
    def settings(config: BridgeConfig) -> FrontSettings:
        """Return what calls are held to."""

    @abstractmethod
    def addresses(self) -> Mapping[str, tuple[str, Any]]:
        """Return where to listen, with credentials or None, by key."""

    def is_ready(self) -> bool:
        """Return whether there is all that it takes to open; try for it."""
        return self.can_open()

    def can_open(self) -> bool:
        """Return whether there is all that it takes to open, as it is."""
        return True

    @abstractmethod
    def start(self) -> None:
        """Begin what goes on in the background."""

    def problems(self) -> dict[str, str]:
        """Return why calls cannot be served although the listener may be open."""
        return {}

    def warnings(self) -> dict[str, str]:
        """Return what wants attention."""
        return {}

    def start_threads(self) -> None:
        """Start every thread.

        Raises:
            RuntimeError: The system gives no more.
        """
        for reaper in self._reapers():
            reaper.start()
        for pool in self._all_pools():
            pool.start()

    def open(self) -> None:
        """Listen. May be tried again.

        Raises:
            ConfigError: An address cannot be listened on.
        """
        for key, where in self.addresses().items():
            if key not in self._bound:
                self._bound[key] = self._bind(key, *where)
        self.grpc.start()
        self.ports = self._bound

    def prepare(
        self, config: BridgeConfig, issue_serving: IssueServing
    ) -> Callable[[], None]:
        """Make ready for another configuration; see `Server.prepare`."""

        def commit() -> None:
            self._front.change(self.settings(config))
            calls = self.pools.calls
            calls.in_flight, calls.queue_seconds = self.bounds(config)
            self.pools.reaper.seconds = self._message_seconds(config)

        return commit

    def stop(self, grace: float) -> threading.Event:
        """Take no more calls; what is under way has `grace` seconds. May be repeated.

        Returns:
            Set when nothing is under way.
        """
        try:
            ended: threading.Event = self.grpc.stop(grace)
        except RuntimeError:  # grpc starts a thread for it, and there is none to be had
            _log.exception("the listeners could not be told to end")
            ended = threading.Event()
        return ended

    @abstractmethod
    def stop_background(self) -> None:
        """End what goes on in the background. May be repeated, or before `start`."""

    def close(self) -> None:
        """End every thread, after `stop`."""
        for reaper in self._reapers():
            reaper.close()
        for pool in self._all_pools():
            if not pool.close(_CUT_SECONDS):
                _log.error("a call goes on after the end of its time")

    def _message_seconds(self, config: BridgeConfig) -> float:
        return min(self.message_seconds, self.settings(config).deadline_seconds)

    def _reaper(self, seconds: float) -> Reaper:
        return Reaper(
            seconds,
            self.most_messages // 2,
            honest_seconds=self.honest_seconds,
            knows_peers=not self.is_behind_proxy,
        )

    def _reapers(self) -> tuple[Reaper, ...]:
        return self.pools.reaper, self.side.reaper

    def _all_pools(self) -> Iterator[CallPool | SteadyPool]:
        yield from (self.pools.calls, self.pools.refusals)
        yield from (self.side.pool, self.side.news)

    def _bind(self, key: str, address: str, credentials: Any) -> str:
        try:
            if credentials is None:
                port = self.grpc.add_insecure_port(address)
            else:
                port = self.grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"{key}: cannot listen on {address}", detail=str(error)
            ) from error
        host, _ = split_address(address)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
