"""The raw client of the tests of bad input: any bytes over TLS, any headers.

`Wire` sends, and holds every answer against what the ledger recorded and against what
an answer must never say.
"""

import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import grpc
from cryptography import x509
from google.protobuf.struct_pb2 import Struct

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from bridge.ledger.verify import read_journal
from bridge.server.istio import METHOD
from tests.support.harness.core import csr as new_csr
from tests.support.harness.real_process import SERVER_NAME, Bridge
from tests.support.parts.tokens import TokenIssuer

Metadata = Sequence[tuple[str, str]]
OUTCOMES = frozenset({"issued", "refused", "failed", "unknown"})
DEVELOPMENT = TokenIssuer("https://development.example", "ES256")
FOREIGN = TokenIssuer("https://foreign.example", "ES256")
MAIN = TokenIssuer(algorithm="RS256")
MAIN_ECDSA = TokenIssuer(algorithm="ES256")
MOST_WAIT_SECONDS = 20.0

_INTERNALS = re.compile(
    r"Traceback|Exception|Error\b|\bNone\b|\.py\b|/(?:tmp|home|usr|work|var)/|0x[0-9a-f]"
)
# What the configuration holds and a peer has not been told.
_CONFIGURED = (
    "Kubernetes",
    "development",
    "foreign",
    "other.example",
    "corp.example",
    "sandbox",
    "istio-ca",
    "file-1",
    "gold",
    MAIN.issuer,
    MAIN.kid,
    DEVELOPMENT.issuer,
    DEVELOPMENT.kid,
)
_OPTIONS = [
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 8 * 1024 * 1024),
    ("grpc.absolute_max_metadata_size", 8 * 1024 * 1024),
    ("grpc.enable_retries", 0),
]


def _cluster(name: str, issuer: TokenIssuer, **more: object) -> dict[str, object]:
    issuer_and_file = {"file": f"{name}.json", "issuer": issuer.issuer}
    return {"name": name, "tokens": {"verify": "jwks", **issuer_and_file}, **more}


OVERRIDES: dict[str, Any] = {
    "clusters": [
        _cluster("Kubernetes", MAIN, aliases=["main"], namespaces=["*"])
        | {"tokens": {"verify": "jwks", "file": "jwks.json", "issuer": MAIN.issuer}},
        _cluster("development", DEVELOPMENT, namespaces=["sandbox"]),
        # Its names are outside what the hierarchy may issue.
        _cluster("foreign", FOREIGN, namespaces=["*"], trust_domain="other.example"),
    ],
    "issuance": {"cert_signers": {"gold": ["file-1"]}},
    # Every refusal gets its row, also those of callers that nobody knows.
    "ledger": {"refusals_per_second": 100_000, "excess_per_second": 100_000},
}


def write_keys(bridge: Bridge) -> None:
    """Write the keys of the clusters of `OVERRIDES`, before the bridge starts."""
    DEVELOPMENT.write_jwks(bridge.folder / "development.json")
    FOREIGN.write_jwks(bridge.folder / "foreign.json")


@dataclass(frozen=True)
class Answer:
    """What came back: a status with its text, or a chain."""

    code: str
    text: str
    chain: tuple[str, ...] = ()

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain[0].encode())

    @property
    def uris(self) -> list[str]:
        extensions = self.leaf.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.UniformResourceIdentifier)


class Record:
    """A channel to one front, and what the ledger says of its calls.

    A context manager.

    Args:
        bridge: Whose ledger.
        front: `istio` or `linkerd`.
        channel: Closed at the end.
    """

    def __init__(self, bridge: Bridge, front: str, channel: Any) -> None:
        self.bridge = bridge
        self.channel = channel
        self.front = front
        self._seen = len(self.outcomes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def outcomes(self) -> list[dict[str, Any]]:
        """Return the rows that end a peer's call, in order."""
        return [
            dict(row.values)
            for _, row in read_journal(self.bridge.folder / "journal")
            if row.kind in OUTCOMES and row.values["front"] == self.front
        ]

    def new_outcome(self) -> dict[str, Any]:
        """Return the one outcome since the last call of this; waits for it."""
        deadline = time.monotonic() + MOST_WAIT_SECONDS
        while len(rows := self.outcomes()) <= self._seen:
            if time.monotonic() > deadline:
                raise LookupError("the ledger has no outcome of this call")
            time.sleep(0.005)
        new, self._seen = rows[self._seen :], len(rows)
        if len(new) != 1:
            raise LookupError(f"expected one outcome, found {new}")
        return new[0]

    def await_outcome_of(self, account: str) -> list[dict[str, Any]]:
        """Wait for the outcome of this account's call, and skip all until then.

        Args:
            account: A service account whose calls nobody has seen yet.

        Returns:
            The outcomes before its own, since the last that was skipped.

        Raises:
            LookupError: There is none in time.
        """
        deadline = time.monotonic() + MOST_WAIT_SECONDS
        while time.monotonic() < deadline:
            rows = self.outcomes()
            callers = [row["caller"].rpartition("/")[2] for row in rows]
            if account in callers:
                new, self._seen = rows[self._seen : callers.index(account)], len(rows)
                return new
            time.sleep(0.005)
        raise LookupError("the ledger has no outcome of a good call")

    def forget(self) -> int:
        """Skip the outcomes until now; return how many there were."""
        skipped = len(rows := self.outcomes()) - self._seen
        self._seen = len(rows)
        return skipped


class Wire(Record):
    """A client of one bridge. A context manager."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge, "istio", channel(bridge))

    def send(
        self,
        message: bytes,
        metadata: Metadata = (),
        *,
        method: str = METHOD,
        on: Any = None,
    ) -> Answer:
        """Send `message` and return what comes back, once it says nothing it must not.

        Args:
            message: Any bytes.
            metadata: The headers.
            method: The path of the call.
            on: Another channel.
        """
        call = (on or self.channel).unary_unary(method)
        answer = _answer(lambda: call(message, MOST_WAIT_SECONDS, metadata))
        sent = message.decode("latin-1") + repr(metadata)
        require_discreet(answer.text, sent, self.bridge)
        return answer

    def ask(
        self,
        metadata: Metadata | None = None,
        *,
        csr: str | None = None,
        ttl_seconds: int = 3600,
        extra: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Send a good request but for what is given."""
        return self.send(
            request(csr, ttl_seconds=ttl_seconds, extra=extra),
            bearer(token()) if metadata is None else metadata,
        )

    def require_no_outcome(self) -> None:
        """Raise AssertionError if there is one: a good call's comes after all others.

        It may still be on its way to the disk, so a good call is made and awaited.
        """
        if others := self.require_healthy():
            raise AssertionError(f"expected no outcome, found {others}")

    def require_healthy(self) -> list[dict[str, Any]]:
        """Have a good call answered and recorded; return the outcomes before its own.

        Raises:
            AssertionError: It is not answered with a certificate.
            LookupError: It is, and the ledger does not say so.
        """
        account = f"healthy-{uuid.uuid4()}"
        answer = self.ask(bearer(token(account=account)))
        if answer.code != "OK":
            raise AssertionError(f"a good call got {answer}")
        return self.await_outcome_of(account)


def channel(bridge: Bridge) -> Any:
    """Open a channel of its own to the token port."""
    credentials = grpc.ssl_channel_credentials(bridge.roots.read_bytes())
    return grpc.secure_channel(bridge.address, credentials, _OPTIONS)


def mtls_channel(bridge: Bridge, chain: bytes | None, key: bytes | None) -> Any:
    """Open a channel to the port of client certificates."""
    credentials = grpc.ssl_channel_credentials(bridge.roots.read_bytes(), key, chain)
    return grpc.secure_channel(bridge.mtls_address, credentials, _OPTIONS)


def token(namespace: str = "shop", account: str = "web", **changed: Any) -> str:
    """Sign a good token of the first cluster, but for what is changed."""
    return MAIN.token(namespace, account, **{"now": datetime.now(UTC)} | changed)


def padded_token(size: int, sign: Callable[..., str]) -> str:
    """Sign a good token of `size` bytes, by a function that takes more claims."""
    missing = (size - len(sign(x=""))) * 3 // 4
    made = (sign(x="y" * count) for count in range(missing - 3, missing + 4))
    return next(one for one in made if len(one) == size)


def bearer(value: str, cluster: str = "") -> Metadata:
    """Make the headers that an agent sends."""
    return (("authorization", f"Bearer {value}"), ("clusterid", cluster))


def request(
    csr: str | None = None,
    *,
    ttl_seconds: int = 3600,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Encode a request; `extra` goes into its metadata."""
    made = IstioCertificateRequest(
        csr=new_csr() if csr is None else csr, validity_duration=ttl_seconds
    )
    if extra is not None:
        values = Struct()
        values.update(dict(extra))
        made.metadata.CopyFrom(values)
    return made.SerializeToString()


def require_discreet(text: str, sent: str, bridge: Bridge) -> None:
    """Refuse a message that tells a peer what is none of its business."""
    if found := _INTERNALS.search(text):
        raise AssertionError(f"the message shows internals ({found[0]!r}): {text}")
    for value in (*_CONFIGURED, str(bridge.folder)):
        if value in text and value not in sent:
            raise AssertionError(f"the message shows {value!r}, never sent: {text}")


def _answer(call: Any) -> Answer:
    try:
        reply = call()
    except grpc.RpcError as error:
        raised: Any = error
        return Answer(raised.code().name, raised.details() or "")
    return Answer(
        "OK", "", tuple(IstioCertificateResponse.FromString(reply).cert_chain)
    )
