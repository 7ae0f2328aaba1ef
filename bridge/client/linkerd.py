"""A client of Linkerd's front that asks as a proxy would, for debugging.

The key and the CSR have the form of Linkerd's proxy-identity. The answer is checked as
linkerd2-proxy checks it before it uses a certificate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from bridge._proto.linkerd_identity_pb2 import CertifyRequest, CertifyResponse
from bridge._proto.linkerd_identity_pb2_grpc import IdentityStub
from bridge.dns_names import is_host
from bridge.errors import BackendRefusedError, BridgeError, MisissuedError
from bridge.system.clock import Clock, system_clock
from bridge.x509.der import SEQUENCE, content, elements, splice, tlv
from bridge.x509.path import ValidatedChain, validate_chain, verify_leaf_signature
from bridge.x509.pem import key_pem

_SET = 0x31
_PRINTABLE_STRING = 0x13
_COMMON_NAME = bytes.fromhex("0603550403")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkerdRequest:
    """A request: the certificate to ask for, and the credential of the caller."""

    address: str
    anchors: Sequence[x509.Certificate]
    """The trust anchors of the proxy."""
    identity: str
    token: bytes = field(repr=False)
    timeout_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class LinkerdReply:
    """The reply to a request that a proxy would accept, with the private key."""

    leaf: x509.Certificate
    chain: ValidatedChain
    valid_until: datetime
    key_pem: bytes = field(repr=False)

    def certificates(self) -> list[x509.Certificate]:
        """Return the whole path, leaf first, trust anchor last."""
        return [self.leaf, *(certificate for _, certificate in self.chain.tiers())]


def certify(wanted: LinkerdRequest, clock: Clock = system_clock) -> LinkerdReply:
    """Make a key, ask for a certificate, and check it as the proxy does.

    Raises:
        BackendRefusedError: The bridge refused the request or did not answer. The
            message has its status and text.
        MisissuedError: A proxy would reject the answer.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    request = CertifyRequest(
        identity=wanted.identity,
        token=wanted.token,
        certificate_signing_request=proxy_csr(key, wanted.identity),
    )
    # Without TLS, as the proxy reaches an identity service on its own pod.
    with grpc.insecure_channel(wanted.address) as channel:
        try:
            stub: Any = IdentityStub(channel)  # type: ignore[no-untyped-call] # generated
            reply = stub.Certify(request, timeout=wanted.timeout_seconds)
        except grpc.RpcError as error:
            raise BackendRefusedError(
                f"{wanted.address}: {error.code().name}: "
                f"{_advice(str(error.details()))}{error.details()}"
            ) from error
    return _accepted(reply, key, wanted, clock())


_ADVICE = {
    "socket closed": "this port may want TLS, as Istio's does; Linkerd's is "
    "fronts.linkerd.listen",
    "failed parsing http/2": "this port does not speak HTTP/2: it may be admin.listen; "
    "Linkerd's is fronts.linkerd.listen",
    "connection refused": "nothing listens there: see fronts.linkerd.listen, and "
    "/readyz of the bridge",
    "method not found": "this is no CA of Linkerd: it may be admin.grpc_listen; "
    "Linkerd's port is fronts.linkerd.listen",
}


def _advice(details: str) -> str:
    # The texts of gRPC do not say what to do.
    text = details.lower()
    return next((f"{one}: " for part, one in _ADVICE.items() if part in text), "")


def proxy_csr(key: ec.EllipticCurvePrivateKey, identity: str) -> bytes:
    """Write a CSR as proxy-identity does: common name and one DNS name; DER.

    Most identities are longer than 64 characters, the longest common name that
    `cryptography` accepts, so the subject is encoded here.

    Source:
        linkerd/linkerd2, proxy-identity/main.go.
    """
    san = x509.SubjectAlternativeName([x509.DNSName(identity)])
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    plain = builder.add_extension(san, critical=False).sign(key, hashes.SHA256())
    info, algorithm, _ = elements(content(plain.public_bytes(Encoding.DER)))
    version, _, *rest = elements(content(info))
    name = _COMMON_NAME + tlv(_PRINTABLE_STRING, identity.encode("ascii"))
    subject = tlv(SEQUENCE, tlv(_SET, tlv(SEQUENCE, name)))
    info = tlv(SEQUENCE, b"".join((version, subject, *rest)))
    return splice(info, algorithm, key.sign(info, ec.ECDSA(hashes.SHA256())))


def _accepted(
    reply: CertifyResponse,
    key: ec.EllipticCurvePrivateKey,
    wanted: LinkerdRequest,
    now: datetime,
) -> LinkerdReply:
    # The checks of linkerd2-proxy's Store::set_certificate, in its order.
    if not reply.HasField("valid_until"):
        raise MisissuedError("the answer does not say how long it is valid")
    valid_until = reply.valid_until.ToDatetime(UTC)
    if valid_until <= now:
        raise MisissuedError("the answer is not valid any more")
    try:
        leaf, issuing, *between = map(
            x509.load_der_x509_certificate,
            (reply.leaf_certificate, *reply.intermediate_certificates),
        )
        chain = validate_chain(
            issuing, between, wanted.anchors, now=now, source="the answer"
        )
        _require_leaf(leaf, chain, now)
        names = _san(leaf)
    except (ValueError, x509.ExtensionNotFound, BridgeError) as error:
        raise MisissuedError(f"a proxy would refuse the answer: {error}") from error
    if wanted.identity not in names:
        raise MisissuedError("the certificate is for another identity")
    if leaf.public_key() != key.public_key():
        raise MisissuedError("the certificate is for another key")
    return LinkerdReply(leaf, chain, valid_until, key_pem(key))


def _require_leaf(leaf: x509.Certificate, chain: ValidatedChain, now: datetime) -> None:
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    checks: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: verify_leaf_signature(leaf, chain.issuing), "its signature is wrong"),
        (lambda: leaf.not_valid_before_utc <= now, "it is not valid yet"),
        (lambda: now <= leaf.not_valid_after_utc, "it has expired"),
        (lambda: both <= {*usages}, "it is not for servers and clients"),
    )
    for holds, text in checks:
        if not holds():
            raise ValueError(text)
    chain.constraints.require_permitted([*san])


def _san(leaf: x509.Certificate) -> list[str]:
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.DNSName)


def is_identity(text: str) -> bool:
    """Tell whether `text` can be the identity of a proxy."""
    return is_host(text) and ".identity." in text
