"""`docs/configuration.md` has every key, with its default, and no other key."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bridge.config import BridgeConfig
from bridge.config.diagnostics import section_of
from bridge.config.types import written
from bridge_file.options import Options

DOCUMENT = Path(__file__).parents[3] / "docs/configuration.md"
ROW = re.compile(r"\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|(.*)\|")
LISTS: dict[object, str] = {tuple: "[]", dict: ".*"}


def documented() -> dict[str, str]:
    """Return the default of each key that the document has."""
    rows = [ROW.fullmatch(line) for line in DOCUMENT.read_text("utf-8").splitlines()]
    found = [(row[1], row[3].strip(" `")) for row in rows if row]
    assert len(dict(found)) == len(found), "a key stands there twice"
    return dict(found)


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "-"
    if isinstance(value, timedelta):
        return written(value)
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def keys(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield above + name, default_of(field)
        else:
            many = LISTS.get(get_origin(field.annotation), "")
            yield from keys(section, f"{above}{name}{many}.")


KEYS = [*keys(BridgeConfig), *keys(Options)]


def test_the_keys_are_found() -> None:
    assert len(KEYS) > 50


@pytest.mark.parametrize(("key", "default"), KEYS, ids=[key for key, _ in KEYS])
def test_a_key_is_documented_with_its_default(key: str, default: str) -> None:
    assert documented().get(key) == default


def test_no_other_key_is_documented() -> None:
    assert set(documented()) == {key for key, _ in KEYS}
