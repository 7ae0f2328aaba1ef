"""A row's bytes: canonical JSON, whatever the values."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.ledger.archive.schema import entries
from bridge.ledger.chain import canonical, encode, entry, link, parse
from bridge.ledger.events import (
    COLUMNS,
    Closed,
    Ending,
    Event,
    Intent,
    Opened,
    Summary,
)
from tests.unit.ledger.support import make_ended, make_intent

VALUES: dict[object, st.SearchStrategy[Any]] = {
    str: st.text(),
    int: st.integers(-(2**63), 2**63),
    list[str]: st.lists(st.text(), max_size=4),
    dict[str, int]: st.dictionaries(st.text(), st.integers(0, 2**53), max_size=4),
}


def to_fields(event: Event) -> dict[str, Any]:
    return {**dataclasses.asdict(event), "kind": event.kind}


def rows_of(event: type[Event]) -> st.SearchStrategy[Event]:
    values = {field.name: VALUES[field.type] for field in dataclasses.fields(event)}
    return st.builds(event, **values)


EVENTS = st.one_of(
    [rows_of(kind) for kind in (Intent, Ending, Summary, Opened, Closed)]
)


@given(EVENTS, st.integers(0, 2**60), st.integers(0, 2**53))
def test_a_line_is_the_canonical_json_of_its_row(
    event: Event, at: int, seq: int
) -> None:
    prev = "ab" * 32
    expected = canonical({**to_fields(event), "at": at, "prev": prev, "seq": seq})
    assert link(encode(event, at), prev, seq) == expected


@given(EVENTS)
def test_a_line_holds_no_line_break_and_reads_back(event: Event) -> None:
    line = link(encode(event, 5), "0" * 64, 7)
    assert b"\n" not in line
    row = parse(line)
    values = dict(row.values)
    assert (values.pop("at"), values.pop("prev"), values.pop("seq")) == (5, "0" * 64, 7)
    assert values == to_fields(event)


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    row = parse(link(encode(make_ended(detail="a\ud800b"), 1), "0" * 64, 0))
    assert row.values["detail"] == "a?b"


@pytest.mark.parametrize(
    ("field", "value"),
    [("seq", None), ("seq", "1"), ("seq", True), ("prev", 1), ("at", 1.5), ("kind", 0)],
)
def test_a_row_whose_chain_fields_have_other_types_is_none(
    field: str, value: object
) -> None:
    values = json.loads(link(encode(make_intent(), 1), "0" * 64, 0))
    with pytest.raises(ValueError, match="not a row"):
        parse(canonical({**values, field: value}))


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b"7", b'{"seq":1', b"\xff{}"])
def test_bytes_that_are_no_row_are_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(line)


def test_an_entry_has_the_columns_of_the_archive() -> None:
    row = parse(link(encode(make_intent(), 1), "0" * 64, 0))
    assert set(entry("w0", row)) == set(COLUMNS)
    assert tuple(column.name for column in entries.columns) == COLUMNS
