"""What linkerd2-proxy's own verifier refuses, so that the bridge must never issue it.

A CA of the test signs what the bridge would not. Each row is one that the reference
names for the proxy; where the two lists of algorithms differ, only the verifier with
the proxy's own one can tell.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.x509.der import SEQUENCE, content, elements, splice, tlv
from tests.support.clients.linkerd_go import framed, name_of
from tests.support.parts.pki import bundle, key_pem, new_key, shared_key
from tests.support.parts.proxies import Proxy, verifiers
from tests.support.parts.proxychains import (
    BOTH_USAGES,
    DAY,
    Chain,
    Made,
    good,
    key_of,
    named,
)

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("interop-linkerd-refusals")]

_WEB, _API = name_of("web"), name_of("api")
_DNS, _URI = x509.DNSName, x509.UniformResourceIdentifier
_RSA_SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")
_RSA_SHA256_WITHOUT_NULL = bytes.fromhex("300b06092a864886f70d01010b")


def _permitting(*names: x509.GeneralName) -> x509.NameConstraints:
    return x509.NameConstraints(list(names), None)


def _of(change: Callable[[Chain], Chain]) -> Callable[[], Proxy]:
    return lambda: change(good()).proxy()


def _but(tier: str, **change: object) -> Callable[[], Proxy]:
    return lambda: good().but(tier, **change).proxy()


def _another_root() -> Proxy:
    proxy = good().proxy()
    other = Made(subject="Other root", key=new_key(), ca=True)
    return replace(proxy, roots=bundle(other.by(other)))


def _same_name() -> Proxy:
    other = Made(subject="Root", key=new_key(), ca=True)
    return replace(good().proxy(), roots=bundle(other.by(other)))


def _without_intermediates() -> Proxy:
    leaf, *_, root = good().certificates()
    return Proxy(bundle(root), bundle(leaf), key_pem(key_of("web")))


def _without_the_regional() -> Proxy:
    leaf, issuing, _, root = good().certificates()
    return Proxy(bundle(root), bundle(leaf, issuing), key_pem(key_of("web")))


def _seven_below_the_root() -> Proxy:
    tiers = [
        Made(subject=f"CA {number}", key=new_key(), ca=True) for number in range(8)
    ]
    above = [lower.by(upper) for upper, lower in pairwise(tiers)]
    leaf = good().leaf.by(tiers[-1])
    root = tiers[0].by(tiers[0])
    return Proxy(bundle(root), bundle(leaf, *reversed(above)), key_pem(key_of("web")))


def _in_pem() -> Proxy:
    leaf, *above, root = good().certificates()
    inner = framed(leaf.public_bytes(Encoding.PEM))
    return Proxy(bundle(root), inner + bundle(*above), key_pem(key_of("web")))


def _another_key() -> Proxy:
    return replace(good().proxy(), key=key_pem(new_key()))


def _signed_with(issuing: Any, **change: object) -> Callable[[], Proxy]:
    def make() -> Proxy:
        chain = good().but("issuing", key=issuing()).but("leaf", **change)
        return chain.proxy()

    return make


def _rsa_without_null() -> Proxy:
    key = shared_key("rsa2048")
    assert isinstance(key, rsa.RSAPrivateKey)
    chain = good().but("issuing", key=key)
    leaf, *above, root = chain.certificates()
    fields = [
        _RSA_SHA256_WITHOUT_NULL if one == _RSA_SHA256 else one
        for one in elements(content(leaf.tbs_certificate_bytes))
    ]
    tbs = tlv(SEQUENCE, b"".join(fields))
    signature = key.sign(tbs, padding.PKCS1v15(), hashes.SHA256())
    der = splice(tbs, _RSA_SHA256_WITHOUT_NULL, signature)
    return Proxy(bundle(root), framed(der) + bundle(*above), key_pem(chain.leaf.key))


def _curve(curve: ec.EllipticCurve) -> Callable[[], ec.EllipticCurvePrivateKey]:
    return lambda: ec.generate_private_key(curve)


def _rsa(bits: int) -> Callable[[], rsa.RSAPrivateKey]:
    return lambda: rsa.generate_private_key(65537, bits)


_SPIFFE = _URI("spiffe://corp.example/ns/shop/sa/web")
_OWN = _DNS("corp.example")
_SIGNATURE = "UnsupportedSignatureAlgorithmContext"
_PUBLIC_KEY = "UnsupportedSignatureAlgorithmForPublicKeyContext"
_SERVER_USE = "does not allow extended key usage for server authentication"
_CONSTRAINT = "NameConstraintViolation"
_REFUSED: dict[str, tuple[Callable[[], Proxy], str]] = {
    "another root": (_another_root, "UnknownIssuer"),
    "another root of the same name": (_same_name, "BadSignature"),
    "no intermediate at all": (_without_intermediates, "UnknownIssuer"),
    "the regional CA is missing": (_without_the_regional, "UnknownIssuer"),
    "expired leaf": (_but("leaf", lasts=(-DAY, -timedelta(hours=1))), "expired"),
    "leaf of tomorrow": (_but("leaf", lasts=(DAY, 2 * DAY)), "not valid yet"),
    "expired issuing CA": (_but("issuing", lasts=(-2 * DAY, -DAY)), "expired"),
    "issuing CA of tomorrow": (
        _but("issuing", lasts=(DAY, 2 * DAY)),
        "not valid yet",
    ),
    "another name": (
        _but("leaf", names=(_DNS(_API),)),
        "not match TLS identity|not valid for name",
    ),
    "the name as common name only": (
        _but("leaf", subject="web.shop", names=()),
        "not match TLS identity|not valid for name",
    ),
    "the name with a dot behind it": (
        _but("leaf", names=(_DNS(f"{_WEB}."),)),
        "not match TLS identity|not valid for name",
    ),
    "name outside the issuing CA's constraint": (
        _but("issuing", constraints=_permitting(_DNS("other.example"))),
        _CONSTRAINT,
    ),
    "name outside the regional CA's constraint": (
        _but("regional", constraints=_permitting(_DNS("other.example"))),
        _CONSTRAINT,
    ),
    "name outside the anchor's constraint": (
        _but("root", constraints=_permitting(_DNS("other.example"))),
        _CONSTRAINT,
    ),
    "excluded name": (
        _but("issuing", constraints=x509.NameConstraints(None, [_OWN])),
        _CONSTRAINT,
    ),
    "SPIFFE ID under a URI constraint that permits it": (
        _of(
            lambda chain: chain.but("leaf", names=(_DNS(_WEB), _SPIFFE)).but(
                "issuing", constraints=_permitting(_URI("corp.example"))
            )
        ),
        _CONSTRAINT,
    ),
    "directory-name constraint": (
        _but("issuing", constraints=_permitting(x509.DirectoryName(named("x")))),
        _CONSTRAINT,
    ),
    "issuing CA for clients only": (
        _but("issuing", usages=BOTH_USAGES[1:]),
        _SERVER_USE,
    ),
    "leaf for clients only": (_but("leaf", usages=BOTH_USAGES[1:]), _SERVER_USE),
    "a CA as the leaf": (_but("leaf", ca=True), "CaUsedAsEndEntity"),
    "an end entity as the issuing CA": (
        _but("issuing", ca=False),
        "EndEntityUsedAsCa",
    ),
    "path length that is used up": (
        _but("regional", path_length=0),
        "PathLenConstraintViolated",
    ),
    "unknown critical extension": (
        _but("leaf", unknown=True),
        "UnsupportedCriticalExtension",
    ),
    "issuer's name written as another string": (
        _but("leaf", string=x509.name._ASN1Type.PrintableString),
        "UnknownIssuer",
    ),
    "seven CAs below the root": (
        _seven_below_the_root,
        "MaximumPathDepthExceeded",
    ),
    "PEM in place of DER": (_in_pem, "BadEncoding"),
    "another key": (_another_key, "KeyMismatch"),
    "issuing CA on secp256k1": (_signed_with(_curve(ec.SECP256K1())), _PUBLIC_KEY),
    "issuing CA on brainpool": (
        _signed_with(_curve(ec.BrainpoolP256R1())),
        _PUBLIC_KEY,
    ),
    "issuing CA with RSA-1024": (_signed_with(_rsa(1024)), "BadSignature"),
    "signed with SHA-224": (
        _signed_with(_curve(ec.SECP256R1()), hash=hashes.SHA224()),
        _SIGNATURE,
    ),
}
_ONLY_BY_THE_PROXYS_LIST: dict[str, tuple[Callable[[], Proxy], str]] = {
    "signed with RSA-PSS": (
        _signed_with(lambda: shared_key("rsa2048"), pss=True),
        _SIGNATURE,
    ),
    "RSA without the NULL of its algorithm": (_rsa_without_null, _SIGNATURE),
}
_ROWS = [
    *((row, verifier) for row in _REFUSED for verifier in verifiers()),
    *((row, "rust") for row in _ONLY_BY_THE_PROXYS_LIST if "rust" in verifiers()),
]


@pytest.mark.parametrize(("row", "verifier"), _ROWS)
def test_proxy_refuses_the_answer(row: str, verifier: str) -> None:
    make, reason = (_REFUSED | _ONLY_BY_THE_PROXYS_LIST)[row]
    refusal = verifiers()[verifier].refusal(make(), _WEB)
    with pytest.raises(ValueError, match=reason):
        _raise(refusal)


def _raise(refusal: str) -> None:
    # pytest shows the text and the pattern when they do not fit.
    if refusal:
        raise ValueError(refusal)


def _shuffled() -> Proxy:
    leaf, issuing, regional, root = good().certificates()
    return Proxy(bundle(root), bundle(leaf, regional, issuing), key_pem(key_of("web")))


_TAKEN: dict[str, Callable[[], Proxy]] = {
    "nothing wrong": lambda: good().proxy(),
    "intermediates in another order": _shuffled,
    "expired anchor": _but("root", lasts=(-2 * DAY, -DAY)),
    "no extended key usage": _but("leaf", usages=()),
    "leaf for servers only": _but("leaf", usages=BOTH_USAGES[:1]),
    "issuing CA for both": _but("issuing", usages=BOTH_USAGES),
    "SPIFFE ID behind the name": _but("leaf", names=(_DNS(_WEB), _SPIFFE)),
    "URI constraint without a URI": _but(
        "issuing", constraints=_permitting(_URI("corp.example"))
    ),
    "fitting DNS constraint": _but("issuing", constraints=_permitting(_OWN)),
    "P-384 signs with SHA-256": _signed_with(_curve(ec.SECP384R1())),
    "P-521 signs with SHA-384": _signed_with(
        _curve(ec.SECP521R1()), hash=hashes.SHA384()
    ),
}


@pytest.mark.parametrize("verifier", sorted(verifiers()))
@pytest.mark.parametrize("row", _TAKEN)
def test_proxy_takes_the_answer(row: str, verifier: str) -> None:
    assert verifiers()[verifier].refusal(_TAKEN[row](), _WEB) == ""


_CLIENTS: dict[str, tuple[Callable[[], Proxy], str]] = {
    "another root": (
        lambda: replace(_foreign(), roots=good().proxy().roots),
        "server: .*(BadSignature|certificate signature failure)",
    ),
    "no intermediate": (
        _without_intermediates,
        "server: .*(UnknownIssuer|unable to get local issuer)",
    ),
    "expired": (
        _but("leaf", lasts=(-DAY, -timedelta(hours=1))),
        "server: .*expired",
    ),
    "leaf for servers only": (
        _but("leaf", usages=BOTH_USAGES[:1]),
        "server: .*(unsuitable certificate purpose|for client authentication)",
    ),
    "issuing CA for servers only": (
        _but("issuing", usages=BOTH_USAGES[:1]),
        "server: .*(unsuitable certificate purpose|for client authentication)",
    ),
}


def _foreign() -> Proxy:
    return good().but("root", key=key_of("other")).proxy()


@pytest.mark.parametrize("verifier", sorted(verifiers()))
@pytest.mark.parametrize("row", _CLIENTS)
def test_server_refuses_the_client(row: str, verifier: str) -> None:
    make, reason = _CLIENTS[row]
    server = good("api").proxy()
    outcome = verifiers()[verifier].handshake(server, make(), _API)
    with pytest.raises(ValueError, match=reason):
        _raise(outcome.refusal)


@pytest.mark.parametrize("verifier", sorted(verifiers()))
@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        ({}, _WEB, "client: .*(not match TLS identity|not valid for name)"),
        ({"lasts": (-DAY, -timedelta(hours=1))}, _API, "client: .*expired"),
        ({"usages": BOTH_USAGES[1:]}, _API, f"client: .*{_SERVER_USE}"),
    ],
    ids=["another identity", "expired", "leaf for clients only"],
)
def test_client_refuses_the_server(
    verifier: str, change: dict[str, object], name: str, reason: str
) -> None:
    server = good("api").but("leaf", **change).proxy()
    outcome = verifiers()[verifier].handshake(server, good().proxy(), name)
    with pytest.raises(ValueError, match=reason):
        _raise(outcome.refusal)


@pytest.mark.parametrize("verifier", sorted(verifiers()))
def test_two_good_proxies_speak(verifier: str) -> None:
    judge = verifiers()[verifier]
    outcome = judge.handshake(good("api").proxy(), good().proxy(), _API)
    assert (outcome.refusal, outcome.peer) == ("", _WEB)
