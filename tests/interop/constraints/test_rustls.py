"""What ours accepts for Linkerd, rustls accepts; and what is told of a chain is so.

rustls takes its time from the machine, so these chains are valid today.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from bridge.dataplanes.linkerd import linkerd_problems
from bridge.errors import ConfigError
from bridge.x509.path import validate_chain
from tests.interop.constraints.cases import CASES, Case
from tests.interop.constraints.chains import build, key, ours
from tests.support.parts.pki import Authority, new_key, new_root
from tests.support.parts.rustls import verdict

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("constraints")]

TODAY = datetime.now(UTC).replace(microsecond=0)
WORDS = {"dns", "uri", "cn", "o", "mail"}


def is_linkerds(case: Case) -> bool:
    """Tell whether the leaf has no names but such as Linkerd's may have."""
    return {word.partition(":")[0] for word in case.leaf.split()} <= WORDS


ACCEPTED = [case for case in CASES if case.ours == "ok" and is_linkerds(case)]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.id)
def test_rustls_accepts_what_ours_accepts(case: Case, tmp_path: Path) -> None:
    chain = build(case, TODAY)
    assert ours(case, chain) == "ok"
    in_the_way = [*linkerd_problems(chain.cas, with_uri="uri:" in case.leaf)]
    theirs = verdict(chain.leaf, key("leaf"), chain.cas[:2], chain.cas[2], tmp_path)
    # Both ways: nothing is let through, and nothing is told that is not so.
    assert bool(theirs) == bool(in_the_way), theirs or in_the_way


def test_the_table_has_chains_of_both_kinds() -> None:
    told = [
        any(linkerd_problems(build(case, TODAY).cas, with_uri="uri:" in case.leaf))
        for case in ACCEPTED
    ]
    assert told.count(True) > 10
    assert told.count(False) > 10


# Paths: what is done to a good chain, and whether it can be walked still.


def root() -> Authority:
    return new_root(not_before=TODAY - timedelta(days=1))


def of_depth(cas: int) -> Authority:
    found = root()
    for number in range(cas):
        found = found.issue_ca(f"tier {number}")
    return found


def carrying(
    extension: x509.ExtensionType,
    above: Authority | None = None,
    *,
    critical: bool = False,
) -> Authority:
    """Return an issuing CA with one more extension."""
    issuer = above or root().issue_ca("regional")
    plain = issuer.issue_ca("issuing")
    builder = (
        x509.CertificateBuilder()
        .subject_name(plain.certificate.subject)
        .issuer_name(plain.certificate.issuer)
        .public_key(plain.key.public_key())
        .serial_number(9)
        .not_valid_before(plain.certificate.not_valid_before_utc)
        .not_valid_after(plain.certificate.not_valid_after_utc)
        .add_extension(extension, critical=critical)
    )
    for one in plain.certificate.extensions:
        builder = builder.add_extension(one.value, critical=one.critical)
    return replace(plain, certificate=builder.sign(issuer.key, hashes.SHA256()))


def usages(*given: x509.ObjectIdentifier) -> Authority:
    return carrying(x509.ExtendedKeyUsage(given))


def called(name: str) -> Authority:
    """Return an issuing CA with a name of its own, under a constraint."""
    inside = x509.NameConstraints([DNS("corp.example")], None)
    above = root().issue_ca("regional", constraints=inside)
    return carrying(x509.SubjectAlternativeName([DNS(name)]), above)


DNS = x509.DNSName
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE

PATHS: dict[str, tuple[Callable[[], Authority], bool]] = {
    "six CA certificates below the anchor": (lambda: of_depth(6), True),
    "seven": (lambda: of_depth(7), False),
    "both purposes": (lambda: usages(SERVER, CLIENT), True),
    "client only": (lambda: usages(CLIENT), False),
    "any purpose": (lambda: usages(ANY), False),
    "unknown extension": (lambda: carrying(UNKNOWN), True),
    "critical unknown extension": (lambda: carrying(UNKNOWN, critical=True), False),
    "own name inside the constraint": (lambda: called("identity.corp.example"), True),
    "own name outside the constraint": (lambda: called("ca.evil.example"), False),
}


@pytest.mark.parametrize(("make", "is_good"), PATHS.values(), ids=PATHS.keys())
def test_a_path_is_loaded_exactly_if_rustls_walks_it(
    make: Callable[[], Authority], tmp_path: Path, *, is_good: bool
) -> None:
    issuing = make()
    leaf_key = new_key()
    leaf = issuing.issue_leaf(
        DNS("web.corp.example"), key=leaf_key, not_before=TODAY - timedelta(minutes=1)
    )
    theirs = verdict(leaf, leaf_key, issuing.chain, issuing.root, tmp_path)
    assert (theirs == "") is is_good, theirs
    mine = ""
    try:
        chain = validate_chain(
            issuing.certificate,
            issuing.chain[1:],
            [issuing.root],
            now=TODAY,
            source="chain",
        )
    except ConfigError as error:
        mine = str(error)
    else:
        path = [certificate for _, certificate in chain.tiers()]
        mine = "; ".join(text for _, text in linkerd_problems(path, with_uri=True))
    assert (mine == "") is is_good, mine
