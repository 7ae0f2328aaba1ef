"""The tables of the archive, the same in every database."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    literal_column,
    text,
)

REVISION = "0003"
"""The migration that makes the tables below."""

metadata = MetaData()

entries = Table(
    "entries",
    metadata,
    Column("writer", String(63), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("attempt", String(32), nullable=False),
    Column("request", String(32), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("front", String(16), nullable=False),
    Column("cluster", String(63), nullable=False),
    Column("caller", Text, nullable=False),
    # Empty by default: a bridge of an earlier version may feed the same archive.
    Column("requester", Text, nullable=False, server_default=""),
    Column("verified_by", String(16), nullable=False, server_default=""),
    Column("pod_namespace", String(63), nullable=False, server_default=""),
    Column("pod_name", String(253), nullable=False, server_default=""),
    Column("pod_uid", String(128), nullable=False, server_default=""),
    Column("node", String(253), nullable=False, server_default=""),
    Column("issuing_ca", String(63), nullable=False),
    Column("serial", String(64), nullable=False),
    Column("key_sha256", String(64), nullable=False),
    Column("names", Text, nullable=False),
    Column("not_before", BigInteger),
    Column("not_after", BigInteger),
    Column("tbs_sha256", String(64), nullable=False),
    Column("certificate_sha256", String(64), nullable=False),
    Column("status", String(32), nullable=False),
    Column("rule", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    # The journal's line as it is, so that its hash can be computed again.
    Column("body", Text, nullable=False),
    Column("hash", String(64), nullable=False),
)
"""The rows of all journals. Text that a row does not have is empty."""

positions = Table(
    "positions",
    metadata,
    Column("writer", String(63), primary_key=True),
    Column("segment", Integer, nullable=False),
    Column("byte_offset", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("head", String(64), nullable=False),
)
"""How far each journal has been read; moves in the transaction of its rows."""

Index("entries_at", entries.c.at)

LATCH_ROWS = text("kind IN ('cleared', 'latched', 'stopped')")
"""The rows of what is latched, as the index has the condition."""
Index(
    "entries_latches",
    entries.c.at,
    sqlite_where=LATCH_ROWS,
    postgresql_where=LATCH_ROWS,
)


PREFIX_CHARACTERS = 16
INDEXED = ("attempt", "serial", "key_sha256", "certificate_sha256")
"""What `search` finds without reading everything, and `caller`."""


def prefix(column: ColumnElement[str]) -> ColumnElement[str]:
    """Return what the index of a column of digests is over.

    Digests are random: each row dirties a page of each index. An index of their first
    characters has a third of the pages, and finds as well.
    """
    one: ColumnElement[int] = literal_column("1")
    length: ColumnElement[int] = literal_column(str(PREFIX_CHARACTERS))
    return func.substr(column, one, length)


def _index(name: str, *what: ColumnElement[Any]) -> None:
    # Most rows lack most of these; an index need not hold the empty ones.
    present = text(f"{name} <> ''")
    Index(f"entries_{name}", *what, sqlite_where=present, postgresql_where=present)


_index("caller", entries.c.caller, entries.c.at)
for _column in INDEXED:
    _index(_column, prefix(entries.c[_column]))
