"""`docs/reference/configuration.md` has every key, as the schema has it."""

import re
from pathlib import Path

import pytest

from tests.support.documents.configuration import Key, all_keys

DOCUMENT = Path(__file__).parents[3] / "docs/reference/configuration.md"
ROW = re.compile(r"\| `([^`]+)` \| .* \|")
KEYS = [*all_keys()]


def documented() -> dict[str, str]:
    """Return the row of each key that the document has."""
    rows = [ROW.fullmatch(line) for line in DOCUMENT.read_text("utf-8").splitlines()]
    found = [(row[1], row[0]) for row in rows if row]
    assert len(dict(found)) == len(found), "a key stands there twice"
    return dict(found)


def test_the_keys_are_found() -> None:
    assert len(KEYS) > 50


@pytest.mark.parametrize("key", KEYS, ids=[key.path for key in KEYS])
def test_a_key_is_documented_as_it_is_declared(key: Key) -> None:
    assert documented().get(key.path) == f"| {' | '.join(key.row)} |", "make docs"


@pytest.mark.parametrize("key", KEYS, ids=[key.path for key in KEYS])
def test_a_key_has_a_description(key: Key) -> None:
    assert key.meaning


def test_no_other_key_is_documented() -> None:
    assert set(documented()) == {key.path for key in KEYS}
