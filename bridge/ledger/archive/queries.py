"""What can be asked of the archive, as statements that its indexes answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bridge.ledger.archive.schema import PREFIX_CHARACTERS, entries, prefix
from bridge.ledger.events import Settled

_ATTEMPTS = 1_000
"""Of one serial number, certificate or key there are a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for; empty fields match everything. Times in microseconds."""

    serial: str = ""
    caller: str = ""
    certificate: str = ""
    key: str = ""
    kind: str = ""
    namespace: str = ""
    """Of the caller, as its SPIFFE ID says."""
    pod: str = ""
    """Of the caller, or of who asked for it: `namespace/name`."""
    cluster: str = ""
    issuing_ca: str = ""
    request: str = ""
    purpose: str = ""
    unsettled: bool = False
    """Only rows of attempts that have no row `settled`."""
    since: int | None = None
    until: int | None = None
    limit: int | None = None
    """The newest that many."""


def _wanted(query: Query) -> list[sa.ColumnElement[bool]]:
    column = entries.c
    digests = (
        (column.serial, _spellings(query.serial) if query.serial else set()),
        (column.certificate_sha256, {query.certificate} - {""}),
        (column.key_sha256, {query.key} - {""}),
    )
    wanted = [_is_any(column, values) for column, values in digests if values]
    if query.caller:
        wanted += [column.caller == query.caller, column.caller != sa.text("''")]
    return wanted


def attempts_of(query: Query) -> sa.Select[Any]:
    """Select the attempts that have an entry which matches."""
    attempt = entries.c.attempt
    found = sa.select(attempt).where(*_wanted(query), attempt != "").distinct()
    return found.limit(_ATTEMPTS)


def select(query: Query, attempts: Sequence[str] = ()) -> sa.Select[Any]:
    """Select the entries that match, and all of `attempts`, oldest first."""
    column = entries.c
    chosen = sa.select(entries)
    if wanted := _wanted(query):
        condition = sa.and_(*wanted)
        if attempts:
            condition = sa.or_(condition, _is_any(column.attempt, set(attempts)))
        chosen = chosen.where(condition)
    chosen = chosen.where(*_narrowed(query))
    if query.limit is None:
        return chosen.order_by(column.at, column.writer, column.seq)
    newest = chosen.order_by(column.at.desc(), column.writer, column.seq.desc())
    picked = newest.limit(query.limit).subquery()
    order = (picked.c.at, picked.c.writer, picked.c.seq)
    return sa.select(picked).order_by(*order)


def _narrowed(query: Query) -> Iterator[sa.ColumnElement[bool]]:
    column = entries.c
    for name in ("kind", "cluster", "issuing_ca", "request", "purpose"):
        if value := getattr(query, name):
            yield column[name] == value
    if query.namespace:
        yield column.caller.like(f"%/ns/{query.namespace}/sa/%")
    if query.pod:
        yield _is_of_pod(*query.pod.split("/"))
    if query.unsettled:
        yield ~_is_settled()
    if query.since is not None:
        yield column.at >= query.since
    if query.until is not None:
        yield column.at < query.until


def select_attempts(attempts: Sequence[str], kind: str = "") -> sa.Select[Any]:
    """Select the entries of `attempts`, oldest first; all, or those of one kind."""
    column = entries.c
    chosen = sa.select(entries).where(_is_any(column.attempt, set(attempts)))
    if kind:
        chosen = chosen.where(column.kind == kind)
    return chosen.order_by(column.at, column.writer, column.seq)


def _is_of_pod(namespace: str, name: str) -> sa.ColumnElement[bool]:
    # A row of format 1 has its pod in the body alone.
    column = entries.c
    in_format_1 = column.body.like(f'%"pod":"{namespace}/{name}/%')
    of_pod = (column.pod_name == name) & (column.pod_namespace == namespace)
    return of_pod | in_format_1


def _is_settled() -> sa.ColumnElement[bool]:
    # In the words of the index, which `prefix` explains.
    other = entries.alias("other")
    return (
        sa.select(sa.literal_column("1"))
        .select_from(other)
        .where(
            prefix(other.c.attempt) == prefix(entries.c.attempt),
            other.c.attempt == entries.c.attempt,
            other.c.attempt != sa.text("''"),
            other.c.kind == Settled.kind,
        )
        .correlate(entries)
        .exists()
    )


def _is_any(column: sa.ColumnElement[str], values: set[str]) -> sa.ColumnElement[bool]:
    # In the words of the index, which `prefix` explains.
    starts = {value[:PREFIX_CHARACTERS] for value in values}
    return prefix(column).in_(starts) & column.in_(values) & (column != sa.text("''"))


def _spellings(serial: str) -> set[str]:
    # Tools show whole bytes; a number has no leading zero.
    return {serial, serial.lstrip("0"), serial.zfill(len(serial) + len(serial) % 2)}
