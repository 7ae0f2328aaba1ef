"""Writes `docs/reference` from the code: `python -m tests.support.documents`."""

from pathlib import Path

from tests.support.documents import (
    commands,
    configuration,
    doctor,
    hierarchy,
    ledger_rows,
    metrics,
    refusals,
)
from tests.support.documents.markdown import fill, write

FOLDER = Path(__file__).parents[3] / "docs/reference"


def main() -> None:
    """Write every document of the folder."""
    fill(FOLDER / "configuration.md", configuration.parts())
    fill(FOLDER / "hierarchy.md", hierarchy.parts())
    write(FOLDER / "commands.md", "Commands", commands.lines())
    write(FOLDER / "doctor.md", "Rules of meshca doctor", doctor.lines())
    write(FOLDER / "metrics.md", "Metrics", metrics.lines())
    write(FOLDER / "refusals.md", "Rules of refusals", refusals.lines())
    write(FOLDER / "ledger.md", "Rows of the ledger", ledger_rows.lines())


if __name__ == "__main__":
    main()
