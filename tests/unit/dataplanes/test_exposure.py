"""What each data plane would accept if the issuing key were compromised."""

import pytest
from cryptography import x509

from bridge.dataplanes.exposure import exposure_of
from bridge.dataplanes.planes import DataPlane
from bridge.errors import ConfigError
from tests.support.parts.pki import new_root

DNS = x509.DNSName
URI = x509.UniformResourceIdentifier


def accepted(*permitted: x509.GeneralName) -> dict[DataPlane, str]:
    constraints = x509.NameConstraints(permitted, None) if permitted else None
    upper = new_root().issue_ca("region", constraints=constraints)
    found = exposure_of(upper.issue_ca("issuing").chain)
    return {one.data_plane: one.accepts for one in found}


@pytest.mark.parametrize(
    ("permitted", "plane", "words"),
    [
        ([], DataPlane.SIDECAR, "every SPIFFE ID of every trust domain"),
        ([], DataPlane.AMBIENT, "every SPIFFE ID of every trust domain"),
        ([], DataPlane.LINKERD, "every identity of every identity domain"),
        ([DNS("a.example")], DataPlane.SIDECAR, "every SPIFFE ID of every trust"),
        ([DNS("a.example")], DataPlane.AMBIENT, "every SPIFFE ID of every trust"),
        ([DNS("a.example")], DataPlane.LINKERD, "every identity of a.example, wh"),
        ([DNS("a.b"), DNS(".a.b")], DataPlane.LINKERD, "of a.b and below, wherever"),
        ([URI("a.example")], DataPlane.SIDECAR, "every SPIFFE ID of a.example, wh"),
        ([URI(".a.example")], DataPlane.SIDECAR, "of anything below a.example, wh"),
        ([URI("a.example")], DataPlane.AMBIENT, "does not work with ambient"),
        ([URI("a.example")], DataPlane.LINKERD, "every identity of every identity"),
    ],
)
def test_constraints_narrow_only_the_form_that_they_name(
    permitted: list[x509.GeneralName], plane: DataPlane, words: str
) -> None:
    assert words in accepted(*permitted)[plane]


def test_a_long_list_is_cut() -> None:
    names = [DNS(f"d{number}.example") for number in range(11)]
    assert "d7.example and 3 more, wh" in accepted(*names)[DataPlane.LINKERD]


def test_the_lowest_constrained_tier_is_shown() -> None:
    wide = x509.NameConstraints([URI("a.example"), URI("b.example")], None)
    narrow = x509.NameConstraints([URI("b.example")], None)
    upper = new_root().issue_ca("region", constraints=wide)
    chain = upper.issue_ca("issuing", constraints=narrow).chain
    assert "every SPIFFE ID of b.example, wh" in exposure_of(chain)[0].accepts


def test_an_empty_chain_is_an_error() -> None:
    with pytest.raises(ConfigError, match="expected a chain"):
        exposure_of([])
