"""The tables of the archive, the same in every database."""

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

REVISION = "0001"
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


def _partial(column: str) -> None:
    # Most rows lack most of these: an index without them costs a third.
    present = text(f"{column} <> ''")
    Index(
        f"entries_{column}",
        entries.c[column],
        sqlite_where=present,
        postgresql_where=present,
    )


INDEXED = ("attempt", "caller", "serial", "key_sha256", "certificate_sha256")
"""What `search` finds without reading everything."""
for _column in INDEXED:
    _partial(_column)
