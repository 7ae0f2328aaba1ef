"""Bad credentials over the wire: status, message, and row of each."""

import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.clients.istio_raw import (
    DEVELOPMENT,
    MAIN,
    MAIN_ECDSA,
    Metadata,
    Wire,
    bearer,
    token,
)
from tests.support.parts.tokens import ISSUER, OMIT, TokenIssuer, base64url

pytestmark = pytest.mark.xdist_group("bad-input-tokens")

STRANGER = TokenIssuer(algorithm="RS256")
HOUR = timedelta(hours=1)
NO_CLUSTER = ("clusterid", "")
ACCOUNT = "system:serviceaccount:shop:"


def now() -> datetime:
    return datetime.now(UTC)


def sent(value: str) -> Metadata:
    return (("authorization", value), ("clusterid", ""))


def claim(**claims: object) -> Metadata:
    return bearer(token(claims=claims))


def header(**headers: object) -> Metadata:
    return bearer(token(headers=headers))


def foreign_token() -> str:
    return DEVELOPMENT.token("sandbox", now=now())


def unsigned() -> Metadata:
    header, payload, _ = token(headers={"alg": "none"}).split(".")
    return bearer(f"{header}.{payload}.")


def with_public_key_as_secret() -> Metadata:
    pem = MAIN.key.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    text = ".".join(token(headers={"alg": "HS256"}).split(".")[:2])
    mark = hmac.digest(pem, text.encode(), hashlib.sha256)
    return bearer(f"{text}.{base64url(mark)}")


def wrongly_signed() -> Metadata:
    """A stranger's signature under the key ID of the real key."""
    impostor = TokenIssuer(key=STRANGER.key, kid=MAIN.kid)
    return bearer(impostor.token(now=now()))


def with_own_key(**more: object) -> Metadata:
    return bearer(STRANGER.token(now=now(), headers=more))


# The rule that says no, and some words of its message.
Rule = tuple[str, str]
ABSENT = ("token.missing", "there is no token")
SCHEME = ("token.scheme", 'must start with "Bearer "')
PARTS = ("token.format", "three parts")
ENCODING = ("token.format", "base64url")
JSON = ("token.json", "JSON objects")
SIGNATURE = ("token.signature", "signature is wrong")
ALGORITHM = ("token.algorithm", "signed with one of")
KEY_ALGORITHM = ("token.algorithm", "not that of the key")
HEADERS = ("token.header", "must not have the headers")
KEY = ("token.key", "key")
KEY_ID = ("token.key", "key ID is text")
AUDIENCE = ("token.audience", "another audience")
NO_AUDIENCE = ("token.audience", "names its audiences")
ISSUER_OF_OTHERS = ("token.issuer", "another issuer")
EXPIRED = ("token.expired", "has expired")
NO_EXPIRY = ("token.expiry", "says when it expires")
TIME = ("token.time", "not seconds since 1970")
EARLY = ("token.not-yet-valid", "not valid yet")
SUBJECT = ("token.subject", "no service account")
CLAIMS = ("token.claims", "do not agree")
TWICE = ("token.repeated", "more than once")
TWO_CLUSTERS = ("cluster.header", "more than once")
UNKNOWN = ("cluster.unknown", "no cluster of this clusterid")

Make = Callable[[], Metadata]

# One row for each rule: every way to break one is in the tests of `bridge.identity`.
BAD: list[tuple[str, Make, Rule]] = [
    ("no header at all", lambda: (), ABSENT),
    ("bearer", lambda: sent(f"bearer {token()}"), SCHEME),
    ("two spaces", lambda: bearer(f" {token()}"), ENCODING),
    ("two authorization headers", lambda: (*bearer(token()), *sent("x")[:1]), TWICE),
    ("the same twice", lambda: (*bearer("x"), *bearer("x")[:1]), TWICE),
    ("two clusterid headers", lambda: (*bearer(token()), NO_CLUSTER), TWO_CLUSTERS),
    ("unknown cluster", lambda: bearer(token(), "nowhere"), UNKNOWN),
    ("token of another cluster", lambda: bearer(foreign_token()), KEY),
    ("clusterid of another", lambda: bearer(token(), "development"), KEY),
    ("an empty token", lambda: bearer(""), PARTS),
    ("no JSON", lambda: bearer("AAAA.AAAA.AAAA"), JSON),
    ("a stranger's signature", wrongly_signed, SIGNATURE),
    ("alg none", unsigned, ALGORITHM),
    ("HS256 with the public key", with_public_key_as_secret, ALGORITHM),
    ("ES256 on an RSA key", lambda: header(alg="ES256"), KEY_ALGORITHM),
    ("jwk", lambda: with_own_key(jwk=STRANGER.jwk()), HEADERS),
    ("unknown kid", with_own_key, KEY),
    ("kid that is a number", lambda: header(kid=1), KEY_ID),
    ("wrong audience", lambda: claim(aud=["api"]), AUDIENCE),
    ("audience in a list", lambda: claim(aud=[["istio-ca"]]), NO_AUDIENCE),
    ("issuer with a slash more", lambda: claim(iss=f"{ISSUER}/"), ISSUER_OF_OTHERS),
    ("expired", lambda: bearer(token(now=now() - 2 * HOUR)), EXPIRED),
    ("no expiry", lambda: claim(exp=OMIT), NO_EXPIRY),
    ("expiry that is true", lambda: claim(exp=True), TIME),
    ("not yet valid", lambda: bearer(token(now=now() + HOUR)), EARLY),
    ("a user", lambda: claim(sub="alice"), SUBJECT),
    ("a percent", lambda: claim(sub=f"{ACCOUNT}web%2fadmin"), SUBJECT),
    ("NUL", lambda: claim(sub=f"{ACCOUNT}web\0"), SUBJECT),
    ("claims of another account", lambda: claim(sub=f"{ACCOUNT}api"), CLAIMS),
    (
        "a pod without a name",
        lambda: bearer(token(pod=("", "1"))),
        ("token.claims", "without a name"),
    ),
]


@pytest.mark.parametrize(
    ("make", "because"), [pytest.param(*row[1:], id=row[0]) for row in BAD]
)
def test_a_bad_credential_is_refused_and_on_record(
    wire: Wire, make: Make, because: Rule
) -> None:
    rule, text = because
    answer = wire.ask(make())
    assert answer.code == "UNAUTHENTICATED"
    assert answer.text.startswith(f"{rule}: ")
    assert text in answer.text
    row = wire.new_outcome()
    assert (row["kind"], row["status"]) == ("refused", "UNAUTHENTICATED")
    assert row["rule"] == rule
    # Nobody is named who has not proved the name.
    assert (row["caller"], row["cluster"], row["attempt"]) == ("", "", "")


@pytest.mark.parametrize("cluster", ["", "Kubernetes", "main"])
@pytest.mark.parametrize("issuer", [MAIN, MAIN_ECDSA], ids=["RS256", "ES256"])
def test_a_good_credential_is_let_in(
    wire: Wire, issuer: TokenIssuer, cluster: str
) -> None:
    answer = wire.ask(bearer(issuer.token("shop", "api", now=now()), cluster))
    assert answer.uris == ["spiffe://corp.example/ns/shop/sa/api"]
    row = wire.new_outcome()
    assert (row["kind"], row["cluster"]) == ("issued", "Kubernetes")
    assert row["caller"] == answer.uris[0]
    assert int(row["serial"], 16) == answer.leaf.serial_number


def test_a_token_is_no_secret_of_the_ledger(wire: Wire) -> None:
    shown = token()
    assert wire.ask((("authorization", f"bearer {shown}"),)).code == "UNAUTHENTICATED"
    wire.new_outcome()
    assert wire.ask(bearer(shown + "x")).code == "UNAUTHENTICATED"
    wire.new_outcome()
    parts = shown.split(".")[1:]
    journal = (wire.bridge.folder / "journal").rglob("*.jsonl")
    written = "".join(path.read_text() for path in journal) + wire.bridge.log()
    assert not any(part in written for part in parts)
