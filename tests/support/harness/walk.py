"""Runs the blocks of a README as they stand, in a clean clone.

What differs from the reader's machine: the environment of the tests is installed
already, and the ports are free ones.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509

from tests.support.parts import netports

ROOT = Path(__file__).parents[3]
BASH = shutil.which("bash") or "bash"
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SECONDS = 120


def blocks(text: str) -> list[str]:
    """Return the blocks of commands of a page, in order."""
    return _BLOCK.findall(text)


def script_of(page: str, prelude: str, ports: Iterable[str]) -> str:
    """Return the blocks of a page as one script, with free ports for its own."""
    script = "\n".join([prelude, *blocks((ROOT / page).read_text("utf-8"))])
    for port in ports:
        script = re.sub(rf"\b{port}\b", str(netports.reserve()), script)
    return script


@contextmanager
def installed(
    home: Path, programs: Mapping[str, Sequence[str]], *linked: str
) -> Iterator[Path]:
    """Give a home with a clone in it that has been installed, and with programs.

    Args:
        home: An empty folder.
        programs: The commands of the programs in its `bin`.
        linked: Folders of the repository that the clone has.
    """
    (home / "clone").mkdir()
    (home / "clone/.venv").symlink_to(sys.prefix)
    for name in linked:
        (home / "clone" / name).symlink_to(ROOT / name)
    (home / "bin").mkdir()
    for name, command in programs.items():
        path = home / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        path.chmod(0o755)
    yield home
    # A block that failed leaves its servers behind.
    for path in home.rglob("*pid"):
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(path.read_text("utf-8")), signal.SIGKILL)


def files_of(folder: Path, changing: Container[str]) -> dict[Path, bytes]:
    """Return what `make` made in a folder, and must not make a second time.

    Args:
        folder: Of the demo. The bridge writes to its journal.
        changing: Names of the files that each run may write.
    """
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in changing
        and folder / "journal" not in path.parents
    }


def walk(
    clone: Path,
    demo: Path,
    commands: Sequence[str],
    env: Mapping[str, str],
    changing: Container[str],
    while_serving: Callable[[int], None] = lambda _: None,
) -> None:
    """Run the three commands of a README: from nothing to a certificate.

    Made a second time, everything stays. The issuing key is not in a file.

    Args:
        clone: See `clone_of`.
        demo: What the first command makes.
        commands: They make, serve, and ask for a certificate.
        env: Of the commands.
        changing: See `files_of`.
        while_serving: Given the process that serves.
    """
    make, serve, request = commands
    first = run(clone, make, env)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Traceback" not in first.stderr
    made = files_of(demo, changing)
    with serving(clone, serve) as bridge:
        while_serving(bridge)
        for command in (request, make):
            done = run(clone, command, env)
            assert done.returncode == 0, done.stdout + done.stderr
    assert {path: files_of(demo, changing)[path] for path in made} == made
    chain = (demo / "web/chain.pem").read_bytes()
    leaf, issuing, *_ = x509.load_pem_x509_certificates(chain)
    leaf.verify_directly_issued_by(issuing)
    csr = x509.load_pem_x509_csr((demo / "issuing.csr").read_bytes())
    assert issuing.public_key() == csr.public_key()
    assert not (demo / "ca/issuing.key").exists()


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
