"""The raw client of Linkerd's front: any bytes over clear HTTP/2.

`Certify` sends, and holds every answer against what the ledger recorded.
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bridge._proto.linkerd_identity_pb2 import CertifyRequest, CertifyResponse
from bridge.server.linkerd import METHOD
from tests.support.clients.istio_raw import (
    MAIN,
    MOST_WAIT_SECONDS,
    Metadata,
    Record,
    require_discreet,
)
from tests.support.harness.real_process import Bridge
from tests.support.parts.tokens import TokenIssuer
from tests.vectors.generate_linkerd import FOLDER, IDENTITY

AUDIENCE = "identity.l5d.io"
SUFFIX = IDENTITY.partition(".shop")[2]
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
]


@dataclass(frozen=True)
class Answer:
    """What came back: a status with its text, or certificates."""

    code: str
    text: str
    reply: CertifyResponse | None = None

    @property
    def leaf(self) -> x509.Certificate:
        assert self.reply is not None, self.text
        return x509.load_der_x509_certificate(self.reply.leaf_certificate)

    @property
    def chain(self) -> list[x509.Certificate]:
        assert self.reply is not None, self.text
        found = self.reply.intermediate_certificates
        return [x509.load_der_x509_certificate(der) for der in found]

    @property
    def valid_until(self) -> datetime:
        assert self.reply is not None, self.text
        return self.reply.valid_until.ToDatetime(UTC)

    @property
    def names(self) -> list[x509.GeneralName]:
        extensions = self.leaf.extensions
        san = extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return [*san.value]


class Certify(Record):
    """A client of one bridge. A context manager."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge, "linkerd", channel(bridge))

    def send(
        self,
        message: bytes,
        headers: Metadata = (),
        *,
        method: str = METHOD,
        discreet: bool = True,
    ) -> Answer:
        """Send any bytes and return what comes back."""
        call = self.channel.unary_unary(method)
        try:
            reply = call(message, MOST_WAIT_SECONDS, headers, wait_for_ready=True)
        except grpc.RpcError as error:
            raised: Any = error
            answer = Answer(raised.code().name, raised.details() or "")
        else:
            answer = Answer("OK", "", CertifyResponse.FromString(reply))
        if discreet:
            require_discreet(answer.text, message.decode("latin-1"), self.bridge)
        return answer

    def ask(
        self,
        *,
        identity: str = IDENTITY,
        credential: str | bytes | None = None,
        csr: bytes | None = None,
        discreet: bool = True,
    ) -> Answer:
        """Send a good request but for what is given."""
        message = request(identity=identity, credential=credential, csr=csr)
        return self.send(message, discreet=discreet)

    def require_healthy(self) -> None:
        """Have a good call of somebody else answered and recorded.

        Raises:
            AssertionError: It is not answered with a certificate.
            LookupError: It is, and the ledger does not say so.
        """
        account = f"healthy-{uuid.uuid4()}"
        identity = f"{account}.shop{SUFFIX}"
        answer = self.ask(
            identity=identity,
            credential=token(account=account),
            csr=new_csr(identity),
        )
        if answer.names != [x509.DNSName(identity)]:
            raise AssertionError(f"a good call got {answer}")
        self.await_outcome_of(account)


def channel(bridge: Bridge) -> Any:
    """Open a channel of its own, in the clear."""
    return grpc.insecure_channel(bridge.linkerd_address, _OPTIONS)


def request(
    *,
    identity: str = IDENTITY,
    credential: str | bytes | None = None,
    csr: bytes | None = None,
) -> bytes:
    """Encode a good request but for what is given."""
    shown = token() if credential is None else credential
    return CertifyRequest(
        identity=identity,
        token=shown.encode() if isinstance(shown, str) else shown,
        certificate_signing_request=vector() if csr is None else csr,
    ).SerializeToString()


def token(
    namespace: str = "shop",
    account: str = "web",
    *,
    issuer: TokenIssuer = MAIN,
    **changed: Any,
) -> str:
    """Sign a good token, but for what is changed."""
    values: dict[str, Any] = {"now": datetime.now(UTC), "audiences": [AUDIENCE]}
    return issuer.token(namespace, account, **values | changed)


def vector(name: str = "good-proxy-identity") -> bytes:
    """Read a CSR of the corpus; by default the one that a proxy sends."""
    return (FOLDER / f"{name}.der").read_bytes()


def new_csr(*names: str) -> bytes:
    """Write a CSR with DNS names, no subject, and a new key; DER."""
    san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    return (
        x509.CertificateSigningRequestBuilder(x509.Name([]))
        .add_extension(san, critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
