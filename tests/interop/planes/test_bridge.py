"""The bridge takes a chain for a data plane where the data plane takes it."""

from datetime import UTC, datetime

import pytest
from cryptography import x509

from bridge.dataplanes.acceptance import require_accepted
from bridge.dataplanes.planes import DataPlane
from bridge.errors import ConfigError
from bridge.x509.path import validate_chain
from bridge.x509.pem import encode_certificate, parse_certificates
from tests.interop.planes.cases import STRICTER, rows
from tests.interop.planes.certificates import TIERS, build
from tests.interop.planes.oddities import change_of

pytestmark = [
    pytest.mark.interop,
    pytest.mark.xdist_group("planes"),
]

LETTERS = {
    "b": DataPlane.SIDECAR,
    "a": DataPlane.AMBIENT,
    "l": DataPlane.LINKERD,
}
_ROWS = rows()


def refusals(oddity: str, tier: str) -> dict[str, str]:
    """Return why the bridge refuses a chain, by the data plane that is served."""
    now = datetime.now(UTC)
    chain = build(change_of(oddity, tier), now)
    try:
        issuing, intermediate, anchor = (
            parse_certificates(encode_certificate(one).encode(), "x.pem")[0]
            for one in chain.cas
        )
        validate_chain(issuing, [intermediate], [anchor], now=now, source="x.pem")
    except ConfigError as error:
        return dict.fromkeys(LETTERS, str(error))
    return {
        letter: refusal([issuing, intermediate, anchor], plane)
        for letter, plane in LETTERS.items()
    }


def refusal(path: list[x509.Certificate], plane: DataPlane) -> str:
    try:
        require_accepted(path, {plane: True}, source="x.pem")
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("oddity", _ROWS)
def test_a_chain_is_taken_where_the_data_plane_takes_it(oddity: str) -> None:
    for tier in TIERS:
        found = refusals(oddity, tier)
        taken = {letter for letter in LETTERS if not found[letter]}
        expected = {*_ROWS[oddity][tier]} & LETTERS.keys()
        if oddity in STRICTER and tier in STRICTER[oddity].tiers:
            assert taken <= expected, f"{tier}: {found}"
        else:
            assert taken == expected, f"{tier}: {found}"
