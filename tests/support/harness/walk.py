"""Runs the blocks of a README as they stand, in a clean clone.

What differs from the reader's machine: the environment of the tests is installed
already, and the ports are free ones.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[3]
BASH = shutil.which("bash") or "bash"
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SECONDS = 120


def blocks(text: str) -> list[str]:
    """Return the blocks of commands of a page, in order."""
    return _BLOCK.findall(text)


def environment(**more: str) -> dict[str, str]:
    """Return this environment with more, and without what is make's."""
    # `make test` is a make of its own, with options that are not for the one here.
    kept = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return kept | more


def clone_of(folder: Path, part: str) -> Path:
    """Make a clone that has one folder, and what its scripts share; return it."""
    ignore = shutil.ignore_patterns("demo")
    shutil.copytree(ROOT / part, folder / part, ignore=ignore)
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "deploy").mkdir(exist_ok=True)
    shutil.copy(ROOT / "deploy/common.sh", folder / "deploy")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run(
    clone: Path, command: str, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a block to its end."""
    return subprocess.run(
        [BASH, "-c", command],
        cwd=clone,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


@contextmanager
def serving(clone: Path, command: str) -> Iterator[int]:
    """Run a block that serves until the end of the `with`; give its process."""
    with (clone / "bridge.log").open("w+b") as log:
        process = subprocess.Popen(
            [BASH, "-c", f"exec {command}"], cwd=clone, env=environment(), stderr=log
        )
        try:
            deadline = time.monotonic() + _SECONDS
            while b": ready\n" not in (clone / "bridge.log").read_bytes():
                assert process.poll() is None, (clone / "bridge.log").read_text()
                assert time.monotonic() < deadline, (clone / "bridge.log").read_text()
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()
            assert process.wait(_SECONDS) == 0
