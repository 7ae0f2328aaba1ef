"""Builds the Rust programs of the tests, once per state of their sources.

As `gobuild` does: nothing that is built here lands in the repository.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.support.parts.gobuild import BuildError, cache_folder

_BUILD_SECONDS = 1800
"""AWS-LC is compiled from C: about a minute on two idle cores."""
WITHOUT = (
    "there is no 'cargo' on PATH: the verifier with linkerd2-proxy's versions is not "
    "built, and rtls alone stands for rustls (https://rustup.rs)"
)


def cargo() -> Path | None:
    """Return the cargo command, if there is one."""
    found = shutil.which("cargo")
    return Path(found) if found else None


def build(crate: Path) -> Path:
    """Return the program of a crate, built from its Cargo.lock if need be.

    Args:
        crate: The folder with Cargo.toml and Cargo.lock; its name is the program's.

    Raises:
        BuildError: There is no cargo, or the sources do not compile.
    """
    command = cargo()
    if command is None:
        raise BuildError(WITHOUT)
    home = cache_folder() / "rust"
    program = home / f"{crate.name}-{_digest(command, *_sources(crate))}"
    home.mkdir(parents=True, exist_ok=True)
    # What a state of Cargo.lock draws in is compiled once for all states of ours.
    target = home / f"{crate.name}-target-{_digest(command, crate / 'Cargo.lock')}"
    with (home / f"{crate.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _compile(command, crate, target)
            unfinished = program.with_suffix(".unfinished")
            shutil.copy2(target / "debug" / crate.name, unfinished)
            unfinished.replace(program)
    return program


def _compile(command: Path, crate: Path, target: Path) -> None:
    try:
        done = subprocess.run(
            [command, "build", "--locked", "--quiet"],
            cwd=crate,
            env=os.environ | {"CARGO_TARGET_DIR": str(target)},
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"building {crate} took over {_BUILD_SECONDS} s") from error
    if done.returncode:
        raise BuildError(f"cargo build in {crate} failed:\n{done.stderr[-4000:]}")


def _sources(crate: Path) -> list[Path]:
    own = [crate / "Cargo.toml", crate / "Cargo.lock"]
    return [*own, *sorted((crate / "src").rglob("*.rs"))]


def _digest(command: Path, *files: Path) -> str:
    # The version of the compiler counts too: what it links must fit together.
    version = subprocess.run(
        [command, "--version"], capture_output=True, text=True, check=True
    ).stdout
    digest = hashlib.sha256(version.encode())
    for file in files:
        digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:24]
