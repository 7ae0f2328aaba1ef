"""HTTP/2 that is legal and means harm, or is not legal: one connection each.

Others are served meanwhile, and the memory of the worker stays what it was.
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clients import attacks, http2
from tests.support.clients.istio_raw import Wire, bearer, channel, request, token
from tests.support.clients.linkerd_raw import Certify
from tests.support.clients.linkerd_raw import request as certify_request
from tests.support.harness.real_process import Bridge
from tests.support.harness.unharmed import nothing_left, unharmed, with_both_fronts
from tests.support.harness.workers import await_true

pytestmark = pytest.mark.xdist_group("bad-input-frames")

PRIORITY, CONTINUATION = 2, 9
MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE = 3, 6
MANY = 3000
LARGEST_WINDOW = 2**31 - 1
MOST_GROWTH_KB = 4 * 1024
"""Measured: 1.4 MB at the first call, else 0.7 MB at most."""
GIVEN_UP_SECONDS = 30.0

END = http2.frame(http2.DATA, http2.END_STREAM, 1)
BEGIN = http2.PREFACE + http2.frame(http2.SETTINGS)
FRONTS = pytest.mark.parametrize("front", http2.METHODS)

Junk = Iterator[bytes]


def first(path: str) -> bytes:
    return http2.begun(1, path=path)


def most_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


def begin_anew(pid: int) -> int:
    # Source: proc(5), clear_refs. What follows is the most since now.
    Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")
    return most_kb(pid)


def settings(_path: str) -> Junk:
    setting = struct.pack(">HI", 4, 65_535)
    yield http2.frame(http2.SETTINGS, payload=setting) * MANY


def pings(_path: str) -> Junk:
    yield http2.frame(http2.PING, payload=bytes(8)) * MANY


def acknowledgements(_path: str) -> Junk:
    yield http2.frame(http2.SETTINGS, http2.ACK) * MANY
    yield http2.frame(http2.PING, http2.ACK, payload=bytes(8)) * MANY


def windows_of_a_byte(path: str) -> Junk:
    yield first(path)
    yield http2.frame(http2.WINDOW_UPDATE, 0, 1, struct.pack(">I", 1)) * MANY


def windows_too_large(path: str) -> Junk:
    yield first(path)
    for stream in (1, 0):
        window = struct.pack(">I", LARGEST_WINDOW)
        yield http2.frame(http2.WINDOW_UPDATE, 0, stream, window) * 2


def windows_of_nothing(path: str) -> Junk:
    yield first(path) + http2.frame(http2.WINDOW_UPDATE, 0, 1, bytes(4))


def empty_data(path: str) -> Junk:
    yield first(path) + http2.frame(http2.DATA, 0, 1) * MANY


def padding(path: str) -> Junk:
    # A byte says how many of padding follow; nothing else does.
    padded = http2.frame(http2.DATA, 0x8, 1, b"\xff" + bytes(255))
    yield first(path) + padded * 200


def empty_continuations(path: str) -> Junk:
    block = first(path)[9:]
    yield http2.frame(http2.HEADERS, 0, 1, block)
    yield http2.frame(CONTINUATION, 0, 1) * MANY


def priorities(_path: str) -> Junk:
    for stream in range(1, 2 * MANY, 2):
        weight = struct.pack(">IB", stream + 2, 255)
        yield http2.frame(PRIORITY, 0, stream, weight)


def resets_of_nothing(_path: str) -> Junk:
    yield b"".join(http2.reset(stream) for stream in range(1, 2 * MANY, 2))


def tiny_headers(path: str) -> Junk:
    fields = [(f"x{number}".encode(), b"") for number in range(MANY)]
    yield http2.begun(1, fields, path=path)


def one_huge_header(path: str) -> Junk:
    # Says that a mebibyte will come, and it does, in frames of 16 KiB.
    name = b"\x00" + http2.text(b"x") + http2.text(bytes(2**20))[:4]
    yield http2.frame(http2.HEADERS, 0, 1, first(path)[9:] + name)
    for _ in range(64):
        yield http2.frame(CONTINUATION, 0, 1, b"v" * 16_384)


def repeated_header(path: str) -> Junk:
    # All at once: of each the core keeps a thousand headers, some 250 KB, until it is
    # refused. With headers of a mebibyte, one call takes more than all of these.
    send = attacks.references(path, 31_000)
    yield b"".join(send(2 * number + 1, number) for number in range(4))


def block_without_an_end(path: str) -> Junk:
    send = attacks.endless(path, 16_000)
    yield b"".join(send(1, number) for number in range(128))


def huffman_without_an_end(path: str) -> Junk:
    # Thirty ones or more are the code for the end, which must not come.
    value = b"\xff" * 64
    block = first(path)[9:] + b"\x00" + http2.text(b"x") + bytes((0x80 | 64,)) + value
    yield http2.frame(http2.HEADERS, http2.END_HEADERS, 1, block)


def references_to_nothing(path: str) -> Junk:
    block = first(path)[9:] + b"\xff\x80\x80\x80\x80\x0f"
    yield http2.frame(http2.HEADERS, http2.END_HEADERS, 1, block)


def table_sizes(path: str) -> Junk:
    # 0, then 4,096, again and again: what the table holds is dropped each time.
    block = b"\x20\x3f\xe1\x1f" * MANY + first(path)[9:]
    yield http2.frame(http2.HEADERS, http2.END_HEADERS, 1, block)


def frame_too_long(_path: str) -> Junk:
    yield struct.pack(">I", 2**24 - 1)[1:] + bytes((http2.DATA, 0, 0, 0, 0, 1))
    yield bytes(100_000)


def unknown_frames(_path: str) -> Junk:
    yield http2.frame(0xFE, 0xFF, 1, bytes(100)) * MANY


def stream_of_the_servers(path: str) -> Junk:
    yield http2.begun(2, path=path)


def pushes(path: str) -> Junk:
    yield first(path) + http2.frame(5, http2.END_HEADERS, 1, struct.pack(">I", 2))


def headers_after_the_end(path: str) -> Junk:
    begun = first(path)
    end = begun[:4] + bytes((begun[4] | http2.END_STREAM,)) + begun[5:]
    yield end + begun * MANY


def streams_backwards(path: str) -> Junk:
    yield http2.begun(2 * MANY + 1, path=path) + http2.begun(1, path=path)


def data_without_a_stream(_path: str) -> Junk:
    yield http2.frame(http2.DATA, 0, 99, b"x" * 100) * 1000


def a_message_of_four_gibibytes(path: str) -> Junk:
    start = b"\0\xff\xff\xff\xff" + bytes(9000)
    yield first(path) + http2.frame(http2.DATA, 0, 1, start)


def pings_of_another_length(_path: str) -> Junk:
    yield http2.frame(http2.PING, payload=bytes(9))


CASES = (
    *(settings, pings, acknowledgements, windows_of_a_byte, windows_too_large),
    *(windows_of_nothing, empty_data, padding, empty_continuations, priorities),
    *(resets_of_nothing, tiny_headers, one_huge_header, repeated_header),
    *(block_without_an_end, huffman_without_an_end, references_to_nothing),
    *(table_sizes, frame_too_long, unknown_frames, stream_of_the_servers, pushes),
    *(headers_after_the_end, streams_backwards, data_without_a_stream),
    *(a_message_of_four_gibibytes, pings_of_another_length),
)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    made = with_both_fronts(tmp_path_factory.mktemp("bridge") / "served")
    with unharmed(made, Certify, Wire) as served:
        yield served


@pytest.fixture(scope="module")
def certify(bridge: Bridge) -> Iterator[Certify]:
    with Certify(bridge) as opened:
        yield opened


@pytest.fixture
def others_are_served(wire: Wire, certify: Certify) -> Iterator[None]:
    yield
    assert wire.ask().code == certify.ask().code == "OK"


def good_call(front: str, *, piece: int = 0) -> bytes:
    """Write a call that is granted, with its message in frames of `piece` bytes."""
    shown = (b"authorization", f"Bearer {token()}".encode())
    fields, sent = ([shown], request()) if front == "istio" else ((), certify_request())
    message = http2.framed(sent)
    pieces = range(0, len(message), piece or len(message))
    return http2.begun(1, fields, http2.METHODS[front]) + b"".join(
        http2.frame(http2.DATA, 0, 1, message[at : at + (piece or len(message))])
        for at in pieces
    )


@FRONTS
@pytest.mark.parametrize("junk", CASES, ids=lambda case: case.__name__)
def test_frames_that_mean_harm_stop_nobody(
    bridge: Bridge,
    wire: Wire,
    certify: Certify,
    junk: Callable[[str], Junk],
    front: str,
) -> None:
    before = begin_anew(bridge.worker)
    with (
        contextlib.suppress(OSError),
        http2.Connection(bridge, front=front) as peer,
    ):
        peer.socket.settimeout(1.0)  # a server may stop reading, or hang up
        next(peer.frames(5.0))
        peer.socket.sendall(http2.frame(http2.SETTINGS, http2.ACK))
        for data in junk(http2.METHODS[front]):
            peer.socket.sendall(data)
    assert wire.ask().code == certify.ask().code == "OK"
    assert most_kb(bridge.worker) - before < MOST_GROWTH_KB


def test_a_connection_is_told_how_much_it_may_have(bridge: Bridge) -> None:
    with http2.Connection(bridge) as peer:
        told = next(peer.frames(5.0))
    assert told.kind == http2.SETTINGS
    found = dict(struct.iter_unpack(">HI", told.payload))
    assert found[MAX_CONCURRENT_STREAMS] == 100
    assert found[MAX_HEADER_LIST_SIZE] == 32 * 1024


@FRONTS
def test_a_call_that_comes_byte_by_byte_is_answered(bridge: Bridge, front: str) -> None:
    with http2.opened(bridge, front) as peer:
        for at in range(len(BEGIN)):
            peer.sendall(BEGIN[at : at + 1])
        call = good_call(front, piece=1)
        for at in range(0, len(call), 7):
            peer.sendall(call[at : at + 7])
        peer.sendall(END)
        frames = (one for one in http2.frames(peer, 5.0) if one.stream == 1)
        assert [next(frames).kind, next(frames).kind] == [http2.HEADERS, http2.DATA]


def test_connections_that_come_to_no_call_are_ended(bridge: Bridge, wire: Wire) -> None:
    with (
        http2.connect(bridge) as silent,
        http2.connect(bridge) as slow,
        http2.handshake(bridge) as encrypted,
        http2.connect(bridge, "linkerd") as clear,
        http2.connect(bridge, "linkerd") as slow_preface,
    ):
        slow.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01")
        slow_preface.sendall(http2.PREFACE[:-1])
        own = channel(bridge)
        assert wire.send(request(), bearer(token()), on=own).code == "OK"
        own.close()
        for peer in (silent, slow, encrypted, clear, slow_preface):
            assert is_ended(peer)


@pytest.mark.usefixtures("others_are_served")
@pytest.mark.parametrize("connect", [http2.connect, http2.opened])
@FRONTS
def test_a_connection_that_is_half_closed_before_a_call_is_ended(
    bridge: Bridge, connect: Callable[[Bridge, str], socket.socket], front: str
) -> None:
    with connect(bridge, front) as peer:
        peer.shutdown(socket.SHUT_WR)
        assert is_ended(peer)


def is_ended(peer: socket.socket) -> bool:
    peer.settimeout(GIVEN_UP_SECONDS)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while peer.recv(65_536):
            pass
    return True


def close_notify(peer: socket.socket) -> None:
    assert isinstance(peer, ssl.SSLSocket)
    peer.setblocking(False)
    with contextlib.suppress(ssl.SSLError):  # it does not wait for the other side's
        peer.unwrap()


def fin(peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)


@pytest.mark.usefixtures("others_are_served")
@pytest.mark.parametrize("part", ["no message", "half a message", "all"])
@pytest.mark.parametrize(
    ("front", "end"), [("istio", close_notify), ("istio", fin), ("linkerd", fin)]
)
def test_a_half_closed_connection_is_answered_or_ended_and_leaves_nothing(
    bridge: Bridge, front: str, end: Callable[[socket.socket], None], part: str
) -> None:
    begun, call = http2.begun(1, path=http2.METHODS[front]), good_call(front)
    sent = {"no message": begun, "half a message": call[:-1], "all": call + END}
    with nothing_left(bridge), http2.opened(bridge, front) as peer:
        peer.sendall(BEGIN + http2.frame(http2.SETTINGS, http2.ACK))
        frames = http2.frames(peer, GIVEN_UP_SECONDS)
        next(one for one in frames if one.flags == http2.ACK)
        peer.sendall(sent[part])
        end(peer)
        # The first of the stream: an answer, or that the call was given up.
        first = (one for one in http2.frames(peer, GIVEN_UP_SECONDS) if one.stream == 1)
        assert next(first, None) or is_ended(peer)
        # While the peer has the socket, no place is held.
        await_true(lambda: bridge.metric("meshca_in_flight") == 0)
