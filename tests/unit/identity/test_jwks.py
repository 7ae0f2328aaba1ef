"""The key sets that are accepted, and the algorithms of their keys."""

import json
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from bridge.errors import ConfigError
from bridge.identity.jwks import VerificationKey, parse_jwks
from tests.support.parts.tokens import OMIT, TokenIssuer, public_jwk


@cache
def rsa_jwk() -> dict[str, object]:
    return TokenIssuer(kid="r").jwk()


@cache
def ec_jwk() -> dict[str, object]:
    return TokenIssuer(algorithm="ES256", kid="e").jwk()


def parse(*entries: object) -> tuple[VerificationKey, ...]:
    return parse_jwks(json.dumps({"keys": list(entries)}).encode())


def _without(name: str) -> dict[str, object]:
    return {key: value for key, value in rsa_jwk().items() if key != name}


@pytest.mark.parametrize(
    ("changes", "algorithms"),
    [
        ({}, {"RS256"}),
        ({"alg": "RS512"}, {"RS512"}),
        ({"use": "sig", "key_ops": ["verify"]}, {"RS256"}),
        ({"x5c": ["anything"], "x5t": 1}, {"RS256"}),
    ],
)
def test_a_key_says_what_it_is_for(
    changes: dict[str, object], algorithms: set[str]
) -> None:
    (key,) = parse(rsa_jwk() | changes)
    assert (key.kid, set(key.by_algorithm)) == ("r", algorithms)


def test_without_an_algorithm_a_key_is_good_for_those_of_its_type() -> None:
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key()
    p521 = ec.generate_private_key(ec.SECP521R1()).public_key()
    found = parse(
        _without("alg"),
        public_jwk(p384, kid="p384"),
        ec_jwk() | {"alg": "ES256"},
        public_jwk(p521, kid="p521"),
    )
    assert [set(key.by_algorithm) for key in found] == [
        {"RS256", "RS384", "RS512"},
        {"ES384"},
        {"ES256"},
        {"ES512"},
    ]


@pytest.mark.parametrize(
    ("changes", "kid"),
    [
        ({"kid": OMIT}, None),
        ({"kid": None}, None),
        ({"kid": ""}, None),
        ({"kid": "k" * 1024}, "k" * 1024),
        ({"kid": " "}, " "),
    ],
    ids=["missing", "null", "empty", "long", "blank"],
)
def test_a_key_may_have_any_id_or_none(
    changes: dict[str, object], kid: str | None
) -> None:
    merged = rsa_jwk() | changes
    entry = {name: value for name, value in merged.items() if value is not OMIT}
    found = parse(ec_jwk(), entry)
    assert [key.kid for key in found] == ["e", kid]


def test_the_same_key_under_another_id_is_the_same_key() -> None:
    one, two = parse(rsa_jwk(), rsa_jwk() | {"kid": "s"})
    assert one.sha256 == two.sha256


def test_a_key_that_is_repeated_is_read_once() -> None:
    # As an API server shows a key that its options name twice.
    assert [key.kid for key in parse(rsa_jwk(), ec_jwk(), rsa_jwk())] == ["r", "e"]


def test_keys_with_one_id_are_kept_side_by_side() -> None:
    found = parse(rsa_jwk(), ec_jwk() | {"kid": "r"})
    assert [set(key.by_algorithm) for key in found] == [{"RS256"}, {"ES256"}]


@pytest.mark.parametrize("kid", ["same", ""])
def test_no_more_keys_than_a_few_are_alike(kid: str) -> None:
    def alike(count: int) -> list[object]:
        return [TokenIssuer(algorithm="ES256", kid=kid).jwk() for _ in range(count)]

    parse(*alike(8), rsa_jwk())
    too_many = alike(9)
    with pytest.raises(ConfigError, match=r"at most 8 keys with one .*found 9 with"):
        parse(*too_many)


@pytest.mark.parametrize(
    "foreign",
    [
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "o"},
        {"kty": "EC", "crv": "P-224", "x": "AA", "y": "AA", "kid": "o"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "o"},
        {"kty": ["RSA"]},
        {},
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"alg": "PS256"},
        {"alg": "HS256"},
        {"alg": "ES256"},
        {"alg": 256},
    ],
)
def test_a_key_for_something_else_is_passed_over(foreign: dict[str, object]) -> None:
    entry = foreign if not foreign or "kty" in foreign else rsa_jwk() | foreign
    found = parse(entry, ec_jwk())
    assert [key.kid for key in found] == ["e"]
    with pytest.raises(ConfigError, match="at least one"):
        parse(entry)


def _weak(bits: int, e: int = 65537) -> dict[str, object]:
    key = rsa.generate_private_key(public_exponent=e, key_size=bits)
    return public_jwk(key.public_key(), kid="w")


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"kty": "oct", "k": "c2VjcmV0"}, "symmetric"),
        ({"d": "AQAB"}, "private"),
        ({"p": "AQAB"}, "private"),
        ({"n": "AQAB"}, "2048"),
        ({"n": 5}, "'n'"),
        ({"n": None}, "'n'"),
        ({"e": "Aw"}, "65537"),
        ({"n": "!!"}, "base64url"),
        ({"n": "_" * 1400}, "2048"),
        ({"kid": 1}, "kid"),
        ({"kid": 0}, "kid"),
        ({"kid": []}, "kid"),
        ({"kid": "k" * 1025}, "at most 1024 characters"),
        ("text", "object"),
        (None, "object"),
    ],
)
def test_a_doubtful_key_spoils_the_set(entry: object, match: str) -> None:
    changed = rsa_jwk() | entry if isinstance(entry, dict) else entry
    with pytest.raises(ConfigError, match=match):
        parse(ec_jwk(), changed)


@pytest.mark.parametrize(("bits", "e"), [(1024, 65537), (2048, 3)])
def test_a_weak_key_is_refused(bits: int, e: int) -> None:
    weak = _weak(bits, e)
    with pytest.raises(ConfigError, match=r"keys\[0\]: the key set's RSA"):
        parse(weak)


@pytest.mark.parametrize(
    "changes",
    [{"x": "AA"}, {"x": "A" * 43, "y": "A" * 43}, {"y": OMIT}, {"x": "A" * 44}],
)
def test_a_point_off_the_curve_is_refused(changes: dict[str, object]) -> None:
    merged = ec_jwk() | changes
    entry = {name: value for name, value in merged.items() if value is not OMIT}
    with pytest.raises(ConfigError, match="not a valid key"):
        parse(entry)


@pytest.mark.parametrize(
    ("document", "match"),
    [
        (b"", "JSON"),
        (b"[]", "JSON"),
        (b"{}", "at least one key"),
        (b'{"keys": []}', "at least one key"),
        (b'{"keys": {}}', "at least one key"),
        (b'{"keys": [], "keys": []}', "repeated"),
        (b"\x00\xff", "JSON"),
        (b"<html>", "JSON"),
        (b"-----BEGIN PUBLIC KEY-----\nMFkw", "found PEM; `kubectl get --raw"),
        ('{"keys": []}'.encode("utf-16"), "found UTF-16; convert it with `iconv"),
        (b"\xfe\xff\0{\0}", "found UTF-16; convert it with `iconv"),
        (b'{"kty": "RSA", "n": "AQAB"}', "found a single key, which belongs into"),
        (b'{"issuer": "x", "jwks_uri": "y"}', "the keys are behind its jwks_uri"),
        (
            b'{"kind": "Status", "apiVersion": "v1", "code": 403}',
            "found an object of Kubernetes, such as the status of an error",
        ),
    ],
)
def test_what_is_no_key_set_is_refused(document: bytes, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_jwks(document)


def test_the_mark_before_utf_8_says_nothing() -> None:
    document = json.dumps({"keys": [ec_jwk()]}).encode("utf-8-sig")
    assert [key.kid for key in parse_jwks(document)] == ["e"]
