"""Each plane does with each chain of the table what the table says."""

from datetime import UTC, datetime

import pytest

from bridge.x509.pem import encode_certificate
from tests.interop.planes.all_planes import ask_all
from tests.interop.planes.cases import COLUMNS, PLANES, rows
from tests.interop.planes.certificates import Chain, build
from tests.interop.planes.oddities import ODDITIES, change_of
from tests.interop.planes.verifiers import Verdicts, write

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("planes")]

_ROWS = rows()


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdicts]:
    """Return each plane's verdicts on all chains, by its letter."""
    now, folder = datetime.now(UTC), tmp_path_factory.mktemp("chains")
    chains = {
        f"{oddity}-{column}": _chain(oddity, column, now)
        for oddity in _ROWS
        for column in COLUMNS
    }
    write(chains, folder)
    return ask_all([*chains], folder, now)


def _chain(oddity: str, column: str, now: datetime) -> tuple[Chain, str]:
    if column != "beside":
        chain = build(change_of(oddity, column), now)
        return chain, encode_certificate(chain.anchor)
    chain = build({}, now)
    odd = build(change_of(oddity, "anchor"), now, "other-").anchor
    return chain, encode_certificate(odd) + encode_certificate(chain.anchor)


@pytest.mark.parametrize("oddity", _ROWS)
def test_planes_take_what_the_table_says(
    verdicts: dict[str, Verdicts], oddity: str
) -> None:
    for column, taken in _ROWS[oddity].items():
        said = {letter: one[f"{oddity}-{column}"] for letter, one in verdicts.items()}
        found = "".join(
            letter if not said.get(letter, letter not in taken) else "-"
            for letter in PLANES
        )
        assert found == taken, f"{column}: {said}"


def test_every_oddity_has_a_row_and_the_first_is_none() -> None:
    assert {*_ROWS} == {*ODDITIES}
    assert next(iter(_ROWS)) == "plain"
