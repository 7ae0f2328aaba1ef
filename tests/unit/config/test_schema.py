"""`docs/reference/configuration.md` has every key, as the schema has it."""

import re
from pathlib import Path

import pytest

from tests.support.documents.configuration import Key, all_keys

DOCUMENT = Path(__file__).parents[3] / "docs/reference/configuration.md"
ROW = re.compile(r"\| `([^`]+)` \| .* \|")
KEYS = [*all_keys()]


def documented() -> list[str]:
    """Return the rows of keys that the document has."""
    rows = [ROW.fullmatch(line) for line in DOCUMENT.read_text("utf-8").splitlines()]
    return [row[0] for row in rows if row]


def row_of(key: Key) -> str:
    return f"| {' | '.join(key.row)} |"


def test_the_keys_are_found() -> None:
    assert len(KEYS) > 50


@pytest.mark.parametrize("key", KEYS, ids=[key.path for key in KEYS])
def test_a_key_is_documented_as_it_is_declared(key: Key) -> None:
    # Two plugins may have an option of one name, each with its own meaning.
    assert documented().count(row_of(key)) == 1, "make docs"


@pytest.mark.parametrize("key", KEYS, ids=[key.path for key in KEYS])
def test_a_key_has_a_description(key: Key) -> None:
    assert key.meaning


def test_no_other_key_is_documented() -> None:
    assert sorted(documented()) == sorted(row_of(key) for key in KEYS)
