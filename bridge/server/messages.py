"""Reads and writes messages: one reader for every API, and Istio's two messages.

grpc itself would answer a message that it cannot parse with INTERNAL, after which
Istio's client tries again four times. Here such a message is a `RequestError`.
"""

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from bridge.errors import RequestError

LONGEST_REQUEST_BYTES = 64 * 1024
"""grpc refuses a longer message. A token has at most 16 KiB, a CSR 22 KiB as PEM."""

_Kind = TypeVar("_Kind", bound=Message)


def parse_message(kind: type[_Kind], message: bytes, called: str) -> _Kind:
    """Parse a message.

    Args:
        kind: The class of the message.
        message: The bytes, as received.
        called: The name of `kind` with its article, for the error.

    Raises:
        RequestError: The message is not of this kind.
    """
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
        RequestError: The message is of another kind, or its metadata has a value of the
            wrong type.
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


def write_response(
    leaf_pem: str, chain_pem: tuple[str, ...], anchors_pem: str
) -> bytes:
    """Write an `IstioCertificateResponse`: leaf, each intermediate, trust anchors.

    Args:
        leaf_pem: One certificate.
        chain_pem: One certificate per element, issuing CA first; may be empty.
        anchors_pem: All trust anchors. Clients read them from the last element.

    Raises:
        ValueError: An element is empty, or lacks its last newline. Some clients join
            the elements without a separator.
    """
    elements = [leaf_pem, *chain_pem, anchors_pem]
    if not all(text.endswith("\n") for text in elements):
        raise ValueError("an element of cert_chain ends in a newline")
    return IstioCertificateResponse(cert_chain=elements).SerializeToString()
