"""What every fuzz target shares: its corpus, and how a file is run through it.

A target is a module with a function `run(data)`, which raises on what must not be.
`python -m tests.fuzz.<target> FILE...` runs files through it, such as one that crashed;
`make fuzz` has a coverage-guided fuzzer look for more.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

Run = Callable[[bytes], None]

TARGETS = ("csr", "spiffe", "credential", "configuration", "journal")
FOLDER = Path(__file__).parent
CORPUS = FOLDER / "corpus"
FOUND = FOLDER.parents[1] / "build/fuzz"
"""Kept between runs: what reached new code, by target, and under `crashes` what failed.
What is worth keeping for ever moves to the corpus by hand."""

_MORE = {"csr": FOLDER.parent / "vectors/csr"}
_USAGE = 2


def folders(target: str) -> list[Path]:
    """Return where the seeds of a target are."""
    more = [_MORE[target]] if target in _MORE else []
    return [CORPUS / target, *more]


def corpus(target: str) -> list[Path]:
    """Return the seeds of a target.

    Raises:
        FileNotFoundError: A folder holds none.
    """
    found: list[Path] = []
    for folder in folders(target):
        files = sorted(path for path in folder.iterdir() if path.suffix != ".json")
        if not files:
            raise FileNotFoundError(f"{folder} holds no seed")
        found += files
    return found


def main(run: Run) -> None:
    """Run the files that the command line names."""
    if not sys.argv[1:]:
        target = Path(sys.argv[0]).stem
        sys.stderr.write(f"usage: python -m tests.fuzz.{target} FILE...\n")
        sys.exit(_USAGE)
    for path in map(Path, sys.argv[1:]):
        began = time.perf_counter()
        run(path.read_bytes())
        took = time.perf_counter() - began
        sys.stdout.write(f"{path}: holds ({took:.3f} s)\n")
