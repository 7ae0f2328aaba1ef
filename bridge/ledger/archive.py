"""The database behind the journals: what `search` and the reports read.

Importing this module imports SQLAlchemy, which takes its time: the signing path does
not, and the feeder's thread does it while the server starts.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from bridge.errors import ConfigError, LedgerError
from bridge.ledger.feeder import RETRY_RULE
from bridge.ledger.rows import GENESIS, Head
from bridge.ledger.schema import PREFIX_CHARACTERS, REVISION, entries, positions, prefix

_BUSY_MILLISECONDS = 5_000
_ATTEMPTS = 1_000
"""Of one serial number, certificate or key there are a few."""
_CHECKPOINT_PAGES = 4_000
_CACHE_KIBIBYTES = 16_384


class Position(NamedTuple):
    """How far the journal of one writer has been read."""

    byte_offset: int
    """In segment `head.segment`."""
    head: Head
    """Of the last row that was read."""


START = Position(0, Head(0, -1, GENESIS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for; empty fields match everything. Times in microseconds."""

    serial: str = ""
    caller: str = ""
    certificate: str = ""
    key: str = ""
    kind: str = ""
    since: int | None = None
    until: int | None = None
    limit: int | None = None
    """The newest that many."""


class Archive:
    """An open archive. Safe to share between threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        compiled = sa.insert(entries).compile(engine)
        self._insert = compiled.string
        self._order = getattr(compiled, "positiontup", None)

    @classmethod
    def open(
        cls, url: str, resolve: Callable[[Path], Path], *, make: bool = True
    ) -> Self:
        """Open the archive at `url`.

        Args:
            url: A SQLAlchemy URL; a SQLite file is relative as `resolve` says.
            resolve: Makes a path absolute.
            make: Make the database or bring its tables up to date. Otherwise it is
                only read, and has to be there.

        Raises:
            ConfigError: The URL cannot be used.
            LedgerError: The database cannot be opened, or has other tables.
        """
        engine = _engine(url, resolve, make=make)
        archive = cls(engine)
        try:
            with engine.begin() as connection:
                _require_tables(connection, make=make)
        except SQLAlchemyError as error:
            archive.close()
            raise _failed(error) from error
        except BaseException:
            archive.close()
            raise
        return archive

    def position(self, writer: str) -> Position:
        """Return how far `writer` has been read.

        Raises:
            LedgerError: The database does not answer.
        """
        wanted = sa.select(positions).where(positions.c.writer == writer)
        try:
            with self._engine.connect() as connection:
                row = connection.execute(wanted).one_or_none()
        except SQLAlchemyError as error:
            raise _failed(error) from error
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
        values = {
            "segment": after.head.segment,
            "byte_offset": after.byte_offset,
            "seq": after.head.seq,
            "head": after.head.digest,
        }
        try:
            with self._engine.begin() as connection:
                # The position first: that takes SQLite's write lock at once.
                if not _move(connection, writer, before, values):
                    raise LedgerError(
                        f"the archive's position of {writer} is not where this "
                        "process left it: two servers feed one writer",
                        rule="ledger.position",
                    )
                if rows:
                    # Past SQLAlchemy's own handling of parameters, which costs as
                    # much as SQLite's work: this thread shares a core with signing.
                    connection.exec_driver_sql(self._insert, self._parameters(rows))
        except SQLAlchemyError as error:
            raise _failed(error) from error

    def search(self, query: Query) -> Iterator[Mapping[str, Any]]:
        """Yield the entries that match, oldest first.

        An entry that matches brings the others of its attempt along: a certificate's
        hash is in the outcome, and its names are in the intent.

        Raises:
            LedgerError: The database does not answer.
        """
        try:
            with self._engine.connect() as connection:
                attempts: Sequence[str] = ()
                if query.serial or query.certificate or query.key:
                    attempts = connection.execute(_attempts(query)).scalars().all()
                for row in connection.execute(_select(query, attempts)):
                    yield row._asdict()
        except SQLAlchemyError as error:
            raise _failed(error) from error

    def _parameters(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        if self._order is None:
            return list(rows)
        values = itemgetter(*self._order)
        return [values(row) for row in rows]

    def close(self) -> None:
        """Release all connections."""
        self._engine.dispose()


def _engine(url: str, resolve: Callable[[Path], Path], *, make: bool) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_pre_ping=True)
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigError(
            f"ledger.archive: expected a SQLAlchemy URL of an installed database "
            f"driver, such as sqlite:///archive.db: {error}"
        ) from error
    if parsed.database in (None, "", ":memory:"):
        raise ConfigError(f"ledger.archive: expected a file: sqlite:///FILE ({url!r})")
    path = resolve(Path(parsed.database))
    try:
        # SQLite would make it readable by all.
        flags = os.O_RDWR | os.O_CREAT if make else os.O_RDONLY
        os.close(os.open(path, flags | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise LedgerError(
            f"{path}: the archive cannot be opened: {error.strerror}",
            rule=RETRY_RULE,
        ) from error
    engine = sa.create_engine(parsed.set(database=str(path)))

    def prepare(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
        if make:
            # Readers and the feeder do not wait for each other. NORMAL may lose the
            # last transactions in a power cut, rows and position alike: they are read
            # from the journal again.
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = NORMAL")
            cursor.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            cursor.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        else:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    sa.event.listen(engine, "connect", prepare)
    return engine


def _require_tables(connection: sa.Connection, *, make: bool) -> None:
    found = _revision(connection)
    if found == REVISION:
        return
    if not make:
        raise LedgerError(
            f"the archive has tables of revision {found or 'none'}, and {REVISION} is "
            "expected: start the server once"
        )
    _migrate(connection)


def _revision(connection: sa.Connection) -> str:
    if not sa.inspect(connection).has_table("alembic_version"):
        return ""
    found = connection.execute(sa.text("SELECT version_num FROM alembic_version"))
    return str(found.scalar_one_or_none() or "")


def _migrate(connection: sa.Connection) -> None:
    # Alembic takes as long to import as SQLAlchemy, and is needed once in a schema.
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415 - see above
    from alembic.util import CommandError  # noqa: PLC0415 - see above

    config = Config()
    folder = Path(__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        # Alembic keeps its context in globals of a module: one at a time.
        with _MIGRATING:
            command.upgrade(config, "head")
    except CommandError as error:
        raise LedgerError(
            f"the archive was made by another version of the bridge: {error}"
        ) from error


_MIGRATING = threading.Lock()


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


def _attempts(query: Query) -> sa.Select[Any]:
    attempt = entries.c.attempt
    found = sa.select(attempt).where(*_wanted(query), attempt != "").distinct()
    return found.limit(_ATTEMPTS)


def _select(query: Query, attempts: Sequence[str] = ()) -> sa.Select[Any]:
    column = entries.c
    chosen = sa.select(entries)
    if wanted := _wanted(query):
        condition = sa.and_(*wanted)
        if attempts:
            condition = sa.or_(condition, _is_any(column.attempt, set(attempts)))
        chosen = chosen.where(condition)
    if query.kind:
        chosen = chosen.where(column.kind == query.kind)
    if query.since is not None:
        chosen = chosen.where(column.at >= query.since)
    if query.until is not None:
        chosen = chosen.where(column.at < query.until)
    if query.limit is None:
        return chosen.order_by(column.at, column.writer, column.seq)
    newest = chosen.order_by(column.at.desc(), column.writer, column.seq.desc())
    picked = newest.limit(query.limit).subquery()
    order = (picked.c.at, picked.c.writer, picked.c.seq)
    return sa.select(picked).order_by(*order)


def _is_any(column: sa.ColumnElement[str], values: set[str]) -> sa.ColumnElement[bool]:
    # In the words of the index, which `prefix` explains.
    starts = {value[:PREFIX_CHARACTERS] for value in values}
    return prefix(column).in_(starts) & column.in_(values) & (column != sa.text("''"))


def _spellings(serial: str) -> set[str]:
    # Tools show whole bytes; a number has no leading zero.
    return {serial, serial.lstrip("0"), serial.zfill(len(serial) + len(serial) % 2)}


def _failed(error: SQLAlchemyError) -> LedgerError:
    return LedgerError(
        "the archive of the ledger does not answer",
        rule=RETRY_RULE,
        detail=" ".join(str(error).split())[:500],
    )
