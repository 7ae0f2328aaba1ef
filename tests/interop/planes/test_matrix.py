"""Each verifier does with a constraint what `bridge.dataplanes.matrix` says.

For each form of name, each kind of constraint and each tier, each verifier is asked
about a leaf inside and a leaf outside of it, and about one without a name of the form.
Envoy, OpenSSL, ztunnel's and linkerd2-proxy's rustls and Go are the real ones.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from bridge.dataplanes.matrix import MATRIX, VERIFIERS, Treatment
from bridge.x509.name_constraints import Kind
from bridge.x509.pem import encode_certificate
from tests.interop.planes.boringssl import ask_boringssl
from tests.interop.planes.certificates import (
    EMPTY,
    TIERS,
    USUAL,
    Chain,
    Tier,
    build,
    encoded,
    leaf_with,
    name,
)
from tests.interop.planes.verifiers import (
    Verdicts,
    ask_go,
    ask_openssl,
    ask_rustls,
    write,
)

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("planes")]

URI, DNS, IP = x509.UniformResourceIdentifier, x509.DNSName, x509.IPAddress
MAIL, DIRECTORY = x509.RFC822Name, x509.DirectoryName
_O = NameOID.ORGANIZATION_NAME
_UTF8 = 12


def directory(organisation: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(_O, organisation)])


@dataclass(frozen=True, slots=True)
class Pair:
    """A constraint that permits or excludes, and leaves on both sides of `permits`."""

    permits: x509.GeneralName
    inside: x509.GeneralName
    outside: x509.GeneralName


PAIRS: dict[Kind, Pair] = {
    URI: Pair(
        URI("corp.example"),
        URI("spiffe://corp.example/ns/a/sa/b"),
        URI("spiffe://evil.example/ns/a/sa/b"),
    ),
    DNS: Pair(DNS("corp.example"), DNS("b.corp.example"), DNS("b.evil.example")),
    IP: Pair(
        IP(ipaddress.ip_network("10.0.0.0/8")),
        IP(ipaddress.ip_address("10.1.2.3")),
        IP(ipaddress.ip_address("192.0.2.1")),
    ),
    MAIL: Pair(MAIL("corp.example"), MAIL("b@corp.example"), MAIL("b@evil.example")),
    DIRECTORY: Pair(
        DIRECTORY(directory("Corp")),
        DIRECTORY(directory("Corp")),
        DIRECTORY(directory("Evil")),
    ),
}
SIDES = ("inside", "outside", "without")
Case = tuple[Kind, str, str]
CASES: list[Case] = [
    (kind, sign, tier)
    for kind in PAIRS
    for sign in ("permitted", "excluded")
    for tier in TIERS
    # Under a permitted directory the CAs below would need a subject inside of it.
    if kind is not DIRECTORY or sign == "excluded"
]


def title(case: Case) -> str:
    kind, sign, tier = case
    return f"{kind.__name__.lower()}-{sign}-{tier}"


def chains_of(case: Case, now: datetime) -> Iterator[tuple[str, Chain]]:
    """Yield the chain with each leaf; what is excluded has its inside outside."""
    kind, sign, tier = case
    pair = PAIRS[kind]
    good, bad = pair.inside, pair.outside
    if sign == "excluded":
        good, bad = bad, good
    value = x509.NameConstraints(
        [pair.permits] if sign == "permitted" else None,
        [pair.permits] if sign == "excluded" else None,
    )
    above = Tier(extensions=(*USUAL, encoded(value, critical=True)))
    other = DNS("b.other.example") if kind is URI else URI("spiffe://other.example/a")
    for side, one in zip(SIDES, (good, bad, other), strict=True):
        yield side, build({tier: above, "leaf": leaf(one, other)}, now)


def leaf(one: x509.GeneralName, other: x509.GeneralName) -> Tier:
    # A directory name is the subject, which is what a client is known by.
    if not isinstance(one, DIRECTORY):
        return leaf_with(one)
    organisation = one.value.get_attributes_for_oid(_O)[0].value
    subject = name((_O.dotted_string, _UTF8, str(organisation).encode()))
    return leaf_with(other, subject=subject, is_critical=False)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdicts]:
    """Return why each verifier rejects each leaf; empty where it accepts it."""
    now, folder = datetime.now(UTC), tmp_path_factory.mktemp("matrix")
    plain = build({"leaf": leaf_with(DNS("b.corp.example"), subject=EMPTY)}, now)
    chains = {"plain": (plain, encode_certificate(plain.anchor))}
    for case in CASES:
        for side, chain in chains_of(case, now):
            text = encode_certificate(chain.anchor)
            chains[f"{title(case)}-{side}"] = chain, text
    write(chains, folder)
    names = [*chains]
    found = {
        "sidecar": ask_boringssl(names, folder),
        "ambient": ask_rustls("ambient", names, folder),
        "linkerd": ask_rustls("linkerd", names, folder),
        "go": ask_go(names, folder, now),
        "openssl": ask_openssl(names, folder),
    }
    assert {verifier: one["plain"] for verifier, one in found.items()} == dict.fromkeys(
        VERIFIERS, ""
    )
    return found


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("case", CASES, ids=title)
def test_a_verifier_does_what_the_matrix_says(
    verdicts: dict[str, Verdicts], case: Case, verifier: str
) -> None:
    said = {side: verdicts[verifier][f"{title(case)}-{side}"] for side in SIDES}
    accepted = [side for side in SIDES if not said[side]]
    treatment = MATRIX[case[0]][verifier]
    expected = {
        Treatment.ENFORCED: ["inside", "without"],
        Treatment.REJECTS_FORM: ["without"],
        Treatment.REJECTS_PATH: [],
    }[treatment]
    assert accepted == expected, said


def test_the_matrix_has_every_form_and_every_verifier() -> None:
    assert MATRIX.keys() == PAIRS.keys()
    for row in MATRIX.values():
        assert row.keys() == VERIFIERS.keys()
