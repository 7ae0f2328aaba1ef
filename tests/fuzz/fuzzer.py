"""Runs the coverage-guided fuzzer: `python -m tests.fuzz.fuzzer SECONDS [TARGET...]`.

Each target runs in a process of its own for so many seconds, from its seeds and what
earlier runs found. Exit status 1 when one fails, with the file that shows it.
"""

import importlib
import subprocess
import sys
from types import ModuleType

from tests.fuzz.engine import FOUND, TARGETS, folders

_LONGEST = 20_000
_ONE_INPUT_SECONDS = 10
_MEGABYTES = 1024
_CHILD = "--child"


def main() -> None:
    """Run every target, or those that the command line names."""
    seconds, *chosen = sys.argv[1:]
    failed: list[str] = []
    for target in chosen or TARGETS:
        _say(f"== {target}: {seconds} s")
        command = [sys.executable, "-m", "tests.fuzz.fuzzer", _CHILD, target, seconds]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(target)
    for target in failed:
        crashes = sorted((FOUND / "crashes" / target).iterdir())
        newest = max(crashes, key=lambda path: path.stat().st_mtime, default=None)
        again = f"python -m tests.fuzz.{target} {newest}" if newest else "no file"
        _say(f"{target} failed; to see it again: {again}")
    _say(f"what was found is in {FOUND}")
    sys.exit(1 if failed else 0)


def _child(target: str, seconds: str) -> None:
    atheris = _atheris()
    found, crashes = FOUND / target, FOUND / "crashes" / target
    for folder in (found, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["bridge", "tests.fuzz"]):
        module = importlib.import_module(f"tests.fuzz.{target}")
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_LONGEST}",
        f"-timeout={_ONE_INPUT_SECONDS}",
        f"-rss_limit_mb={_MEGABYTES}",
        f"-artifact_prefix={crashes}/",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    # What is new goes to the first folder; the others are only read.
    places = [str(found), *map(str, folders(target))]
    atheris.Setup([sys.argv[0], *options, *places], module.run)
    atheris.Fuzz()


def _atheris() -> ModuleType:
    try:
        return importlib.import_module("atheris")
    except ImportError:
        sys.exit("tests.fuzz: atheris is not installed; `make fuzz` does it")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        _child(*sys.argv[2:4])
    main()
