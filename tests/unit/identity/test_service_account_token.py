"""A token is accepted, or refused with the rule that it breaks."""

import contextlib
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import AuthenticationError
from bridge.identity import service_account_token
from bridge.identity.caller import NO_POD, Pod, ServiceAccount
from bridge.identity.jwks import VerificationKey, parse_jwks
from tests.support.parts.tokens import ISSUER, OMIT, TokenIssuer, base64url

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
AT = int(NOW.timestamp())
AUDIENCES = frozenset({"istio-ca"})
ALGORITHMS = ("RS256", "ES256", "ES384", "ES512")
OLD_ISSUER = "https://old.example"
BOUND: dict[str, Any] = {
    "namespace": "shop",
    "pod": {"name": "web-0", "uid": "7d3a1c9e"},
    "serviceaccount": {"name": "web", "uid": "1"},
}


@cache
def _issuers() -> dict[str, TokenIssuer]:
    return {name: TokenIssuer(algorithm=name) for name in ALGORITHMS}


def issuer(algorithm: str = "RS256") -> TokenIssuer:
    return _issuers()[algorithm]


@cache
def keys() -> dict[str | None, VerificationKey]:
    document = {"keys": [issuer(name).jwk() for name in ALGORITHMS]}
    return {key.kid: key for key in parse_jwks(json.dumps(document).encode())}


def keys_of(kid: str | None, _: datetime) -> tuple[VerificationKey, ...]:
    if (key := keys().get(kid)) is None:
        raise AuthenticationError("no such key", rule="token.key")
    return (key,)


def verify(
    token: str, *, audiences: frozenset[str] = AUDIENCES, now: datetime = NOW
) -> ServiceAccount:
    return service_account_token.verify(
        token,
        issuers=(issuer().issuer, OLD_ISSUER),
        audiences=audiences,
        keys_of=keys_of,
        now=now,
    )


def refusal(token: str) -> AuthenticationError:
    with pytest.raises(AuthenticationError, match=r"\w") as caught:
        verify(token)
    return caught.value


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_token_names_its_service_account(algorithm: str) -> None:
    token = issuer(algorithm).token(now=NOW, pod=("web-0", "7d3a1c9e"))
    pod = Pod("shop", "web-0", "7d3a1c9e", "node-1")
    account = verify(token)
    assert (account.namespace, account.name, account.pod) == ("shop", "web", pod)
    assert (
        account.uid
        == service_account_token.unverified(token)["kubernetes.io"]["serviceaccount"][
            "uid"
        ]
    )


@pytest.mark.parametrize(
    ("claims", "pod"),
    [
        (BOUND, Pod("shop", "web-0", "7d3a1c9e")),
        (
            BOUND | {"node": {"name": "n-1", "uid": "u"}},
            Pod("shop", "web-0", "7d3a1c9e", "n-1"),
        ),
        # Bound to a node alone.
        (
            {name: BOUND[name] for name in ("namespace", "serviceaccount")}
            | {"node": {"name": "n-1", "uid": "u"}},
            Pod(node="n-1"),
        ),
    ],
)
def test_a_token_names_its_pod_and_the_node(claims: dict[str, Any], pod: Pod) -> None:
    token = issuer().token(now=NOW, claims={"kubernetes.io": claims})
    assert verify(token).pod == pod


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "istio-ca"},
        {"aud": ["other", "istio-ca"]},
        {"exp": AT + 1},
        {"exp": AT + 0.5},
        {"nbf": AT + 60, "iat": AT + 60},
        {"nbf": OMIT, "iat": OMIT, "jti": OMIT},
        {"kubernetes.io": BOUND | {"warnafter": AT}},
        {"kubernetes.io": BOUND | {"node": {"name": "node-1", "uid": "7d3a1c9e"}}},
        # As the API server writes it where the Node object is absent.
        {"kubernetes.io": BOUND | {"node": {"name": "ip-10-0-0-1.eu.internal"}}},
        {"kubernetes.io": BOUND | {"secret": {"name": "s", "uid": "1"}}},
        {"iss": OLD_ISSUER},
    ],
)
def test_what_the_rules_allow_is_allowed(claims: dict[str, object]) -> None:
    assert verify(issuer().token(now=NOW, claims=claims)).name == "web"


def test_a_token_that_is_bound_to_no_pod_names_none() -> None:
    assert verify(issuer().token(now=NOW, pod=None)).pod == NO_POD
    token = issuer().token(now=NOW, claims={"kubernetes.io": OMIT})
    assert verify(token) == ServiceAccount("shop", "web")


BAD_CLAIMS: list[tuple[str, str, object]] = [
    ("token.audience", "aud", "vault"),
    ("token.audience", "aud", ["vault", "istio-ca2"]),
    ("token.audience", "aud", "ISTIO-CA"),
    ("token.audience", "aud", []),
    ("token.audience", "aud", OMIT),
    ("token.audience", "aud", None),
    ("token.audience", "aud", 1),
    ("token.audience", "aud", ["istio-ca", 1]),
    ("token.audience", "aud", ["istio-ca", ["istio-ca"]]),
    ("token.audience", "aud", {"istio-ca": 1}),
    ("token.issuer", "iss", "https://kubernetes.default.svc.cluster.local/"),
    ("token.issuer", "iss", "https://evil.example"),
    ("token.issuer", "iss", f"{OLD_ISSUER}/"),
    ("token.issuer", "iss", f"{ISSUER} {OLD_ISSUER}"),
    ("token.issuer", "iss", ""),
    ("token.issuer", "iss", OMIT),
    ("token.issuer", "iss", None),
    ("token.issuer", "iss", ["https://kubernetes.default.svc.cluster.local"]),
    ("token.expired", "exp", AT),
    ("token.expired", "exp", AT - 1),
    ("token.expired", "exp", 0),
    ("token.expiry", "exp", OMIT),
    ("token.time", "exp", None),
    ("token.time", "exp", True),
    ("token.time", "exp", str(AT + 60)),
    ("token.time", "exp", [AT + 60]),
    ("token.time", "exp", -1),
    ("token.time", "exp", 10**400),
    ("token.time", "exp", 253_402_300_800),
    ("token.not-yet-valid", "nbf", AT + 61),
    ("token.not-yet-valid", "iat", AT + 61),
    ("token.time", "nbf", None),
    ("token.time", "nbf", False),
    ("token.time", "nbf", "0"),
    ("token.time", "nbf", -1),
    ("token.time", "iat", {}),
    ("token.subject", "sub", OMIT),
    ("token.subject", "sub", None),
    ("token.subject", "sub", ["system:serviceaccount:shop:web"]),
    ("token.subject", "sub", ""),
    ("token.subject", "sub", "system:admin"),
    ("token.subject", "sub", "system:node:node-1"),
    ("token.subject", "sub", "system:serviceaccount:shop"),
    ("token.subject", "sub", "system:serviceaccount:shop:"),
    ("token.subject", "sub", "system:serviceaccount::web"),
    ("token.subject", "sub", "system:serviceaccount:shop:web:x"),
    ("token.subject", "sub", "system:serviceaccount:shop:web\n"),
    ("token.subject", "sub", " system:serviceaccount:shop:web"),
    ("token.subject", "sub", "System:serviceaccount:shop:web"),
    ("token.subject", "sub", "system:serviceaccount:Shop:web"),
    ("token.subject", "sub", "system:serviceaccount:shop.x:web"),
    ("token.subject", "sub", "system:serviceaccount:shop:../web"),
    ("token.subject", "sub", "system:serviceaccount:shop:web..x"),
    ("token.subject", "sub", "system:serviceaccount:shop:web/x"),
    ("token.subject", "sub", "system:serviceaccount:shop:web,x"),
    ("token.subject", "sub", "system:serviceaccount:shop:wéb"),
    ("token.subject", "sub", "system:serviceaccount:-shop:web"),
    ("token.subject", "sub", f"system:serviceaccount:{'s' * 64}:web"),
    ("token.subject", "sub", f"system:serviceaccount:shop:{'w' * 254}"),
    ("token.subject", "sub", f"system:serviceaccount:s:{'w' * 300}"),
    ("token.claims", "kubernetes.io", None),
    ("token.claims", "kubernetes.io", "shop"),
    ("token.claims", "kubernetes.io", {}),
    ("token.claims", "kubernetes.io", BOUND | {"namespace": "bank"}),
    ("token.claims", "kubernetes.io", BOUND | {"namespace": None}),
    ("token.claims", "kubernetes.io", BOUND | {"serviceaccount": {"name": "db"}}),
    ("token.claims", "kubernetes.io", BOUND | {"serviceaccount": "web"}),
    ("token.claims", "kubernetes.io", BOUND | {"serviceaccount": None}),
    ("token.claims", "kubernetes.io", BOUND | {"pod": None}),
    ("token.claims", "kubernetes.io", BOUND | {"pod": "web-0"}),
    ("token.claims", "kubernetes.io", BOUND | {"pod": {"name": "web-0"}}),
    ("token.claims", "kubernetes.io", BOUND | {"pod": {"name": "a/b", "uid": "1"}}),
    ("token.claims", "kubernetes.io", BOUND | {"pod": {"name": "a", "uid": "1/2"}}),
    ("token.claims", "kubernetes.io", BOUND | {"pod": {"name": "a", "uid": "\ud800"}}),
    ("token.claims", "kubernetes.io", BOUND | {"pod": {"name": 1, "uid": "1"}}),
    ("token.claims", "kubernetes.io", BOUND | {"node": ["node-1"]}),
    ("token.claims", "kubernetes.io", BOUND | {"node": {}}),
    ("token.claims", "kubernetes.io", BOUND | {"node": {"uid": "1"}}),
    ("token.claims", "kubernetes.io", BOUND | {"node": {"name": "n", "uid": ""}}),
    ("token.claims", "kubernetes.io", BOUND | {"node": {"name": "n", "uid": None}}),
    ("token.claims", "kubernetes.io", BOUND | {"node": {"name": "a/b"}}),
    ("token.claims", "kubernetes.io", BOUND | {"node": {"name": "", "uid": "1"}}),
]


@pytest.mark.parametrize(("rule", "claim", "value"), BAD_CLAIMS)
def test_a_bad_claim_is_refused(rule: str, claim: str, value: object) -> None:
    error = refusal(issuer().token(now=NOW, claims={claim: value}))
    assert error.rule == rule


@pytest.mark.parametrize("number", ["1e999", "1" * 5000, "NaN", "Infinity"])
@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
def test_a_time_that_json_can_spell_and_no_clock_shows(claim: str, number: str) -> None:
    good = {"exp": AT + 60, "nbf": AT, "iat": AT, claim: "@"}
    payload = json.dumps(good).replace('"@"', number)
    text = payload[:-1] + f', "iss": "{issuer().issuer}", "aud": "istio-ca"}}'
    token = issuer().signed(_header(), text.encode())
    assert refusal(token).rule in {"token.time", "token.json"}


BAD_HEADERS: list[tuple[str, dict[str, object]]] = [
    ("token.algorithm", {"alg": "none"}),
    ("token.algorithm", {"alg": "None"}),
    ("token.algorithm", {"alg": "HS256"}),
    ("token.algorithm", {"alg": "PS256"}),
    ("token.algorithm", {"alg": "EdDSA"}),
    ("token.algorithm", {"alg": "ES256"}),
    ("token.algorithm", {"alg": "RS384"}),
    ("token.algorithm", {"alg": "rs256"}),
    ("token.algorithm", {"alg": OMIT}),
    ("token.algorithm", {"alg": None}),
    ("token.algorithm", {"alg": ["RS256"]}),
    ("token.header", {"jwk": {"kty": "RSA"}}),
    ("token.header", {"jku": "https://evil.example/jwks"}),
    ("token.header", {"x5u": "https://evil.example/crt"}),
    ("token.header", {"x5c": ["MII="]}),
    ("token.header", {"crit": []}),
    ("token.header", {"crit": ["b64"], "b64": False}),
    ("token.header", {"b64": False}),
    ("token.key", {"kid": "other"}),
    ("token.key", {"kid": "../../dev/null"}),
    ("token.key", {"kid": "' OR 1=1"}),
    ("token.key", {"kid": OMIT}),
    ("token.key", {"kid": ""}),
    ("token.key", {"kid": None}),
    ("token.key", {"kid": 1}),
    ("token.key", {"kid": ["a"]}),
    ("token.key", {"kid": {}}),
    ("token.size", {"x": "y" * 2048}),
]


@pytest.mark.parametrize(("rule", "headers"), BAD_HEADERS)
def test_a_bad_header_is_refused(rule: str, headers: dict[str, object]) -> None:
    assert refusal(issuer().token(now=NOW, headers=headers)).rule == rule


# The keys that a token's ID leads to, by the algorithm that signed; is one of them its?
CANDIDATES: list[tuple[tuple[str, ...], str, str]] = [
    (("RS256", "ES256", "ES384", "ES512"), "ES512", ""),
    (("other ES256", "ES256"), "ES256", ""),
    (("other ES256", "other ES256"), "ES256", "token.signature"),
    (("ES256",), "RS256", "token.algorithm"),
]


@pytest.mark.parametrize(("candidates", "signed_by", "rule"), CANDIDATES)
def test_a_token_is_tried_with_each_key_that_may_have_signed_it(
    candidates: tuple[str, ...], signed_by: str, rule: str
) -> None:
    entries = [
        TokenIssuer(algorithm="ES256").jwk(kid=f"{number}")
        if name.startswith("other")
        else issuer(name).jwk(kid=f"{number}")
        for number, name in enumerate(candidates)
    ]
    found = parse_jwks(json.dumps({"keys": entries}).encode())
    asked: list[str | None] = []

    def alike(kid: str | None, _: datetime) -> tuple[VerificationKey, ...]:
        asked.append(kid)
        return found

    def verified(kid: object) -> ServiceAccount:
        return service_account_token.verify(
            issuer(signed_by).token(now=NOW, headers={"kid": kid}),
            issuers=(issuer().issuer,),
            audiences=AUDIENCES,
            keys_of=alike,
            now=NOW,
        )

    for kid in (OMIT, "", "x"):
        if not rule:
            assert verified(kid).name == "web"
            continue
        with pytest.raises(AuthenticationError, match="the token's") as caught:
            verified(kid)
        assert caught.value.rule == rule
    assert asked == [None, None, "x"]


def test_a_type_and_unknown_headers_say_nothing() -> None:
    token = issuer().token(now=NOW, headers={"typ": "at+jwt", "cty": "x", "x5t": "x"})
    assert verify(token).name == "web"


def _header(**fields: object) -> bytes:
    return json.dumps({"alg": "RS256", "kid": issuer().kid} | fields).encode()


def _good() -> tuple[str, str, str]:
    header, payload, signature = issuer().token(now=NOW).split(".")
    return header, payload, signature


def _public_key_as_secret(encoding: Encoding) -> str:
    public_key = issuer().key.public_key()
    secret = public_key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    text = f"{base64url(_header(alg='HS256'))}.{_good()[1]}"
    mark = hmac.digest(secret, text.encode(), hashlib.sha256)
    return f"{text}.{base64url(mark)}"


BAD_FORMS: list[tuple[str, str, Callable[[], str]]] = [
    ("empty", "token.format", lambda: ""),
    ("two parts", "token.format", lambda: ".".join(_good()[:2])),
    ("four parts", "token.format", lambda: ".".join((*_good(), "QQ"))),
    ("JSON form", "token.format", lambda: '{"payload":"e30"}'),
    ("beyond ASCII", "token.format", lambda: ".".join(_good()) + "é"),
    (
        "payload beyond ASCII",
        "token.format",
        lambda: ".".join((_good()[0], "é" + _good()[1], _good()[2])),
    ),
    ("space around", "token.format", lambda: " " + ".".join(_good())),
    ("newline at the end", "token.format", lambda: ".".join(_good()) + "\n"),
    ("padding", "token.format", lambda: ".".join(_good()) + "=="),
    (
        "plain base64",
        "token.format",
        lambda: ".".join((*_good()[:2], "+" + _good()[2][1:])),
    ),
    (
        "too large",
        "token.size",
        lambda: issuer().token(now=NOW, x="y" * service_account_token.LONGEST_TOKEN),
    ),
    ("no header", "token.json", lambda: ".".join(("", *_good()[1:]))),
    ("no signature", "token.signature", lambda: ".".join((*_good()[:2], ""))),
    (
        "none without signature",
        "token.algorithm",
        lambda: f"{base64url(_header(alg='none'))}.{_good()[1]}.",
    ),
    ("HS256, PEM", "token.algorithm", lambda: _public_key_as_secret(Encoding.PEM)),
    ("HS256, DER", "token.algorithm", lambda: _public_key_as_secret(Encoding.DER)),
    (
        "signed by another key",
        "token.signature",
        lambda: TokenIssuer(kid=issuer().kid).token(now=NOW),
    ),
    (
        "payload of another",
        "token.signature",
        lambda: ".".join(
            (_good()[0], issuer().token("bank", now=NOW).split(".")[1], _good()[2])
        ),
    ),
    (
        "short signature",
        "token.signature",
        lambda: ".".join((*_good()[:2], _good()[2][:-2])),
    ),
    (
        "ECDSA in DER",
        "token.signature",
        lambda: _elliptic(lambda mark: b"\x30\x44\x02\x20" + mark[:32] + mark[32:]),
    ),
    ("ECDSA of zeros", "token.signature", lambda: _elliptic(lambda _: bytes(64))),
    (
        "ECDSA, s with a zero before it",
        "token.signature",
        lambda: _elliptic(lambda mark: mark[:32] + b"\0" + mark[32:]),
    ),
    ("ECDSA, one too many", "token.signature", lambda: _elliptic(lambda m: m + b"\0")),
    (
        "repeated header",
        "token.json",
        lambda: issuer().signed(b'{"alg":"none","alg":"RS256"}', b"{}"),
    ),
    (
        "repeated claim",
        "token.json",
        lambda: issuer().signed(_header(), b'{"sub":"a","sub":"b"}'),
    ),
    ("payload is a list", "token.json", lambda: issuer().signed(_header(), b"[]")),
    ("payload is no JSON", "token.json", lambda: issuer().signed(_header(), b"x")),
    ("payload is empty", "token.issuer", lambda: issuer().signed(_header(), b"{}")),
    ("header is a list", "token.json", lambda: issuer().signed(b"[]", b"{}")),
    (
        "header is UTF-16",
        "token.json",
        lambda: issuer().signed("{}".encode("u16"), b""),
    ),
    ("header is deep", "token.json", lambda: issuer().signed(b"[" * 1500, b"{}")),
]


def _elliptic(change: Callable[[bytes], bytes]) -> str:
    one = issuer("ES256")
    text = one.token(now=NOW).rpartition(".")[0]
    return f"{text}.{base64url(change(one.signature(text.encode())))}"


@pytest.mark.parametrize(
    ("rule", "make"), [row[1:] for row in BAD_FORMS], ids=[row[0] for row in BAD_FORMS]
)
def test_a_bad_form_is_refused(rule: str, make: Callable[[], str]) -> None:
    assert refusal(make()).rule == rule


def test_a_refused_issuer_is_named_beside_what_is_expected() -> None:
    error = refusal(issuer().token(now=NOW, claims={"iss": "https://x"}))
    wanted = f"expected '{issuer().issuer}' or '{OLD_ISSUER}'"
    assert error.detail == f"iss 'https://x', {wanted}"


def test_without_configured_audiences_every_token_is_refused() -> None:
    token = issuer().token(now=NOW)
    with pytest.raises(AuthenticationError, match="another audience"):
        verify(token, audiences=frozenset())


def test_the_same_token_expires() -> None:
    token = issuer().token(now=NOW, lifetime=600)
    assert verify(token, now=NOW + timedelta(seconds=599)).name == "web"
    with pytest.raises(AuthenticationError, match="expired"):
        verify(token, now=NOW + timedelta(seconds=600))


@pytest.mark.parametrize(("claim", "value"), [row[1:] for row in BAD_CLAIMS])
def test_a_refusal_shows_no_part_of_the_token(claim: str, value: object) -> None:
    token = issuer().token(now=NOW, jti="SECRET-JTI", claims={claim: value})
    error = refusal(token)
    said = f"{error} {error.detail}"
    assert not any(part in said for part in token.split("."))
    assert "SECRET" not in said
    assert "web" not in said
    assert error.__cause__ is None


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_token_is_refused_or_says_the_same(data: st.DataObject) -> None:
    algorithm = data.draw(st.sampled_from(ALGORITHMS))
    token = _fixed(algorithm)
    at = data.draw(st.integers(0, len(token)))
    gone = data.draw(st.integers(0, 3))
    new = data.draw(st.text("ABCabc019-_.=+/ \n\0é{", max_size=3))
    changed = token[:at] + new + token[at + gone :]
    try:
        account = verify(changed)
    except AuthenticationError:
        return
    assert account == verify(token)
    assert changed == token


@cache
def _fixed(algorithm: str) -> str:
    return issuer(algorithm).token(now=NOW)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["shop", "web", "istio-ca", AT + 60]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=6,
)


@given(
    claim=st.sampled_from(["aud", "exp", "iat", "iss", "kubernetes.io", "nbf", "sub"]),
    value=_JSON,
)
@settings(max_examples=300, deadline=None)
def test_no_value_of_a_claim_leads_to_another_account(
    claim: str, value: object
) -> None:
    token = issuer("ES256").token(now=NOW, claims={claim: value})
    try:
        account = verify(token)
    except AuthenticationError:
        return
    assert (account.namespace, account.name) == ("shop", "web")


@given(headers=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "x"]), _JSON))
@settings(max_examples=200, deadline=None)
def test_whatever_a_header_holds_nothing_else_is_raised(
    headers: dict[str, object],
) -> None:
    token = issuer("ES256").token(now=NOW, headers=headers)
    with contextlib.suppress(AuthenticationError):
        assert verify(token).name == "web"


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("l1")))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(AuthenticationError, match="token"):
        verify(text)
