"""What watches have seen of the objects of clusters: an index that processes share.

One process writes what it watches, and all workers look up in it. It is a database file
in a folder of the bridge's own, which lives as long as the bridge runs: a worker that
starts finds all there is, and one that reads sees a deletion as soon as it is written.

Times of watches are those of the system's monotonic clock, which all processes share.
"""

import logging
import sqlite3
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from bridge.errors import ReviewError

PODS, ACCOUNTS = "pods", "serviceaccounts"
KINDS = (PODS, ACCOUNTS)
"""The resources that are watched."""
_LONGEST = 253
"""Characters of a name in Kubernetes: a DNS subdomain."""
_LONGEST_UID = 64
_READ_SECONDS = 1.0
"""How long a reader waits for a lock: the API server can be asked instead."""
_WRITE_SECONDS = 5.0
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SETTINGS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -512;
PRAGMA mmap_size = 134217728;
"""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
  source TEXT, kind TEXT, namespace TEXT, name TEXT, uid TEXT, account TEXT, node TEXT,
  deleted_at REAL, has_ended INTEGER,
  PRIMARY KEY (source, kind, namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS watches (
  source TEXT, kind TEXT, seen_at REAL, trouble TEXT, PRIMARY KEY (source, kind)
);
"""
_PUT = "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FIND = (
    "SELECT namespace, name, uid, account, node, deleted_at, has_ended FROM objects "
    "WHERE source = ? AND kind = ? AND namespace = ? AND name = ?"
)
_SOURCES = "SELECT source FROM objects UNION SELECT source FROM watches"
_FORGET = (
    "DELETE FROM objects WHERE source = ?",
    "DELETE FROM watches WHERE source = ?",
)
_SEEN = (
    "INSERT INTO watches VALUES (?, ?, ?, '') ON CONFLICT (source, kind) "
    "DO UPDATE SET seen_at = excluded.seen_at, trouble = ''"
)
_TROUBLE = (
    "INSERT INTO watches VALUES (?, ?, NULL, ?) ON CONFLICT (source, kind) "
    "DO UPDATE SET trouble = excluded.trouble"
)
_log = logging.getLogger(__name__)


class ClusterObject(NamedTuple):
    """What is kept of a pod or a service account."""

    namespace: str
    name: str
    uid: str
    account: str = ""
    """Of a pod: the name of its service account."""
    node: str = ""
    """Of a pod: the name of its node; empty until it has one."""
    deleted_at: float | None = None
    """Its `deletionTimestamp`, in seconds since 1970: when it should be gone."""
    has_ended: bool = False
    """Of a pod: whether its phase is Failed or Succeeded."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "ClusterObject":
        """Read an object as an API server writes it, whole or its metadata alone.

        Raises:
            ValueError: It is no such object, or has text that is no name.
        """
        try:
            metadata, spec = found["metadata"], found.get("spec") or {}
            status, deleted = found.get("status") or {}, None
            if stamp := metadata.get("deletionTimestamp"):
                deleted = datetime.fromisoformat(stamp).timestamp()
            # Thousands of pods have these of a few.
            namespace, account, node = (
                sys.intern(_text(value or ""))
                for value in (
                    metadata.get("namespace"),
                    spec.get("serviceAccountName"),
                    spec.get("nodeName"),
                )
            )
            return cls(
                namespace,
                _text(metadata["name"]),
                _text(metadata["uid"], _LONGEST_UID),
                account,
                node,
                deleted,
                status.get("phase") in {"Failed", "Succeeded"},
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"expected an object with its metadata: {error}") from None


def _text(value: object, longest: int = _LONGEST) -> str:
    if not isinstance(value, str):
        raise TypeError("expected text")
    if len(value) > longest:
        raise ValueError(f"expected a text of at most {longest} characters")
    # Names and UIDs of Kubernetes are. Other text takes four times as much memory, and
    # JSON can have half a surrogate pair.
    if not value.isascii():
        raise ValueError("expected a text in ASCII")
    return value


@dataclass(frozen=True, slots=True)
class WatchState:
    """How up to date the watches of one cluster are."""

    seen_at: float | None
    """When the watch that lags most last heard of its API server, in seconds of the
    monotonic clock; None if one has not listed its objects yet."""
    trouble: str = ""
    """What is wrong with them now; empty if nothing is."""


class _Held(NamedTuple):
    connection: sqlite3.Connection
    file: tuple[int, int] | None
    """Which file the path was when the connection was opened."""


class ObjectIndex:
    """The index of one bridge. Safe between threads, and between processes.

    Args:
        path: Its file. `create` makes it; until then, nothing was seen.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: deque[_Held] = deque()
        self._busy_seconds = _READ_SECONDS

    def create(self, sources: Iterable[str], names: Iterable[str] = ()) -> None:
        """Make the file if it is not there, and forget all clusters but these.

        A damaged file is made anew. Who calls this is the writer.

        Args:
            sources: What clusters are called in it.
            names: Of clusters whose sources are kept, whichever they are.

        Raises:
            ReviewError: The file cannot be written.
        """
        self._busy_seconds = _WRITE_SECONDS
        kept, named = frozenset(sources), frozenset(names)

        def is_gone(source: str) -> bool:
            return source not in kept and source.rpartition(" ")[0] not in named

        try:
            self._make(is_gone)
        except ReviewError as error:
            if not _is_damage(error.__cause__):
                raise
            _log.warning("the index of what was watched is made anew: %s", error.detail)
            self._remove()
            self._make(is_gone)

    def forget(self, source: str) -> None:
        """Forget a cluster. Raises as `publish` does."""
        with self._connected() as connection, _transaction(connection):
            for query in _FORGET:
                connection.execute(query, (source,))

    def _make(self, is_gone: Callable[[str], bool]) -> None:
        self._path.touch(mode=0o600)
        with self._connected() as connection:
            connection.executescript(_SCHEMA)
            found = connection.execute(_SOURCES).fetchall()
            gone = [source for source in found if is_gone(*source)]
            for query in _FORGET:
                connection.executemany(query, gone)

    def _remove(self) -> None:
        for end in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + end).unlink(missing_ok=True)

    def publish(
        self, source: str, kind: str, objects: Iterable[ClusterObject], now: float
    ) -> None:
        """Replace all objects of one kind at once.

        Args:
            source: The cluster's.
            kind: One of `KINDS`.
            objects: All that there are.
            now: The time of the list, by the monotonic clock.

        Raises:
            ReviewError: The file cannot be written.
        """
        with self._connected() as connection, _transaction(connection):
            connection.execute(
                "DELETE FROM objects WHERE source = ? AND kind = ?", (source, kind)
            )
            connection.executemany(_PUT, ((source, kind, *one) for one in objects))
            connection.execute(_SEEN, (source, kind, now))

    def put(self, source: str, kind: str, found: ClusterObject, now: float) -> None:
        """Take over an object as it is now. Raises as `publish` does."""
        with self._connected() as connection, _transaction(connection):
            connection.execute(_PUT, (source, kind, *found))
            connection.execute(_SEEN, (source, kind, now))

    def remove(self, source: str, kind: str, gone: ClusterObject, now: float) -> None:
        """Forget an object that was deleted. Raises as `publish` does."""
        with self._connected() as connection, _transaction(connection):
            connection.execute(
                "DELETE FROM objects WHERE source = ? AND kind = ? AND namespace = ? "
                "AND name = ?",
                (source, kind, gone.namespace, gone.name),
            )
            connection.execute(_SEEN, (source, kind, now))

    def confirm(self, source: str, kind: str, now: float) -> None:
        """Note that nothing has changed until now. Raises as `publish` does."""
        with self._connected() as connection:
            connection.execute(_SEEN, (source, kind, now))

    def trouble(self, source: str, kind: str, text: str) -> None:
        """Note what is wrong with a watch. Raises as `publish` does."""
        told = text.encode(errors="replace").decode()
        with self._connected() as connection:
            connection.execute(_TROUBLE, (source, kind, told))

    def find(
        self, source: str, kind: str, namespace: str, name: str
    ) -> ClusterObject | None:
        """Return the object with this name; None if none was seen.

        Raises:
            ReviewError: The file cannot be read.
        """
        with self._connected() as connection:
            row = connection.execute(_FIND, (source, kind, namespace, name)).fetchone()
        return None if row is None else ClusterObject._make(row)

    def counts(self, source: str) -> dict[str, int]:
        """Return how many objects of each kind a cluster has; empty if not known."""
        query = "SELECT kind, count(*) FROM objects WHERE source = ? GROUP BY kind"
        try:
            with self._connected() as connection:
                found = dict(connection.execute(query, (source,)).fetchall())
        except ReviewError:
            return {}
        return {kind: found.get(kind, 0) for kind in KINDS}

    def state(self, source: str, kinds: Iterable[str] = KINDS) -> WatchState:
        """Return how up to date the watches of a cluster are."""
        try:
            with self._connected() as connection:
                rows = connection.execute(
                    "SELECT kind, seen_at, trouble FROM watches WHERE source = ?",
                    (source,),
                ).fetchall()
        except ReviewError as error:
            return WatchState(None, error.detail)
        by_kind = {kind: (seen_at, trouble) for kind, seen_at, trouble in rows}
        found = [by_kind.get(kind, (None, "")) for kind in kinds]
        times = [seen_at for seen_at, _ in found if seen_at is not None]
        trouble = "; ".join(dict.fromkeys(text for _, text in found if text))
        return WatchState(min(times) if len(times) == len(found) else None, trouble)

    def close(self) -> None:
        """Close the file where no other thread uses it."""
        while self._idle:
            self._idle.pop().connection.close()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with ExitStack() as on_error:
            try:
                held = self._taken() or self._opened()
                on_error.callback(held.connection.close)
                yield held.connection
            except sqlite3.Error as error:
                raise ReviewError(
                    "the index of this cluster's objects cannot be used",
                    rule="review.index",
                    detail=f"{self._path}: {error}",
                ) from error
            on_error.pop_all()
        self._idle.append(held)

    def _taken(self) -> _Held | None:
        # One to a file that was made anew since would read the old one for ever.
        file = self._file()
        with suppress(IndexError):
            while True:
                held = self._idle.pop()
                if held.file == file:
                    return held
                held.connection.close()
        return None

    def _file(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _opened(self) -> _Held:
        file = self._file()  # before it is opened: at worst, it is opened again
        # Not made here: what was not made by the watcher, nobody fills.
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=self._busy_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.executescript(_SETTINGS)
        except sqlite3.Error:
            connection.close()
            raise
        return _Held(connection, file)


def _is_damage(error: BaseException | None) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGE  # without what extends it


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    # The connection is closed on an error, which takes all of it back.
    yield
    connection.execute("COMMIT")
