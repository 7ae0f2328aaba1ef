"""A client of Istio's front that asks the same thing again and again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge._proto.istio_ca_pb2_grpc import IstioCertificateServiceStub
from tests.support.harness.real_process import SERVER_NAME, Bridge
from tests.support.parts.pki import new_key


@dataclass(frozen=True, slots=True)
class Reply:
    """How one call went."""

    code: str
    leaf_pem: str
    """Empty where `code` is not `OK`."""
    asked: float
    came: float
    """When, by `time.monotonic()`."""


@contextmanager
def asking(
    bridge: Bridge, message: IstioCertificateRequest, patience_seconds: float
) -> Iterator[Callable[[], Reply]]:
    """Connect once, with a token of now; give what asks on this connection.

    Args:
        bridge: Need not be up.
        message: Sent each time.
        patience_seconds: The longest that an answer is waited for.
    """
    headers = [("authorization", f"Bearer {bridge.token()}")]
    with _channel_to(bridge) as channel:
        stub: Any = IstioCertificateServiceStub(channel)  # type: ignore[no-untyped-call] # generated

        def ask() -> Reply:
            asked, code, leaf_pem = time.monotonic(), "OK", ""
            try:
                reply = stub.CreateCertificate(
                    message, metadata=headers, timeout=patience_seconds
                )
                leaf_pem = reply.cert_chain[0]
            except grpc.RpcError as error:
                code = error.code().name
            return Reply(code, leaf_pem, asked, time.monotonic())

        yield ask


def new_csr() -> str:
    """Write a CSR without names, of a new key; PEM."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    signed = builder.sign(new_key(), hashes.SHA256())
    return signed.public_bytes(Encoding.PEM).decode("ascii")


def _channel_to(bridge: Bridge) -> Any:
    credentials = grpc.ssl_channel_credentials(bridge.roots.read_bytes())
    options = [
        ("grpc.ssl_target_name_override", SERVER_NAME),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]
    return grpc.secure_channel(bridge.address, credentials, options)
