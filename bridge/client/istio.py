"""A client of the Istio front that asks as a workload would, for debugging."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge._proto.istio_ca_pb2_grpc import IstioCertificateServiceStub
from bridge.errors import BackendRefusedError, MisissuedError
from bridge.spiffe import SpiffeID
from bridge.x509.pem import key_pem

_SHORTEST_CHAIN = 2
_PASSING = ("renewal.settling", "renewal.lookup")
"""The rules by which a renewal is refused for a moment."""
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class IstioRequest:
    """A request: the certificate to ask for, and the credential of the caller."""

    address: str
    roots: bytes = field(repr=False)
    """Trust anchors for the bridge's own certificate, PEM."""
    roots_name: str = ""
    """The name of the trust anchors in messages, such as their file."""
    token: str | None = field(default=None, repr=False)
    certificate: bytes | None = None
    """A client certificate chain instead of a token, PEM."""
    certificate_key: bytes | None = field(default=None, repr=False)
    cluster: str = ""
    key: str = "p256"
    """`p256`, `p384` or `rsa2048`."""
    ttl_seconds: int = 0
    cert_signer: str = ""
    server_name: str | None = None
    timeout_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class IstioReply:
    """The reply to a request, with the private key of the certificate."""

    cert_chain: tuple[str, ...]
    """Leaf, each intermediate, then the trust anchors in the last element; PEM."""
    key_pem: bytes = field(repr=False)


Ask = Callable[[IstioRequest], IstioReply]
"""Asks once, as `ask` does."""


def ask(wanted: IstioRequest) -> IstioReply:
    """Make a key and ask for a certificate.

    Raises:
        BackendRefusedError: The bridge refused the request or did not answer. The
            message has its status and text.
        MisissuedError: The certificate is not for the key, or not in Istio's form.
    """
    key = _new_key(wanted.key)
    message = IstioCertificateRequest(
        csr=_csr(key), validity_duration=wanted.ttl_seconds
    )
    message.metadata.update({"CertSigner": wanted.cert_signer})
    headers = [("clusterid", wanted.cluster)]
    if wanted.token is not None:
        headers.append(("authorization", f"Bearer {wanted.token}"))
    with _channel(wanted) as channel:
        try:
            stub: Any = IstioCertificateServiceStub(channel)  # type: ignore[no-untyped-call] # generated
            reply = stub.CreateCertificate(
                message, metadata=headers, timeout=wanted.timeout_seconds
            )
        except grpc.RpcError as error:
            raise BackendRefusedError(
                f"{wanted.address}: {error.code().name}: "
                f"{_advice(str(error.details()), wanted)}{error.details()}"
            ) from error
    chain = tuple(reply.cert_chain)
    _require_form(chain, key)
    return IstioReply(chain, key_pem(key))


def renew(wanted: IstioRequest, ask: Ask = ask, seconds: float = 20.0) -> IstioReply:
    """Ask with a client certificate, and again while the ledger has it not yet.

    The archive of the ledger has a new certificate after a moment, and on a busy
    machine it may not answer in time. Istio's agent renews after hours, and would ask
    again.

    Args:
        wanted: What to ask for, by a client certificate.
        ask: Asks once.
        seconds: How long to ask again.

    Raises:
        BackendRefusedError: See `ask`.
    """
    return Retrying(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_delay(seconds),
        wait=wait_fixed(_PAUSE_SECONDS),
        reraise=True,
    )(ask, wanted)


def _is_passing(error: BaseException) -> bool:
    return any(rule in str(error) for rule in _PASSING)


def _advice(details: str, wanted: IstioRequest) -> str:
    # The texts of gRPC and of the TLS library do not say what to do.
    text = details.lower()
    name = wanted.server_name or wanted.address.rpartition(":")[0]
    roots = f"--roots {wanted.roots_name}".rstrip()
    found = {
        "hostname verification": f"the certificate is not for {name}; give "
        "--server-name",
        "peer name": f"the certificate is not for {name}; give --server-name",
        "wrong_version_number": "this port does not speak TLS: it may be Linkerd's or "
        "admin.listen; Istio's is fronts.istio.listen",
        "security handshaker": f"{roots} cannot be used",
        "socket closed": "this port may want a client certificate (--certificate)",
        "certificate_verify_failed": f"the bridge's certificate does not chain to "
        f"{roots}",
        "connection refused": "nothing listens there: see fronts.istio.listen, and "
        "/readyz of the bridge",
        "method not found": "this is no CA of Istio: it may be admin.grpc_listen; "
        "Istio's port is fronts.istio.listen",
    }
    if wanted.certificate is not None:
        found |= {
            "security handshaker": "--key-file is not the key of --certificate, or one "
            "of them or of --roots is damaged",
            "socket closed": "the connection was closed: --certificate may be expired, "
            "or of another mesh",
        }
    return next((f"{one}: " for part, one in found.items() if part in text), "")


_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def _new_key(kind: str) -> _Key:
    if kind == "rsa2048":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP384R1() if kind == "p384" else ec.SECP256R1())


def _csr(key: _Key) -> str:
    # As the CSR of istio-agent. The bridge ignores the names in a CSR.
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode("ascii")


def _channel(wanted: IstioRequest) -> Any:
    credentials = grpc.ssl_channel_credentials(
        wanted.roots, wanted.certificate_key, wanted.certificate
    )
    options = []
    if wanted.server_name is not None:
        options.append(("grpc.ssl_target_name_override", wanted.server_name))
    return grpc.secure_channel(wanted.address, credentials, options=options)


def _require_form(chain: tuple[str, ...], key: _Key) -> None:
    if len(chain) < _SHORTEST_CHAIN:
        raise MisissuedError("the answer has fewer than two elements")
    leaf = x509.load_pem_x509_certificate(chain[0].encode("ascii"))
    if leaf.public_key() != key.public_key():
        raise MisissuedError("the certificate is for another key")
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for name in san.get_values_for_type(x509.UniformResourceIdentifier):
        SpiffeID.parse(name)
