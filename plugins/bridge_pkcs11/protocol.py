"""What the serving process and its signer process say to each other. Quick to import.

Each channel is a pair of sockets that keep messages apart (SOCK_SEQPACKET), and serves
one call at a time. The signer process first says on each channel that it is ready, or
why it is not. Then each request gets one answer.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Self

from bridge.spi import (
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendUnavailableError,
)

LARGEST_MESSAGE = 64 * 1024
"""In bytes. A TBSCertificate has a tenth of it at most."""
NOT_OPENED = 75
"""The exit status of a signer process that could not open the token in time."""
_REQUEST = struct.Struct("<Bd")
_ANSWER = struct.Struct("<B?")
_ERRORS: tuple[type[BackendError], ...] = (
    BackendUnavailableError,
    BackendBrokenError,
    BackendCredentialError,
    BackendAuthError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerOrder:
    """The first line on the standard input of a signer process."""

    name: str
    """The issuing CA's name, for the log."""
    module: str
    token_label: str
    token_serial: str | None
    key_label: str | None
    key_id: str | None
    """In hex."""
    pin_file: str | None
    allow_group_read: bool
    spki: str
    """The public key in the issuing CA's certificate, in DER, in hex."""
    sessions: int
    """How many sessions for signing this process opens at most."""
    processes: int
    """How many signer processes of this issuing CA the host may have at a time."""
    keep_alive_seconds: float
    """How long a session may be idle; 0: for ever."""
    start_seconds: float
    """How long it may take to open the token."""
    latch: str | None
    channels: tuple[int, ...]
    """File descriptors."""
    environment: Mapping[str, str] = field(default_factory=dict)
    log_level: str = "INFO"

    @classmethod
    def read(cls, line: bytes) -> Self:
        """Read one line."""
        return cls(**json.loads(line))

    def line(self) -> bytes:
        """Return the line."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Operation(IntEnum):
    """What a request asks for."""

    SIGN = 1
    """The answer is the signature, as it stands in a certificate."""
    CHECK = 2
    """The answer is empty."""


def request(operation: Operation, deadline: float, data: bytes) -> bytes:
    """Encode a request.

    Args:
        operation: What is asked for.
        deadline: A value of `time.monotonic()`, which all processes of a host share.
        data: What is to be signed.
    """
    return _REQUEST.pack(operation, deadline) + data


def read_request(message: bytes) -> tuple[Operation, float, bytes]:
    """Return the operation, the deadline and the data of a request."""
    operation, deadline = _REQUEST.unpack_from(message)
    return Operation(operation), deadline, message[_REQUEST.size :]


def success(data: bytes = b"") -> bytes:
    """Encode an answer that is no error; a first message may hold a warning."""
    return _ANSWER.pack(0, False) + data  # noqa: FBT003 - a field of the message


def failure(error: BackendError, *, is_last: bool) -> bytes:
    """Encode an error.

    Args:
        error: Nothing was signed.
        is_last: The process can do no more, and another is to be started.
    """
    kind = next(
        (at for at, known in enumerate(_ERRORS, 1) if isinstance(error, known)), 1
    )
    told = {"text": str(error), "rule": error.rule, "detail": error.detail}
    return _ANSWER.pack(kind, is_last) + json.dumps(told).encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the signer process answered."""

    data: bytes
    error: BackendError | None = None
    is_last: bool = False


def read_answer(message: bytes) -> Answer:
    """Decode an answer.

    Raises:
        ValueError: It is none.
    """
    if len(message) < _ANSWER.size:
        raise ValueError("the answer is cut off")
    kind, is_last = _ANSWER.unpack_from(message)
    data = message[_ANSWER.size :]
    if not kind:
        return Answer(data)
    told = json.loads(data)
    error = _ERRORS[kind - 1](told["text"], rule=told["rule"], detail=told["detail"])
    return Answer(b"", error, is_last)
