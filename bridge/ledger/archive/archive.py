"""The database behind the journals: what `search` and the reports read.

Importing this module imports SQLAlchemy, which takes half a second: processes that sign
do not import it.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from bridge.errors import LedgerError
from bridge.ledger.archive.database import Database, failed
from bridge.ledger.archive.queries import Query, attempts_of, select, select_attempts
from bridge.ledger.archive.schema import LATCH_ROWS, entries, positions
from bridge.ledger.chain import GENESIS, Head

_READ_ROWS = 1_000
_READ_ATTEMPTS = 500
"""A statement has at most some thousand parameters."""


class Position(NamedTuple):
    """How far the journal of one writer has been read."""

    byte_offset: int
    """In segment `head.segment`."""
    head: Head
    """Of the last row that was read."""


START = Position(0, Head(0, -1, GENESIS))


class Archive:
    """An open archive. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._engine = database.engine
        compiled = sa.insert(entries).compile(self._engine)
        self._insert = compiled.string
        self._order = getattr(compiled, "positiontup", None)

    @classmethod
    def open(cls, url: str, *, make: bool = True) -> Self:
        """Open the archive at `url`.

        Args:
            url: A SQLAlchemy URL; the file of a SQLite database is absolute.
            make: Make the database or bring its tables up to date. Otherwise it is
                only read, and has to be there.

        Raises:
            ConfigError: The URL cannot be used.
            LedgerError: The database cannot be opened, or has other tables.
        """
        return cls(Database.open(url, make=make))

    def moved(self) -> bool:
        """Return whether the file is no longer the one that was opened.

        Whoever deletes or replaces an archive leaves this object writing to a file
        without a name: it has to be closed, and opened anew.
        """
        return self._database.moved()

    def position(self, writer: str) -> Position:
        """Return how far `writer` has been read.

        Raises:
            LedgerError: The database does not answer.
        """
        wanted = sa.select(positions).where(positions.c.writer == writer)
        with self._connected() as connection:
            row = connection.execute(wanted).one_or_none()
        if row is None:
            return START
        return Position(row.byte_offset, Head(row.segment, row.seq, row.head))

    def add(
        self,
        writer: str,
        before: Position,
        after: Position,
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add rows and move the position, both or neither.

        Args:
            writer: Whose rows they are.
            before: Where the position is now.
            after: Where it will be.
            rows: By the columns of `entries`.

        Raises:
            LedgerError: The database does not answer (rule `ledger.archive`), or the
                position is elsewhere: somebody else feeds this writer, too.
        """
        values = _columns(after)
        with self._connected() as connection:
            # The position first: that takes SQLite's write lock at once.
            if not _move(connection, writer, before, values):
                raise LedgerError(
                    f"the archive's position of {writer} is not where this "
                    "process left it: two servers feed one writer",
                    rule="ledger.position",
                )
            if rows:
                # Without SQLAlchemy's own handling of parameters, which costs as much
                # as SQLite's work.
                connection.exec_driver_sql(self._insert, self._parameters(rows))
            connection.commit()

    def search(self, query: Query) -> Iterator[Mapping[str, Any]]:
        """Yield the entries that match, oldest first.

        An entry that matches brings the others of its attempt along: a certificate's
        hash is in the outcome, and its names are in the intent.

        Raises:
            LedgerError: The database does not answer.
        """
        with self._connected() as connection:
            attempts: Sequence[str] = ()
            if query.serial or query.certificate or query.key:
                attempts = connection.execute(attempts_of(query)).scalars().all()
            for row in connection.execute(select(query, attempts)):
                yield row._asdict()

    def of_attempts(
        self, attempts: Sequence[str], kind: str = ""
    ) -> Iterator[Mapping[str, Any]]:
        """Yield the entries of `attempts`, oldest first; all, or those of one kind.

        Raises:
            LedgerError: The database does not answer.
        """
        with self._connected() as connection:
            for first in range(0, len(attempts), _READ_ATTEMPTS):
                some = attempts[first : first + _READ_ATTEMPTS]
                for row in connection.execute(select_attempts(some, kind)):
                    yield row._asdict()

    def rows(self, writer: str) -> Generator[Mapping[str, Any]]:
        """Yield the entries of `writer` as they were added, in order.

        All are of one moment, the first call of `next`.

        Raises:
            LedgerError: The database does not answer.
        """
        wanted = sa.select(entries).where(entries.c.writer == writer)
        options = {"yield_per": _READ_ROWS}
        with self._connected() as connection:
            found = connection.execute(
                wanted.order_by(entries.c.seq), execution_options=options
            )
            for row in found:
                yield row._asdict()

    def latch_rows(self) -> list[str]:
        """Return the lines of all rows `latched`, `stopped` and `cleared`, by time.

        Raises:
            LedgerError: The database does not answer.
        """
        wanted = sa.select(entries.c.body).where(LATCH_ROWS).order_by(entries.c.at)
        with self._connected() as connection:
            return list(connection.execute(wanted).scalars())

    def writers(self) -> list[str]:
        """Return the names of all whose rows are here.

        Raises:
            LedgerError: The database does not answer.
        """
        wanted = sa.select(positions.c.writer).order_by(positions.c.writer)
        with self._connected() as connection:
            return list(connection.execute(wanted).scalars())

    def set_aside(self, writer: str, end: Position, name: str) -> int:
        """Give the entries of `writer` after `end` to `name`, and go on after `end`.

        A journal that lost its last rows will use their numbers again. What the
        archive has of them may be all that is left: it is kept, and found by `search`.

        Returns:
            How many they were.

        Raises:
            LedgerError: The database does not answer.
        """
        column, ours = entries.c, positions.c
        beyond = (column.writer == writer) & (column.seq > end.head.seq)
        with self._connected() as connection:
            moved = connection.execute(
                sa.update(entries).where(beyond).values(writer=name)
            )
            if not moved.rowcount:
                return 0
            held = sa.select(positions).where(ours.writer == writer)
            before = connection.execute(held).one()
            values = {**before._asdict(), "writer": name}
            connection.execute(sa.insert(positions).values(**values))
            connection.execute(sa.delete(positions).where(ours.writer == writer))
            if end != START:
                connection.execute(
                    sa.insert(positions).values(writer=writer, **_columns(end))
                )
            connection.commit()
        return int(moved.rowcount)

    @contextmanager
    def _connected(self) -> Iterator[sa.Connection]:
        # What is not committed in the block does not happen.
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise failed(error) from error

    def _parameters(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        if self._order is None:
            return list(rows)
        values = itemgetter(*self._order)
        return [values(row) for row in rows]

    def close(self) -> None:
        """Release all connections."""
        self._database.close()


def _columns(position: Position) -> dict[str, object]:
    head = position.head
    return {
        "segment": head.segment,
        "byte_offset": position.byte_offset,
        "seq": head.seq,
        "head": head.digest,
    }


def _move(
    connection: sa.Connection, writer: str, before: Position, values: dict[str, object]
) -> bool:
    if before == START:
        connection.execute(sa.insert(positions).values(writer=writer, **values))
        return True
    moved = connection.execute(
        sa.update(positions)
        .where(
            positions.c.writer == writer,
            positions.c.seq == before.head.seq,
            positions.c.byte_offset == before.byte_offset,
            positions.c.segment == before.head.segment,
        )
        .values(**values)
    )
    return moved.rowcount == 1
