"""What planes do with a file of certificates as it is, and with what is served of it.

`given` is the leaf with the certificates of the file behind it, as istiod sends them.
`served` is the leaf with the path that the bridge finds among them. Where the bridge
refuses the file, no plane takes it either. The letters are those of `cases`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from bridge.errors import ConfigError
from bridge.x509.path import find_chain
from tests.interop.planes.all_planes import ask_all
from tests.interop.planes.cases import PLANES
from tests.interop.planes.verifiers import Verdicts
from tests.support.parts.pki import Authority, bundle, key_pem, new_key, new_root

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("planes")]

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
ROOT_A, ROOT_B = (
    new_root("A", not_before=NOW - DAY),
    new_root("B", not_before=NOW - DAY),
)
UPPER = ROOT_A.issue_ca("upper")
UPPER_OF_B = ROOT_B.issue_ca("upper", key=UPPER.key)
CA = UPPER.issue_ca("lower")
CA_OF_B = ROOT_B.issue_ca("lower", key=CA.key)
A_BY_B = ROOT_B.issue_ca("A", key=ROOT_A.key)
B_BY_A = ROOT_A.issue_ca("B", key=ROOT_B.key)
ENDED = ROOT_A.issue_ca("upper", key=UPPER.key, not_after=NOW - timedelta(hours=1))
SAME_NAME = ROOT_A.issue_ca("upper")
NO_CA_BELOW = ROOT_A.issue_ca("upper", key=UPPER.key, path_length=0)
STRANGER = new_root("C", not_before=NOW - DAY).issue_ca("stranger")
LEAF_KEY = new_key()
LEAF = CA.issue_leaf(
    x509.UniformResourceIdentifier("spiffe://corp.example/ns/a/sa/b"),
    x509.DNSName("b.a.corp.example"),
    key=LEAF_KEY,
    not_before=NOW - timedelta(minutes=5),
    not_after=NOW + timedelta(hours=1),
)


@dataclass(frozen=True)
class Row:
    given: Sequence[Authority]
    anchors: Sequence[Authority]
    taken: str = "ogbal"
    """The planes that take the file as it is: OpenSSL and BoringSSL try one issuer."""
    served: str = PLANES
    """The planes that take what is served; empty where the bridge refuses the file."""


ROWS = {
    "plain": Row([CA, UPPER], [ROOT_A]),
    "reversed": Row([UPPER, CA], [ROOT_A]),
    "twice": Row([CA, UPPER, CA, UPPER], [ROOT_A]),
    "root-at-the-end": Row([CA, UPPER, ROOT_A], [ROOT_A]),
    "root-first": Row([ROOT_A, UPPER, CA], [ROOT_A]),
    "strangers-first": Row([STRANGER, STRANGER.above[0], CA, UPPER], [ROOT_A]),
    "strangers-among-the-anchors": Row([CA, UPPER], [STRANGER.above[0], ROOT_A]),
    "the-same-name-with-another-key": Row([CA, SAME_NAME, UPPER], [ROOT_A]),
    "a-pair-whose-first-is-trusted": Row([CA, UPPER, UPPER_OF_B], [ROOT_A]),
    "a-pair-whose-second-is-trusted": Row([CA, UPPER, UPPER_OF_B], [ROOT_B], "gal"),
    "a-pair-of-issuing-cas": Row([CA_OF_B, CA, UPPER], [ROOT_A], "gal"),
    "a-pair-of-issuing-cas-the-other": Row([CA, UPPER, CA_OF_B], [ROOT_B], "gal"),
    "a-cross-certificate-of-a-stranger": Row([CA, UPPER, A_BY_B], [ROOT_A]),
    "a-cross-certificate-that-is-needed": Row([CA, A_BY_B, UPPER], [ROOT_B]),
    "a-cross-certificate-and-both-roots": Row([CA, UPPER, A_BY_B], [ROOT_A, ROOT_B]),
    "roots-that-issued-each-other": Row([CA, UPPER, A_BY_B, B_BY_A], [ROOT_A]),
    "an-expired-one-first": Row([CA, ENDED, UPPER], [ROOT_A], "ogal"),
    "a-short-path-length-first": Row([CA, NO_CA_BELOW, UPPER], [ROOT_A], "gal"),
    # Go, BoringSSL and rustls end a path at any anchor, OpenSSL at a root by default.
    "a-trusted-intermediate": Row([CA, UPPER, ROOT_A], [UPPER], "gbal", "gbal"),
    "no-intermediate": Row([CA, ROOT_A], [ROOT_A], "", ""),
    "no-issuing-ca": Row([UPPER, ROOT_A], [ROOT_A], "", ""),
    "another-anchor": Row([CA, UPPER, ROOT_A], [ROOT_B], "", ""),
    "only-an-expired-one": Row([CA, ENDED], [ROOT_A], "", ""),
    "only-a-short-path-length": Row([CA, NO_CA_BELOW], [ROOT_A], "", ""),
}


def served(row: Row) -> Sequence[x509.Certificate] | None:
    """Return what the bridge serves behind the leaf; None where it refuses."""
    # A plugin gives the issuing CA first, or another certificate of its name and key.
    others = [one.certificate for one in row.given]
    issuing = [one for one in row.given if one.key == CA.key]
    if not issuing:
        return None
    try:
        found = find_chain(
            issuing[0].certificate,
            others,
            [one.certificate for one in row.anchors],
            now=NOW,
            source="chain.pem",
        )
    except ConfigError:
        return None
    return (found.chain.issuing, *found.chain.intermediates)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdicts]:
    """Return each plane's verdicts by its letter."""
    folder, names = tmp_path_factory.mktemp("orders"), []
    for name, row in ROWS.items():
        shown = {"given": [one.certificate for one in row.given], "served": served(row)}
        for way, above in shown.items():
            if above is not None:
                names.append(f"{name}-{way}")
                write(folder / names[-1], above, row.anchors)
    return ask_all(names, folder, NOW)


def write(
    path: Path, above: Sequence[x509.Certificate], anchors: Sequence[Authority]
) -> None:
    """Write the three files that each plane is given."""
    roots = bundle(*(one.certificate for one in anchors))
    path.with_suffix(".chain").write_bytes(bundle(LEAF, *above))
    path.with_suffix(".roots").write_bytes(roots)
    path.with_suffix(".key").write_bytes(key_pem(LEAF_KEY))


@pytest.mark.parametrize("name", ROWS)
def test_every_plane_takes_what_the_bridge_serves(
    verdicts: dict[str, Verdicts], name: str
) -> None:
    row = ROWS[name]
    assert (served(row) is not None) is bool(row.served)
    for way, taken in (("given", row.taken), ("served", row.served)):
        said = {
            letter: one.get(f"{name}-{way}", "?") for letter, one in verdicts.items()
        }
        found = {letter for letter, reason in said.items() if not reason}
        assert found == {*taken} & {*verdicts}, f"{way}: {said}"
