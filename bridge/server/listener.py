"""The listeners of one front: its gRPC server, and the threads behind it.

Each front has a gRPC server of its own: a gRPC server answers the same methods on all
its ports, and Istio's API must not be served without TLS.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import grpc

from bridge.admin.endpoints import split_address
from bridge.config import BridgeConfig
from bridge.errors import ConfigError
from bridge.issuance.procedure import Issuance
from bridge.metrics.instruments import Metrics
from bridge.server.front import Front, FrontSettings, Pools
from bridge.server.messages import LONGEST_REQUEST_BYTES
from bridge.server.transport.call_pool import CallPool
from bridge.server.transport.connection_guard import (
    MOST_CONNECTIONS,
    ConnectionGuard,
)
from bridge.server.transport.message_reader import MessageReader
from bridge.server.transport.reaper import Reaper
from bridge.system.background import SteadyPool
from bridge.system.linux import spare_descriptors

_CUT_SECONDS = 2.0
"""The longest wait for what should take no time. The process ends all the same."""
_CONNECTION_SECONDS = 30 * 60
_HEADER_BYTES = 4 * 1024
"""Of a call whose credential is in no header."""
_OPTIONS = (
    # Messages are small: a ping for each, to measure the bandwidth, costs more than a
    # window that fits.
    ("grpc.http2.bdp_probe", 0),
    # Small, as the bounds of headers are, also where a refusal is then the transport's
    # and not ours: what a peer sends takes a hundred times as much memory here
    # (decision 42).
    ("grpc.max_receive_message_length", LONGEST_REQUEST_BYTES),
    # Calls that Python has not seen: grpc ends some above the first bound (1,000 by
    # default), all above the second, with CANCELLED, after which Istio's client does
    # not try again. The bounds of connections come first. Each takes some 15 KB.
    ("grpc.server.max_pending_requests", 8 * 1024),
    ("grpc.server.max_pending_requests_hard_limit", 16 * 1024),
    # A call counts as a stream of its connection until Python has let it go, so a peer
    # that resets streams as fast as it can is held to the bound of streams; and it must
    # answer a ping for each. Otherwise grpc would cancel the calls of other peers.
    ("grpc.http.overload_protection", 1),
    ("grpc.http2.ping_on_rst_stream_percent", 100),
    # As istiod: clients may ping every 15 s, also between calls.
    ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 15_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A peer that is gone is noticed. grpc.keepalive_timeout_ms has no effect on it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
    # A peer that connects and does not speak HTTP/2, or does not acknowledge the bounds
    # above, or makes no call, is let go.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.http2.settings_timeout", 10_000),
    ("grpc.max_connection_idle_ms", 5 * 60 * 1000),
)
_log = logging.getLogger(__name__)


def most_connections(config: BridgeConfig) -> int:
    """Return the most connections of each port that a process serves by gRPC.

    The ports together leave descriptors to the rest of the process.
    """
    ports = {**config.fronts.addresses(), **config.admin.addresses()}
    ports.pop("admin.listen", None)
    return max(1, min(MOST_CONNECTIONS, spare_descriptors() // len(ports)))


def grpc_options(
    *,
    shares_ports: bool,
    connections: int,
    streams: int | None = None,
    header_bytes: int = _HEADER_BYTES,
    age_seconds: int = _CONNECTION_SECONDS,
) -> tuple[tuple[str, int], ...]:
    """Return the options of a gRPC server.

    Args:
        shares_ports: Other processes listen on the same ports (SO_REUSEPORT).
        connections: The most connections of a port.
        streams: The most concurrent calls on one connection; None sets no bound.
        header_bytes: The headers of a call. grpc refuses some above it, and all above
            twice as much.
        age_seconds: When a connection is ended, so that its client connects again,
            perhaps to a new replica.
    """
    bound = () if streams is None else (("grpc.max_concurrent_streams", streams),)
    return (
        ("grpc.so_reuseport", int(shares_ports)),
        ("grpc.max_connection_age_ms", age_seconds * 1000),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_metadata_size", header_bytes),
        ("grpc.absolute_max_metadata_size", 2 * header_bytes),
        *bound,
        *_OPTIONS,
    )


def bind(server: grpc.Server, key: str, address: str, credentials: Any = None) -> str:
    """Have a gRPC server listen on an address; return it as bound, `host:port`.

    Args:
        server: Not started yet.
        key: The key of the address in the configuration.
        address: `host:port`; port 0 takes a free one.
        credentials: For TLS; None for clear HTTP/2.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigError(
            f"{key}: cannot listen on {address}", detail=str(error)
        ) from error
    host, _ = split_address(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Listener(ABC):
    """The listeners of one front, with its gRPC server and its threads.

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
    """The most concurrent calls on one connection; None sets no bound."""
    header_bytes: ClassVar[int] = _HEADER_BYTES
    """The headers of a call; see `grpc_options`."""
    message_seconds: ClassVar[float] = 2.0
    """The longest wait for the message of a call."""
    is_behind_proxy: ClassVar[bool] = False
    """One connection carries the calls of many clients."""
    most_messages: ClassVar[int] = 1024
    """The most messages that are awaited at a time."""

    def __init__(
        self,
        config: BridgeConfig,
        issuance: Issuance,
        metrics: Metrics,
        *,
        shares_ports: bool = False,
    ) -> None:
        in_flight, queue_seconds = self.bounds(config)
        settings = self.settings(config)
        reaper = Reaper(min(self.message_seconds, settings.deadline_seconds))
        connections = most_connections(config)
        guard = ConnectionGuard(
            most=connections,
            knows_peers=not self.is_behind_proxy,
            closed=lambda reason, count: metrics.closed[reason].inc(count),
        )
        self.pools = Pools(
            calls=CallPool(
                config.limits.threads,
                in_flight,
                queue_seconds,
                MessageReader(reaper, self.most_messages),
            ),
            refusals=SteadyPool(1, "refusals"),
            reaper=reaper,
            guard=guard,
        )
        self._front = self.front(issuance, metrics, self.pools, settings)
        self._grpc = grpc.server(
            # grpc wants a pool. The front names another for each call that it takes,
            # and grpc answers any other method by itself, without a thread.
            self.pools.refusals,
            handlers=(self._front,),
            options=grpc_options(
                shares_ports=shares_ports,
                connections=connections,
                streams=self.streams,
                header_bytes=self.header_bytes,
            ),
        )
        self._bound: dict[str, str] = {}
        self.ports: Mapping[str, str] = {}
        """`host:port` as bound, by key of the configuration; empty before `open`."""

    @staticmethod
    @abstractmethod
    def bounds(config: BridgeConfig) -> tuple[int, float]:
        """Return the most calls that wait or run, and the longest wait in seconds."""

    @staticmethod
    @abstractmethod
    def settings(config: BridgeConfig) -> FrontSettings:
        """Return the settings of the front."""

    @abstractmethod
    def addresses(self) -> Mapping[str, tuple[str, Any]]:
        """Return each address to listen on, with credentials or None, by key."""

    def is_ready(self) -> bool:
        """Fetch what is missing to open; return whether the listener can open."""
        return self.can_open()

    def can_open(self) -> bool:
        """Return whether the listener has all that it needs to open."""
        return True

    def start_background(self) -> None:  # noqa: B027 - not every front has some
        """Start the work in the background, if there is any."""

    def problems(self) -> dict[str, str]:
        """Return why calls cannot be served although the listener may be open."""
        return {}

    def warnings(self) -> dict[str, str]:
        """Return what needs an operator's attention and stops nothing yet."""
        return {}

    def start_threads(self) -> None:
        """Start every thread.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        self.pools.reaper.start()
        self.pools.guard.start()
        self.pools.calls.start()
        self.pools.refusals.start()

    def open(self) -> None:
        """Listen. May be tried again.

        Raises:
            ConfigError: An address cannot be listened on.
        """
        for key, (address, credentials) in self.addresses().items():
            if key not in self._bound:
                self._bound[key] = bind(self._grpc, key, address, credentials)
        self._grpc.start()
        self.ports = self._bound
        self.pools.guard.ports = {
            int(port.rpartition(":")[2]) for port in self._bound.values()
        }

    def stop(self, grace: float) -> threading.Event:
        """Refuse new calls; cut off running ones after `grace` seconds. Repeatable.

        Returns:
            Set once no call is left.
        """
        try:
            ended: threading.Event = self._grpc.stop(grace)
        except RuntimeError:  # grpc starts a thread for it, and the system gives none
            _log.exception("the listeners could not be stopped")
            ended = threading.Event()
        return ended

    def stop_background(self) -> None:  # noqa: B027 - see `start_background`
        """Stop the work in the background. May be repeated, or come before a start."""

    def close(self) -> None:
        """End every thread, after `stop`."""
        self.pools.reaper.close()
        self.pools.guard.close()
        for pool in (self.pools.calls, self.pools.refusals):
            if not pool.close(_CUT_SECONDS):
                _log.error("a call still runs after the end of its time")
