"""Messages between bytes and values: any that comes, and Istio's two.

The transport answers a message that it cannot parse with INTERNAL, which Istio's client
sends again four times. Here it is a `RequestError` like any other refusal.
"""

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge.errors import RequestError

LONGEST_REQUEST_BYTES = 64 * 1024
"""A CSR of an RSA key of 4096 bits has 2 KiB; what is larger is not parsed at all."""

_CERT_CHAIN_TAG = b"\x0a"  # field 1, length-delimited
_Kind = TypeVar("_Kind", bound=Message)


def shortened(message: bytes) -> bytes:
    """Return `message`, or what is enough of it to be refused: many wait at a time."""
    return message[: LONGEST_REQUEST_BYTES + 1]


def parse_message(kind: type[_Kind], message: bytes, called: str) -> _Kind:
    """Parse a message, if it is short enough to be parsed at all.

    Args:
        kind: What it is to be.
        message: As it came.
        called: `kind` in a sentence, with its article.

    Raises:
        RequestError: It is too long, or is no such message.
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
    """What an `IstioCertificateRequest` says."""

    csr: str
    ttl_seconds: int
    cert_signer: str
    impersonated: str | None
    """None where the metadata has no such key."""


def read_request(message: bytes) -> CertificateRequest:
    """Read an `IstioCertificateRequest`.

    Raises:
        RequestError: It is too long, is no such message, or has a value of the wrong
            type in the metadata.
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

    All but the leaf is the same from call to call, so its bytes are kept: as long as
    the very same chain and anchors come, only the leaf is encoded.
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
            anchors_pem: All trust anchors; clients take the last element for them.

        Raises:
            ValueError: There is no leaf or no anchor, or one lacks its last newline:
                some clients join the elements without a separator.
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
