"""Reads and writes messages: one reader for every API, and Istio's two messages.

grpc itself would answer a message that it cannot parse with INTERNAL, after which
Istio's client tries again four times. Here such a message is a `RequestError`.
"""

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge.errors import RequestError

LONGEST_REQUEST_BYTES = 64 * 1024
"""A longer message is not parsed. A CSR of an RSA key of 4096 bits has 2 KiB."""

_CERT_CHAIN_TAG = b"\x0a"  # field 1, length-delimited
_Kind = TypeVar("_Kind", bound=Message)


def shortened(message: bytes) -> bytes:
    """Return `message`, or as much of it as shows that it is too long."""
    return message[: LONGEST_REQUEST_BYTES + 1]


def parse_message(kind: type[_Kind], message: bytes, called: str) -> _Kind:
    """Parse a message that is not too long.

    Args:
        kind: The class of the message.
        message: The bytes, as received.
        called: The name of `kind` with its article, for the error.

    Raises:
        RequestError: The message is too long, or is not of this kind.
    """
    if len(message) > LONGEST_REQUEST_BYTES:
        raise RequestError(
            f"a request has at most {LONGEST_REQUEST_BYTES} bytes", rule="request.size"
        )
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise RequestError(
            f"the message is not {called}",
            rule="request.protobuf",
            detail=str(error)[:300],
        ) from error


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """The values of an `IstioCertificateRequest`."""

    csr: str
    ttl_seconds: int
    cert_signer: str
    impersonated: str | None
    """None if the metadata has no such key."""


def read_request(message: bytes) -> CertificateRequest:
    """Read an `IstioCertificateRequest`.

    Raises:
        RequestError: The message is too long, is of another kind, or its metadata has a
            value of the wrong type.
    """
    request = parse_message(
        IstioCertificateRequest, message, "an IstioCertificateRequest"
    )
    cert_signer, impersonated = "", None
    if request.HasField("metadata"):
        cert_signer = _text(request.metadata, "CertSigner") or ""
        impersonated = _text(request.metadata, "ImpersonatedIdentity")
    return CertificateRequest(
        request.csr, request.validity_duration, cert_signer, impersonated
    )


def _text(metadata: Struct, key: str) -> str | None:
    if key not in metadata.fields:
        return None
    value = metadata.fields[key]
    kind = value.WhichOneof("kind")
    if kind != "string_value":
        raise RequestError(
            f"metadata.{key} is a string",
            rule="request.metadata",
            detail=f"found {kind}",
        )
    return value.string_value


class ResponseWriter:
    """Writes `IstioCertificateResponse` messages.

    Only the leaf differs from call to call. The bytes of chain and anchors are kept,
    and are used again for as long as the same objects come.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[str, ...] | None, str, bytes] = (None, "", b"")

    def write(
        self, leaf_pem: str, chain_pem: tuple[str, ...], anchors_pem: str
    ) -> bytes:
        """Encode leaf, each intermediate, and the trust anchors, in this order.

        Args:
            leaf_pem: One certificate.
            chain_pem: One certificate per element, issuing CA first; may be empty.
            anchors_pem: All trust anchors. Clients read them from the last element.

        Raises:
            ValueError: An element is empty, or lacks its last newline. Some clients
                join the elements without a separator.
        """
        kept_chain, kept_anchors, tail = self._kept
        if chain_pem is not kept_chain or anchors_pem is not kept_anchors:
            tail = b"".join(_element(text) for text in (*chain_pem, anchors_pem))
            self._kept = (chain_pem, anchors_pem, tail)
        return _element(leaf_pem) + tail


def _element(text: str) -> bytes:
    if not text.endswith("\n"):
        raise ValueError("an element of cert_chain ends in a newline")
    data = text.encode("ascii")
    return _CERT_CHAIN_TAG + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    # Source: Protocol Buffers, encoding: seven bits a byte, lowest first.
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
