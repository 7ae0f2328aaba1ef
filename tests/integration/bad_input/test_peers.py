"""Peers that misbehave: they leave, stall, say nothing, or take everything back.

While they do, others are served; afterwards nothing is left of them.
"""

import contextlib
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from bridge.server.istio import METHOD
from tests.support.clients import attacks, http2
from tests.support.clients.istio_raw import Wire, bearer, channel, request, token
from tests.support.harness.real_process import Bridge
from tests.support.harness.unharmed import nothing_left

pytestmark = pytest.mark.xdist_group("bad-input-peers")

SILENT = 500
AWAITED, STREAMS = 1024, 100
"""Messages that are awaited at a time, and streams of a connection."""
RESETS = 3000
REFUSED_STREAM = (7).to_bytes(4)
STORM_SECONDS = 2.0
AT_ONCE_SECONDS = 5.0
"""Of a machine that runs other tests beside this one; alone it takes milliseconds."""
GIVEN_UP_SECONDS = 15.0


def served_at_once(wire: Wire) -> None:
    own = channel(wire.bridge)
    began = time.monotonic()
    answer = wire.send(request(), bearer(token()), on=own)
    took = time.monotonic() - began
    own.close()
    assert answer.code == "OK", answer
    assert took < AT_ONCE_SECONDS


def eventually(holds: Callable[[], bool], seconds: float = GIVEN_UP_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def leaves_nothing(bridge: Bridge, wire: Wire) -> Iterator[None]:
    assert eventually(lambda: wire.ask().code == "OK")  # whatever came before
    wire.require_healthy()
    with nothing_left(bridge):
        yield
    wire.require_healthy()


class Resets:
    """A peer that begins calls and takes them back, in a thread of its own."""

    def __init__(self, bridge: Bridge) -> None:
        self.sent = 0
        self._bridge = bridge
        self._header = (b"authorization", f"Bearer {token()}".encode())
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            # Whoever is cut off comes again.
            with (
                contextlib.suppress(OSError),
                http2.Connection(self._bridge) as peer,
            ):
                self._storm(peer)

    def _storm(self, peer: http2.Connection) -> None:
        for stream in itertools.count(1, 2):
            if self._ending.is_set():
                return
            begun = http2.begun(stream, (self._header,))
            peer.socket.sendall(begun + http2.reset(stream))
            self.sent += 1


@contextlib.contextmanager
def open_sockets(make: Callable[[], socket.socket], count: int) -> Iterator[None]:
    with contextlib.ExitStack() as closing:
        for _ in range(count):
            closing.enter_context(make())
        yield


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("connect", [http2.connect, http2.handshake])
def test_connections_that_say_nothing_stop_nobody(
    bridge: Bridge,
    wire: Wire,
    connect: Callable[[Bridge], socket.socket | ssl.SSLSocket],
) -> None:
    with open_sockets(lambda: connect(bridge), SILENT):
        served_at_once(wire)


@pytest.mark.usefixtures("leaves_nothing")
def test_connections_of_another_protocol_stop_nobody(
    bridge: Bridge, wire: Wire
) -> None:
    texts = (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 200, b"\0" * 4096)
    with contextlib.ExitStack() as closing:
        for text in texts * 10:
            made = closing.enter_context(http2.connect(bridge))
            made.sendall(text)
        for text in texts * 10:
            inside = closing.enter_context(http2.handshake(bridge))
            inside.sendall(text)
        served_at_once(wire)


@pytest.mark.usefixtures("leaves_nothing")
def test_a_peer_that_never_reads_stops_nobody(bridge: Bridge, wire: Wire) -> None:
    message, header = request(), f"Bearer {token()}".encode()
    with http2.Connection(bridge, window=0) as peer:
        for _ in range(50):
            stream = peer.begin((b"authorization", header))
            peer.message(stream, message)
        served_at_once(wire)


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("half", [False, True], ids=["none", "half"])
def test_a_call_whose_message_does_not_come_is_given_up(
    bridge: Bridge, wire: Wire, *, half: bool
) -> None:
    with http2.Connection(bridge) as peer:
        stream = peer.begin((b"authorization", f"Bearer {token()}".encode()))
        if half:
            part = http2.framed(request())[:-1]
            peer.socket.sendall(http2.frame(http2.DATA, 0, stream, part))
        served_at_once(wire)
        ends = (http2.HEADERS, http2.RST_STREAM)
        assert any(
            one.kind in ends and one.stream == stream
            for one in peer.frames(GIVEN_UP_SECONDS)
        )


@pytest.mark.usefixtures("leaves_nothing")
def test_a_caller_that_leaves_before_its_message_came_gets_no_certificate(
    bridge: Bridge, wire: Wire
) -> None:
    account = "impatient"
    with http2.Connection(bridge) as peer:
        header = f"Bearer {token(account=account)}".encode()
        stream = peer.begin((b"authorization", header))
        assert eventually(lambda: bridge.metric("meshca_in_flight") == 1)
        peer.reset(stream)
        peer.message(stream, request())
        assert eventually(lambda: bridge.metric("meshca_in_flight") == 0)
    wire.require_healthy()
    assert bridge.rows(caller=f"spiffe://corp.example/ns/shop/sa/{account}") == []


@pytest.mark.usefixtures("leaves_nothing")
def test_calls_whose_messages_do_not_come_stop_nobody(
    bridge: Bridge, wire: Wire
) -> None:
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(http2.Connection(bridge))
            for _ in range(AWAITED // STREAMS + 2)
        ]
        for peer in peers:
            next(peer.frames(GIVEN_UP_SECONDS))  # its settings
            peer.socket.sendall(http2.frame(http2.SETTINGS, http2.ACK))
            for _ in range(STREAMS):
                peer.begin((b"authorization", b"Bearer x"))
        served_at_once(wire)
        assert bridge.metric("meshca_in_flight") <= AWAITED + STREAMS
        assert eventually(lambda: bridge.metric("meshca_in_flight") == 0)


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize(
    "kind",
    [
        *("unknown-methods", "no-message", "withheld-messages", "resets"),
        *("bad-tokens", "short-references"),
    ],
)
def test_a_connection_that_sends_junk_is_closed_and_no_other(
    bridge: Bridge, wire: Wire, kind: str
) -> None:
    def closed() -> float:
        return bridge.metric("meshca_connections_closed_total", reason="junk")

    before, send = closed(), attacks.ATTACKS[kind].send
    own = channel(bridge)
    assert wire.send(request(), bearer(token()), on=own).code == "OK"
    with http2.Connection(bridge) as peer:
        frames = peer.frames(GIVEN_UP_SECONDS)
        next(frames)
        peer.socket.sendall(http2.frame(http2.SETTINGS, http2.ACK))
        junk = (send(2 * number + 1, number) for number in range(150))
        with contextlib.suppress(OSError):
            for one in junk:
                peer.socket.sendall(one)
        for _ in frames:
            pass  # until the end
        assert eventually(lambda: closed() > before)
    assert wire.send(request(), bearer(token()), on=own).code == "OK"
    own.close()


@pytest.mark.usefixtures("leaves_nothing")
def test_a_connection_keeps_its_streams_when_its_calls_are_refused(
    bridge: Bridge, wire: Wire
) -> None:
    own = channel(bridge)
    denied = request(extra={"ImpersonatedIdentity": "spiffe://corp.example/ns/a/sa/b"})
    codes = {
        wire.send(denied, bearer(token()), on=own).code for _ in range(STREAMS + 20)
    }
    assert codes == {"PERMISSION_DENIED"}
    assert wire.send(request(), bearer(token()), on=own).code == "OK"
    own.close()


@pytest.mark.usefixtures("leaves_nothing")
def test_streams_that_are_reset_as_fast_as_can_be_stop_nobody(
    bridge: Bridge, wire: Wire
) -> None:
    codes: list[str] = []
    with Resets(bridge) as resets:
        assert eventually(lambda: resets.sent > 1000)
        until = time.monotonic() + STORM_SECONDS
        while time.monotonic() < until or len(codes) <= STORM_SECONDS:
            codes.append(wire.ask().code)
    assert {*codes} == {"OK"}


@pytest.mark.usefixtures("leaves_nothing")
def test_resets_buy_few_more_calls_than_a_connection_has_streams(
    bridge: Bridge, wire: Wire
) -> None:
    def counted() -> float:
        return bridge.metric("meshca_requests_total", front="istio")

    before, send = counted(), attacks.ATTACKS["resets"].send
    with http2.Connection(bridge) as peer:
        frames = peer.frames(GIVEN_UP_SECONDS)
        next(frames)
        peer.socket.sendall(http2.frame(http2.SETTINGS, http2.ACK))
        with contextlib.suppress(OSError):
            storm = (send(2 * number + 1, number) for number in range(RESETS))
            peer.socket.sendall(b"".join(storm))
        refused = sum(
            one.kind == http2.RST_STREAM and one.payload == REFUSED_STREAM
            for one in frames  # until the connection is closed, for junk
        )
    served_at_once(wire)
    calls = counted() - before
    # How many are refused goes by when the connection is closed.
    assert calls < min(refused, RESETS / 2)


@pytest.mark.usefixtures("leaves_nothing")
def test_calls_that_are_cancelled_at_once_stop_nobody(
    bridge: Bridge, wire: Wire
) -> None:
    own = channel(bridge)
    call = own.unary_unary(METHOD)
    message, headers = request(), bearer(token())
    until = time.monotonic() + STORM_SECONDS / 2
    while time.monotonic() < until:
        call.future(message, metadata=headers).cancel()
    served_at_once(wire)
    own.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer \xff\xfe"),
        (b"authorization", "Bearer ключ".encode()),
        (b"authorization", b"Bearer a\x00b"),
        (b"authorization-bin", b"!!"),
        (b"clusterid", b"\xc3\x28"),
        (b"grpc-timeout", b"99999999999999999H"),
        (b"grpc-timeout", b"-1S"),
        (b"grpc-timeout", b"0n"),
        (b"grpc-encoding", b"gzip"),
        (b"grpc-encoding", b"no-such"),
        (b"content-length", b"-500009"),  # not in any path of the log
        (b"Authorization", b"Bearer x"),
        (b"authorization\r\nx", b"Bearer x"),
    ],
)
def test_headers_that_no_client_would_send_get_an_end(
    bridge: Bridge, wire: Wire, name: bytes, value: bytes
) -> None:
    with http2.Connection(bridge) as peer:
        stream = peer.begin((name, value))
        peer.message(stream, request())
        began = time.monotonic()
        ends = (http2.HEADERS, http2.RST_STREAM, http2.GOAWAY)
        assert any(one.kind in ends for one in peer.frames(GIVEN_UP_SECONDS))
        assert time.monotonic() - began < GIVEN_UP_SECONDS
    served_at_once(wire)
    assert str(value)[2:-1] not in bridge.log()
