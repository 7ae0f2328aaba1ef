"""A client of Linkerd's front, as a proxy would be one: for trying and debugging.

Key and CSR have the shape that linkerd's proxy-identity gives them, and the answer is
looked at as linkerd2-proxy looks at it before it takes a certificate for its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from bridge._proto.linkerd_identity_pb2 import CertifyRequest, CertifyResponse
from bridge._proto.linkerd_identity_pb2_grpc import IdentityStub
from bridge.dns_names import is_host
from bridge.errors import BackendRefusedError, BridgeError, MisissuedError
from bridge.system.clock import Clock, system_clock
from bridge.x509.der import SEQUENCE, content, elements, splice, tlv
from bridge.x509.path import ValidatedChain, validate_chain, verify_leaf_signature

_SET = 0x31
_PRINTABLE_STRING = 0x13
_COMMON_NAME = bytes.fromhex("0603550403")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkerdRequest:
    """What to ask for, and how to prove who asks."""

    address: str
    anchors: Sequence[x509.Certificate]
    """As the proxy has them in its environment."""
    identity: str
    token: bytes = field(repr=False)
    timeout_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class LinkerdReply:
    """What came back, once a proxy would take it, and the key that it is for."""

    leaf: x509.Certificate
    chain: ValidatedChain
    valid_until: datetime
    key_pem: bytes = field(repr=False)

    def certificates(self) -> list[x509.Certificate]:
        """Return the whole path, leaf first, trust anchor last."""
        return [self.leaf, *(certificate for _, certificate in self.chain.tiers())]


def certify(wanted: LinkerdRequest, clock: Clock = system_clock) -> LinkerdReply:
    """Make a key, ask for a certificate, and look at it as the proxy does.

    Raises:
        BackendRefusedError: The bridge answered no, or did not answer: the message has
            its status and words.
        MisissuedError: A proxy would not take the answer.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    request = CertifyRequest(
        identity=wanted.identity,
        token=wanted.token,
        certificate_signing_request=proxy_csr(key, wanted.identity),
    )
    # In the clear, as the proxy speaks with an identity service on its own pod.
    with grpc.insecure_channel(wanted.address) as channel:
        try:
            stub: Any = IdentityStub(channel)  # type: ignore[no-untyped-call] # generated
            reply = stub.Certify(request, timeout=wanted.timeout_seconds)
        except grpc.RpcError as error:
            raise BackendRefusedError(
                f"{wanted.address}: {error.code().name}: {error.details()}"
            ) from error
    return _accepted(reply, key, wanted, clock())


def proxy_csr(key: ec.EllipticCurvePrivateKey, identity: str) -> bytes:
    """Write a CSR as proxy-identity does: common name and one DNS name; DER.

    `cryptography` makes no common name of more than 64 characters, which most
    identities are, so the subject is put in by hand.

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
    # In the order of linkerd2-proxy, whose Store::set_certificate this is.
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
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return LinkerdReply(leaf, chain, valid_until, pem)


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
    """Tell whether `text` can be an identity that a proxy is told to have."""
    return is_host(text) and ".identity." in text
