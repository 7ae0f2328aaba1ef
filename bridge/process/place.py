"""Where a process stands among others, and how its transport is set."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process stands: alone, or as one of several workers."""

    writer: str = "bridge"
    """Its name in the ledger."""
    settles_beside: Collection[str] | None = ()
    """Writers whose journals it does not settle, but its own; None: it settles none."""
    shares_ports: bool = False
    """Others listen on the same ports. That must be meant, never happen."""
    admin: str | None = None
    """The admin address in place of the configured one."""
    shared: Path | None = None
    """The file of what is counted for all workers together."""

    def grpc_options(self, streams: int | None) -> tuple[tuple[str, int], ...]:
        """Return how grpc is to serve.

        Args:
            streams: The most calls under way on one connection; None is any number.
        """
        bound = () if streams is None else (("grpc.max_concurrent_streams", streams),)
        return (("grpc.so_reuseport", int(self.shares_ports)), *bound, *_OPTIONS)


ALONE = Place()
