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
    found = parse(
        _without("alg"), public_jwk(p384, kid="p384"), ec_jwk() | {"alg": "ES256"}
    )
    assert [set(key.by_algorithm) for key in found] == [
        {"RS256", "RS384", "RS512"},
        {"ES384"},
        {"ES256"},
    ]


def test_one_key_needs_no_id() -> None:
    assert parse(_without("kid"))[0].kid is None


def test_the_same_key_under_another_id_is_the_same_key() -> None:
    one, two = parse(rsa_jwk(), rsa_jwk() | {"kid": "s"})
    assert one.sha256 == two.sha256


@pytest.mark.parametrize(
    "foreign",
    [
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "o"},
        {"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA", "kid": "o"},
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
        ({"kid": ""}, "kid"),
        ({"kid": 1}, "kid"),
        ({"kid": "k" * 257}, "kid"),
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
    ],
)
def test_what_is_no_key_set_is_refused(document: bytes, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_jwks(document)


def test_keys_without_an_id_of_their_own_are_refused() -> None:
    same = ec_jwk() | {"kid": "r"}
    none = {name: value for name, value in ec_jwk().items() if name != "kid"}
    with pytest.raises(ConfigError, match="of its own"):
        parse(rsa_jwk(), same)
    with pytest.raises(ConfigError, match="every one of several"):
        parse(rsa_jwk(), none)
