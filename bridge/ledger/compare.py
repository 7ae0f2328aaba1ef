"""Whether journals and archive agree, to the row and to every column of it."""

import re
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.ledger.chain import entry
from bridge.ledger.verify import read_writer, writers

if TYPE_CHECKING:
    # It imports SQLAlchemy, which nobody pays for who does not ask for an archive.
    from bridge.ledger.archive.archive import Archive

ASIDE = ".lost-"
"""In the name that an attestation gives to rows which their journal has lost."""
_SET_ASIDE = re.compile(rf".+{re.escape(ASIDE)}\d+")


@dataclass(slots=True)
class Comparison:
    """How the archive stands to the journals."""

    equal: int = 0
    """Rows that are the same in both."""
    behind: dict[str, int] = field(default_factory=dict)
    """Rows by writer that the archive has not got yet."""
    aside: list[str] = field(default_factory=list)
    """Names under which the archive keeps what a journal has lost."""
    problems: list[str] = field(default_factory=list)
    """Each names writer and row."""

    @property
    def agrees(self) -> bool:
        """Whether each row is in both, exactly once, and the same."""
        return not self.problems and not self.behind


def compare(folder: Path, archive: "Archive") -> Comparison:
    """Hold every row of the journals under `folder` against `archive`.

    May be run beside a server: its newest rows count as `behind`.

    Raises:
        LedgerError: There is no journal, a line of one is no row, or the archive does
            not answer.
    """
    result = Comparison()
    known = set(archive.writers())
    for path in writers(folder):
        known.discard(path.name)
        with closing(_Archived(archive.rows(path.name))) as archived:
            _compare_writer(result, path, archived)
    for writer in sorted(known):
        if _SET_ASIDE.fullmatch(writer):
            result.aside.append(writer)
        else:
            result.problems.append(
                f"{writer}: the archive has rows, and there is no such journal"
            )
    return result


class _Archived:
    # Looks at the first row at once: the archive is read as of now, and the journal,
    # which is ahead of it, later.
    def __init__(self, rows: Generator[Mapping[str, Any]]) -> None:
        self._rows = rows
        self._first = next(rows, None)

    def take(self) -> Mapping[str, Any] | None:
        row, self._first = self._first, None
        return row or next(self._rows, None)

    def close(self) -> None:
        self._rows.close()


def _compare_writer(result: Comparison, path: Path, archived: _Archived) -> None:
    writer, behind, last = path.name, 0, -1
    for row in read_writer(path):
        last = row.seq
        found = None if behind else archived.take()
        if found is None:
            behind += 1
            continue
        wanted = entry(writer, row)
        if found != wanted:
            result.problems.append(_difference(writer, found, wanted))
            return
        result.equal += 1
    if behind:
        result.behind[writer] = behind
    elif (extra := archived.take()) is not None:
        result.problems.append(
            f"{writer}: the archive has row {extra['seq']}, and the journal ends at "
            f"row {last}"
        )


def _difference(
    writer: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str:
    if found["seq"] != wanted["seq"]:
        return (
            f"{writer}: row {wanted['seq']} of the journal is not in the archive, "
            f"where row {found['seq']} stands in its place"
        )
    columns = [name for name in wanted if found.get(name) != wanted[name]]
    return f"{writer}: row {wanted['seq']} differs in {', '.join(columns)}"
