"""Whatever chain ours loads, OpenSSL and Go accept, and a leaf under it too.

Each chain has one or two things about it that a ceremony may choose.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519

from bridge.errors import ConfigError
from bridge.x509.path import validate_chain
from tests.interop.constraints.chains import Chain, Verdict, ask_go, ask_openssl
from tests.support.parts.pki import NOW
from tests.unit.x509.test_path import (
    ANCHORS,
    GOOD,
    ORDER,
    Change,
    Tiers,
    good,
    key,
)

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("constraints")]

OWN_NAME = x509.SubjectAlternativeName([x509.DNSName("ca.evil.example")])
MORE: list[Change] = [("issuing", {"extra": ((OWN_NAME, False),)})]


def changing(tier: str, change: dict[str, object]) -> Callable[[Tiers], Tiers]:
    def alter(tiers: Tiers) -> Tiers:
        tiers[tier] = replace(tiers[tier], **change)  # type: ignore[arg-type]
        return tiers

    return alter


CHANGES: dict[str, Callable[[Tiers], Tiers]] = {
    f"{tier} {change}": changing(tier, change)
    for tier, change in (*GOOD, *MORE)
    if "signing_key" not in change
} | {f"anchor: {name}": alter for name, alter in ANCHORS.items()}


def altered(tiers: Tiers, names: tuple[str, ...]) -> Tiers:
    for name in names:
        tiers = CHANGES[name](tiers)
    return tiers


def leaf_under(tiers: Tiers) -> x509.Certificate:
    """Sign a leaf with the issuing CA's key, whatever the CA may be."""
    names = x509.SubjectAlternativeName([x509.DNSName("web.corp.example")])
    signer = key(tiers["issuing"].key)
    is_edwards = isinstance(signer, ed25519.Ed25519PrivateKey)
    identifier = tiers["issuing"].identifier
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(tiers["issuing"].subject)
        .public_key(key("leaf").public_key())
        .serial_number(5)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(names, critical=True)
    )
    if identifier is not None:
        own = x509.AuthorityKeyIdentifier(identifier, None, None)
        builder = builder.add_extension(own, critical=False)
    return builder.sign(signer, None if is_edwards else hashes.SHA256())


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
        found[" + ".join(names)] = Chain(leaf_under(tiers), (issuing, regional, root))
    return found


def test_some_chains_are_loaded_and_some_are_not(loaded: dict[str, Chain]) -> None:
    assert {"", *CHANGES} <= {*loaded}
    assert 100 < len(loaded) < len([*variations()])


def test_go_accepts_what_ours_loads(loaded: dict[str, Chain]) -> None:
    verdicts = ask_go(loaded)
    refused = {name: one.reason for name, one in verdicts.items() if not one.accepted}
    assert refused == {}
    assert verdicts.keys() == loaded.keys()


def test_openssl_accepts_what_ours_loads(
    loaded: dict[str, Chain], tmp_path: Path
) -> None:
    # A process each: all chains with one change, and every fourth of those with two.
    pairs = [name for name in loaded if " + " in name]
    asked = [name for name in loaded if " + " not in name] + pairs[::4]
    verdicts: dict[str, Verdict] = {
        name: ask_openssl(loaded[name], tmp_path) for name in asked
    }
    refused = {name: one.reason for name, one in verdicts.items() if not one.accepted}
    assert refused == {}
