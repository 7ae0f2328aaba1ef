"""HTTP/2 by hand: what no client library would send.

Frames go out as they are told; of the answers only the kinds of the frames are read.

Source:
    RFC 9113, sections 3.4, 4.1 and 6; RFC 7541, section 6.2.2 (literals only).
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from bridge.server import istio, linkerd
from tests.support.harness.real_process import SERVER_NAME, Bridge

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
CANCEL = 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_INITIAL_WINDOW_SIZE = 4
_HEAD_BYTES = 9

Fields = Sequence[tuple[bytes, bytes]]
METHODS = {"istio": istio.METHOD, "linkerd": linkerd.METHOD}
"""The path of a call, by front."""


@dataclass(frozen=True)
class Frame:
    """A frame that came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Connection:
    """A connection to a front's port, after the TLS handshake. A context manager.

    Args:
        bridge: Whom to connect to.
        window: Bytes that the peer may send on a stream before it has to wait.
        front: `istio` for the token port, or `linkerd`, whose port is in the clear.
    """

    def __init__(
        self, bridge: Bridge, *, window: int = 65_535, front: str = "istio"
    ) -> None:
        self.socket = opened(bridge, front)
        self._path = METHODS[front]
        setting = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        self.socket.sendall(PREFACE + frame(SETTINGS, payload=setting))
        self._stream = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def begin(self, *fields: tuple[bytes, bytes]) -> int:
        """Begin a call and return its stream."""
        self._stream += 2
        self.socket.sendall(begun(self._stream, fields, self._path))
        return self._stream

    def message(self, stream: int, message: bytes) -> None:
        """Send the call's one message."""
        self.socket.sendall(frame(DATA, END_STREAM, stream, framed(message)))

    def reset(self, stream: int) -> None:
        """Take the call back."""
        self.socket.sendall(reset(stream))

    def frames(self, seconds: float) -> Iterator[Frame]:
        """Yield what comes, until nothing does for so long or the peer hangs up."""
        return frames(self.socket, seconds)


def frames(connection: socket.socket, seconds: float) -> Iterator[Frame]:
    """Yield what comes, until nothing does for so long or the peer hangs up."""
    connection.settimeout(seconds)
    held = b""
    with contextlib.suppress(TimeoutError, ssl.SSLError, ConnectionError):
        while chunk := connection.recv(65_536):
            held += chunk
            while (size := _frame_bytes(held)) <= len(held):
                yield _read(held[:size])
                held = held[size:]


def handshake(bridge: Bridge) -> ssl.SSLSocket:
    """Connect, and do the TLS handshake as a gRPC client does."""
    context = ssl.create_default_context(cafile=str(bridge.roots))
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(connect(bridge), server_hostname=SERVER_NAME)


def opened(bridge: Bridge, front: str) -> socket.socket:
    """Connect, and do what comes before HTTP/2."""
    return handshake(bridge) if front == "istio" else connect(bridge, front)


def connect(bridge: Bridge, front: str = "istio") -> socket.socket:
    """Connect, and say nothing."""
    address = bridge.address if front == "istio" else bridge.linkerd_address
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=30)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Write one frame."""
    head = struct.pack(">I", len(payload))[1:] + struct.pack(
        ">BBI", kind, flags, stream
    )
    return head + payload


def begun(stream: int, fields: Fields = (), path: str = istio.METHOD) -> bytes:
    """Write the frame that begins a call, with `fields` after what every call has."""
    always = (
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", path.encode()),
        (b":authority", SERVER_NAME.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
    block = b"".join(
        b"\x00" + text(name) + text(value) for name, value in (*always, *fields)
    )
    return frame(HEADERS, END_HEADERS, stream, block)


def reset(stream: int) -> bytes:
    """Write the frame that takes a call back."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def framed(message: bytes) -> bytes:
    """Put gRPC's five bytes before a message."""
    return b"\0" + struct.pack(">I", len(message)) + message


def text(value: bytes) -> bytes:
    """Write a text of HPACK, not compressed (RFC 7541, 5.2)."""
    # 5.1: seven bits of length, then more in groups of seven.
    size = len(value)
    if size < 0x7F:
        return bytes((size,)) + value
    out, size = bytearray((0x7F,)), size - 0x7F
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + value


def _frame_bytes(data: bytes) -> int:
    if len(data) < _HEAD_BYTES:
        return _HEAD_BYTES
    return _HEAD_BYTES + int.from_bytes(data[:3])


def _read(data: bytes) -> Frame:
    kind, flags, stream = struct.unpack(">BBI", data[3:_HEAD_BYTES])
    return Frame(kind, flags, stream, data[_HEAD_BYTES:])
