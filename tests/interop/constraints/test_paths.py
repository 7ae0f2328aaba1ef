"""Whatever chain ours loads, OpenSSL and Go accept, and a leaf under it too.

Each chain has one or two things about it that a ceremony may get right or wrong.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from bridge.errors import ConfigError
from bridge.x509.certificate import key_usage
from bridge.x509.path import validate_chain
from tests.interop.constraints.chains import Chain, Verdict, ask_go, ask_openssl
from tests.support.parts.pki import NOW
from tests.unit.x509.test_path import ORDER, Tiers, good, key, named

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("constraints")]

SECOND = timedelta(seconds=1)
BOTH_WAYS = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\5\0")
PRINTABLE = x509.name._ASN1Type.PrintableString

CHANGES: dict[str, tuple[str, dict[str, object]]] = {
    "issuing not a CA": ("issuing", {"ca": None}),
    "regional not a CA": ("regional", {"ca": False}),
    "root not a CA": ("root", {"ca": None}),
    "regional pathLen 0": ("regional", {"path_length": 0}),
    "regional pathLen 5": ("regional", {"path_length": 5}),
    "root pathLen 1": ("root", {"path_length": 1}),
    "root pathLen 2": ("root", {"path_length": 2}),
    "issuing without pathLen": ("issuing", {"path_length": None}),
    "issuing without keyUsage": ("issuing", {"usage": None}),
    "regional signs no certificates": ("regional", {"usage": key_usage(crl_sign=True)}),
    "issuing signs no CRLs": ("issuing", {"usage": key_usage(key_cert_sign=True)}),
    "issuing with both EKU": ("issuing", {"extended": BOTH_WAYS}),
    "regional with one EKU": ("regional", {"extended": BOTH_WAYS[:1]}),
    "issuing critical unknown": ("issuing", {"extra": ((UNKNOWN, True),)}),
    "regional unknown": ("regional", {"extra": ((UNKNOWN, False),)}),
    "issuing expired": ("issuing", {"not_after": NOW - SECOND}),
    "issuing before its last second": ("issuing", {"not_after": NOW + SECOND}),
    "issuing in its first second": (
        "issuing",
        {"not_before": NOW, "not_after": NOW + timedelta(days=9)},
    ),
    "issuing in its last second": ("issuing", {"not_after": NOW}),
    "regional not yet": ("regional", {"not_before": NOW + SECOND}),
    "root expired": ("root", {"not_after": NOW - SECOND}),
    "issuing by another key": ("issuing", {"signing_key": "other"}),
    "regional by another key": ("regional", {"signing_key": "other"}),
    "issuing with another issuer": ("issuing", {"issuer": named("root")}),
    "issuer in another string type": (
        "issuing",
        {"issuer": named("regional", PRINTABLE)},
    ),
    "issuing with SHA-224": ("issuing", {"hash": hashes.SHA224()}),
    "issuing with SHA-512": ("issuing", {"hash": hashes.SHA512()}),
    "issuing on P-384": ("issuing", {"key": "p384-issuing"}),
    "issuing on P-521": ("issuing", {"key": "p521-issuing"}),
    "issuing with Ed25519": ("issuing", {"key": "ed25519-issuing"}),
    "issuing with RSA": ("issuing", {"key": "rsa2048-issuing"}),
    "issuing without SKI": ("issuing", {"identifier": None}),
    "regional without AKI": ("regional", {"authority": None}),
    "issuing with another AKI": (
        "issuing",
        {"authority": x509.AuthorityKeyIdentifier(b"other", None, None)},
    ),
    "regional with another AKI": (
        "regional",
        {"authority": x509.AuthorityKeyIdentifier(b"other", None, None)},
    ),
    "DNS constraint": (
        "root",
        {"constraints": x509.NameConstraints([x509.DNSName("corp.example")], None)},
    ),
    "issuing with a SAN": (
        "issuing",
        {
            "extra": (
                (x509.SubjectAlternativeName([x509.DNSName("ca.evil.example")]), False),
            )
        },
    ),
    "issuing with a title": (
        "issuing",
        {
            "subject": x509.Name([x509.NameAttribute(NameOID.TITLE, "issuing")]),
        },
    ),
}


def altered(tiers: Tiers, names: tuple[str, ...]) -> Tiers:
    for name in names:
        tier, change = CHANGES[name]
        tiers[tier] = replace(tiers[tier], **change)  # type: ignore[arg-type]
    return tiers


def leaf_under(tiers: Tiers) -> x509.Certificate:
    """Sign a leaf with the issuing CA's key, whatever the CA may be."""
    names = x509.SubjectAlternativeName([x509.DNSName("web.corp.example")])
    signer = key(tiers["issuing"].key)
    is_edwards = isinstance(signer, ed25519.Ed25519PrivateKey)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(tiers["issuing"].subject)
        .public_key(key("leaf").public_key())
        .serial_number(5)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(names, critical=True)
        .sign(signer, None if is_edwards else hashes.SHA256())
    )


def variations() -> Iterator[tuple[str, ...]]:
    yield ()
    yield from ((name,) for name in CHANGES)
    yield from combinations(CHANGES, 2)


@pytest.fixture(scope="module")
def loaded() -> dict[str, Chain]:
    """Return the chains that ours accepts, with a leaf each."""
    found = {}
    for names in variations():
        tiers = altered(good(), names)
        issuing, regional, root = (tiers[tier].make() for tier in ORDER)
        try:
            validate_chain(issuing, [regional], [root], now=NOW, source="chain")
        except ConfigError:
            continue
        found[", ".join(names)] = Chain(leaf_under(tiers), (issuing, regional, root))
    return found


def test_some_chains_are_loaded_and_some_are_not(loaded: dict[str, Chain]) -> None:
    assert {"", "issuing with RSA", "DNS constraint", "issuing with a SAN"} <= {*loaded}
    assert {"issuing on P-521", "issuing with Ed25519"} <= {*loaded}
    assert not {"issuing expired", "DNS constraint, issuing with a SAN"} & {*loaded}
    assert len(loaded) > 50


def test_go_accepts_what_ours_loads(loaded: dict[str, Chain]) -> None:
    verdicts = ask_go(loaded)
    refused = {name: one.reason for name, one in verdicts.items() if not one.accepted}
    assert refused == {}
    assert verdicts.keys() == loaded.keys()


def test_openssl_accepts_what_ours_loads(
    loaded: dict[str, Chain], tmp_path: Path
) -> None:
    # A process each: all chains with one change, and every fourth of those with two.
    pairs = [name for name in loaded if ", " in name]
    asked = [name for name in loaded if ", " not in name] + pairs[::4]
    verdicts: dict[str, Verdict] = {
        name: ask_openssl(loaded[name], tmp_path) for name in asked
    }
    refused = {name: one.reason for name, one in verdicts.items() if not one.accepted}
    assert refused == {}
