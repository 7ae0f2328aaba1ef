"""The rows of the ledger, from their types in `bridge.ledger.events`."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args

from bridge.ledger import events
from tests.support.documents.docstrings import annotations, of_attributes, of_class
from tests.support.documents.markdown import code, table

_EVERY_ROW = (
    ("kind", "str", "What the row says; see below."),
    ("seq", "int", "The number of the row in its journal, from 0."),
    ("prev", "str", "SHA-256 of the line before, in 64 hex digits."),
    ("at", "int", "When it was written, in microseconds since 1970-01-01 UTC."),
)
_NAMES = {"str": "text", "int": "integer", "list[str]": "list of texts"}


def lines() -> Iterator[str]:
    """Yield the document: the fields of every row, then those of each kind."""
    yield "A journal has one JSON object a line. Times inside a row are whole seconds"
    yield "since 1970-01-01 UTC. Digests and serial numbers are lower-case hex. No"
    yield "value is secret. `meshca ledger search -o json` and `meshca ledger export`"
    yield "show the same fields."
    yield ""
    yield "## Every row"
    yield ""
    yield from table(("Field", "Type", "Meaning"), (_row(*each) for each in _EVERY_ROW))
    for kind in get_args(events.Event):
        yield ""
        yield f"## {_names(kind)}"
        yield ""
        yield of_class(kind)
        yield ""
        yield from table(("Field", "Type", "Meaning"), _fields(kind))
    for values in (events.Purpose, events.Outcome):
        texts = of_attributes(values)
        yield ""
        yield f"## Values of `{_FIELD_OF[values.__name__]}`"
        yield ""
        rows = [(code(each.value), texts.get(each.name, "")) for each in values]
        yield from table(("Value", "Meaning"), rows)


_FIELD_OF = {"Purpose": "purpose", "Outcome": "kind"}


def _names(kind: type[Any]) -> str:
    own = kind.__dict__.get("kind")
    if isinstance(own, str):
        return code(own)
    if kind is events.CertificateEnding:
        return "`issued` or `unknown`, with the certificate"
    if kind is events.CallEnding:
        return "`refused` or `failed`, before an attempt, with the caller"
    return ", ".join(code(each.value) for each in events.Outcome)


def _fields(kind: type[Any]) -> Iterator[tuple[str, str, str]]:
    # An outcome repeats fields of the intent: they are described there. Fields that a
    # row has from another one are described with that one.
    texts = of_attributes(events.Intent) | of_attributes(kind)
    types = annotations(kind)
    for field in fields(kind):
        if field.name != "kind" and field.name in types:
            yield _row(field.name, types.get(field.name, ""), texts.get(field.name, ""))


def _row(name: str, kind: str, text: str) -> tuple[str, str, str]:
    return code(name), _NAMES.get(kind, "mapping"), text
