"""How the archive's database is opened: its file, its settings and its tables."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from bridge.errors import ConfigError, LedgerError
from bridge.ledger.archive.schema import REVISION
from bridge.system.files import failure_text, locked

RETRY_RULE = "ledger.archive"
"""The rule of an error of the archive that may be gone at the next try."""
_BUSY_MILLISECONDS = 5_000
_CHECKPOINT_PAGES = 4_000
_CACHE_KIBIBYTES = 4_096
_BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database."""
_DAMAGED = ("malformed", "not a database")
"""How SQLite says that a file is none of its own any more."""

_Identity = tuple[int, int]
"""Device and inode."""


class Database:
    """An open database with the tables of the archive."""

    def __init__(self, engine: sa.Engine, path: Path | None) -> None:
        self.engine = engine
        self._path = path
        self._identity: _Identity | None = None

    @classmethod
    def open(cls, url: str, *, make: bool) -> Self:
        """Open the database at `url`. See `Archive.open`."""
        engine, path = _engine(url, make=make)
        database = cls(engine, path)
        try:
            with _prepared(path, make=make):
                with engine.begin() as connection:
                    _require_tables(connection, make=make)
                database._identity = _identity(path)
        except SQLAlchemyError as error:
            database.close()
            raise failed(error) from error
        except BaseException:
            database.close()
            raise
        return database

    def moved(self) -> bool:
        """Return whether the file is no longer the one that was opened."""
        return self._path is not None and _identity(self._path) != self._identity

    def close(self) -> None:
        """Release all connections."""
        self.engine.dispose()


def failed(error: SQLAlchemyError) -> LedgerError:
    """Build the error of a database that does not do what it is told."""
    detail = " ".join(str(error).split())[:500]
    if any(word in detail for word in _DAMAGED):
        detail = f"remove the archive, and it is made anew from the journals: {detail}"
    return LedgerError(
        "the archive of the ledger does not answer", rule=RETRY_RULE, detail=detail
    )


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite database; None for another database.

    Connects to nothing.

    Raises:
        ConfigError: The URL cannot be used.
    """
    try:
        parsed = sa.make_url(url)
        # Imports the driver.
        sa.create_engine(parsed).dispose()
    except ImportError as error:
        raise ConfigError(
            f"its database driver is not installed: {error}; install it into the "
            "bridge's environment, or use sqlite:///"
        ) from error
    except (SQLAlchemyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"expected a SQLAlchemy URL, such as sqlite:///archive.db: {error}"
        ) from error
    if parsed.get_backend_name() != "sqlite":
        return None
    if parsed.database in (None, "", ":memory:"):
        raise ConfigError("expected a file: sqlite:///FILE")
    return Path(parsed.database)


def _engine(url: str, *, make: bool) -> tuple[sa.Engine, Path | None]:
    try:
        path = sqlite_file(url)
    except ConfigError as error:
        raise ConfigError(f"ledger.archive: {error}") from error
    if path is None:
        return sa.create_engine(url, pool_pre_ping=True), None
    engine = sa.create_engine(url)

    def prepare(connection: Any, _record: object) -> None:
        # Python's driver begins a transaction before INSERT and its like, and none
        # before CREATE: a process that dies would leave half of the tables.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
        if make:
            # Readers and the feeder do not wait for each other. NORMAL may lose the
            # last transactions in a power cut, rows and position alike: they are read
            # from the journal again.
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = NORMAL")
            # What it keeps while a statement runs, to undo half of it: it is small.
            cursor.execute("PRAGMA temp_store = MEMORY")
            cursor.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            cursor.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        else:
            cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    sa.event.listen(engine, "connect", prepare)
    sa.event.listen(engine, "begin", begin)
    return engine, path


@contextmanager
def _prepared(path: Path | None, *, make: bool) -> Iterator[None]:
    # The file is there inside, and nobody else makes or brings up to date one in this
    # folder: workers start together.
    if path is None:
        yield
        return
    with ExitStack() as held:
        try:
            if make:
                held.enter_context(locked(path.parent))
            _touch(path, make=make)
        except OSError as error:
            raise LedgerError(
                f"{path}: the archive cannot be opened: {failure_text(path, error)}",
                rule=RETRY_RULE,
            ) from error
        yield


def _touch(path: Path, *, make: bool) -> None:
    # SQLite would make it readable by all.
    flags = os.O_RDWR | os.O_CREAT if make else os.O_RDONLY
    mode = os.R_OK | os.W_OK if make else os.R_OK
    # A file that is in order is not opened here: whoever closes a file gives up all
    # locks of this process on it, and a connection of SQLite may have some. Without
    # them another process takes itself for the last one and removes the log.
    if not (path.is_file() and os.access(path, mode)):
        os.close(os.open(path, flags | os.O_CLOEXEC, 0o600))
    if make and not path.stat().st_size:
        # Left by an archive that was deleted, of which another worker may not know
        # yet: they belong to its file, and would spoil this one.
        for suffix in _BESIDE:
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _identity(path: Path | None) -> _Identity | None:
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return found and (found.st_dev, found.st_ino)


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
            f"the archive was made by another version of the bridge: {error}; start "
            "that version, or name another archive: it is made anew from the journals"
        ) from error


_MIGRATING = threading.Lock()
