"""`meshca demo --backend ...`: each backend on its real parts, which end with it."""

import os
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.harness.real_process import MESHCA
from tests.support.harness.workers import await_true
from tests.support.parts import install

_SECONDS = 300
_MARK = "MESHCA_TEST_MARK"
_PAUSES_AT_WRITE = """#!/bin/sh
[ "$1" = write ] || exec {program} "$@"
touch {reached}
exec sleep 600
"""
_FAILS_AT_WRITE = """#!/bin/sh
[ "$1" = write ] || exec {program} "$@"
echo "no such role" >&2
exit 2
"""


@dataclass(frozen=True, slots=True)
class Demo:
    """Runs of the demo whose files and processes can be told from all others."""

    folder: Path
    mark: str
    temporary: Path
    """For the Unix sockets of workers, whose paths have at most 107 bytes."""

    def start(
        self, *arguments: str, env: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [MESHCA, "demo", *arguments],
            cwd=self.folder,
            env=os.environ
            | {_MARK: self.mark, "TMPDIR": str(self.temporary)}
            | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, env: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        process = self.start(*arguments, env=env)
        out, err = process.communicate(timeout=_SECONDS)
        return process.returncode, out, err

    def alive(self) -> list[int]:
        """Return the processes that a run has started, wherever they belong now."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                environment = (entry / "environ").read_bytes()
                if entry.name.isdigit() and self.mark.encode() in environment:
                    found.append(int(entry.name))
        return found

    def require_nothing_left(self) -> None:
        await_true(lambda: not self.alive())
        assert not list(self.temporary.iterdir())
        assert not list(self.folder.glob("*.csr"))


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    folder = tmp_path / "clean"
    folder.mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        made = Demo(folder, secrets.token_hex(16), Path(temporary))
        yield made
        for pid in made.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def openbao() -> Mapping[str, str]:
    return {"VAULT_BIN": str(install.openbao_binary())}


def vault() -> Mapping[str, str]:
    return {"VAULT_BIN": str(install.vault_binary())}


def softhsm() -> Mapping[str, str]:
    install.softhsm()
    return {}


@pytest.mark.parametrize(
    ("backend", "part", "place"),
    [
        ("pkcs11", softhsm, "a token of SoftHSM"),
        ("vault-pki", openbao, "a dev server, OpenBao v"),
        ("vault-pki", vault, "a dev server, Vault v"),
        ("vault-transit", openbao, "a dev server, OpenBao v"),
        ("vault-transit", vault, "a dev server, Vault v"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_backend_is_shown_from_nothing_and_leaves_nothing(
    demo: Demo, backend: str, part: object, place: str
) -> None:
    assert callable(part)
    # What a user has set is about another server.
    other = {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_NAMESPACE": "team"}
    status, out, err = demo.run("--backend", backend, env={**part(), **other})
    assert (status, "Traceback" in err) == (0, False), out + err
    assert f"whose key is made in {place}" in out
    assert "every check passed" in out
    assert out.splitlines()[-1].startswith("the ledger verifies")
    demo.require_nothing_left()


def test_the_key_of_a_token_is_in_no_file_of_the_folder(demo: Demo) -> None:
    folder = demo.folder / "kept"
    status, _, err = demo.run(
        "--backend", "pkcs11", "--folder", str(folder), env=softhsm()
    )
    assert status == 0, err
    assert not (folder / "hierarchy/issuing.key").exists()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "pin").stat().st_mode & 0o777 == 0o600


def scripted(demo: Demo, script: str) -> tuple[Mapping[str, str], Path]:
    """Return the environment with a program that is OpenBao, but for `write`."""
    program, reached = demo.folder / "bao-for-a-test", demo.folder / "reached"
    text = script.format(program=install.openbao_binary(), reached=reached)
    program.write_text(text, "utf-8")
    program.chmod(0o700)
    return {"VAULT_BIN": str(program)}, reached


@pytest.mark.parametrize(
    ("number", "status"),
    [
        # A shell that runs a script ends with a command that Ctrl-C has ended.
        pytest.param(signal.SIGINT, -signal.SIGINT, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 128 + signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGHUP, 128 + signal.SIGHUP, id="SIGHUP"),
    ],
)
def test_a_signal_ends_the_server_and_removes_the_files(
    demo: Demo, number: signal.Signals, status: int
) -> None:
    env, reached = scripted(demo, _PAUSES_AT_WRITE)
    process = demo.start("--backend", "vault-transit", env=env)
    await_true(reached.exists, seconds=_SECONDS)
    process.send_signal(number)
    _, err = process.communicate(timeout=_SECONDS)
    assert process.returncode == status
    assert "Traceback" not in err
    demo.require_nothing_left()


def test_the_server_ends_with_a_demo_that_is_killed(demo: Demo) -> None:
    env, reached = scripted(demo, _PAUSES_AT_WRITE)
    process = demo.start("--backend", "vault-transit", env=env)
    await_true(reached.exists, seconds=_SECONDS)
    process.kill()
    process.communicate(timeout=_SECONDS)
    # What the demo had called runs on by itself, and was told nothing.
    await_true(lambda: not any(map(_is_server, demo.alive())))


def _is_server(pid: int) -> bool:
    with suppress(OSError):
        return b"-dev-listen-address" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def test_a_step_that_fails_is_told_and_leaves_nothing(demo: Demo) -> None:
    env, _ = scripted(demo, _FAILS_AT_WRITE)
    status, _, err = demo.run("--backend", "vault-transit", env=env)
    assert status == 1
    assert err.splitlines() == [
        f"{env['VAULT_BIN']} failed with status 2",
        "no such role",
    ]
    demo.require_nothing_left()


def test_a_server_that_does_not_start_is_told(demo: Demo) -> None:
    program = demo.folder / "broken"
    program.write_text("#!/bin/sh\necho 'bind: no' >&2\nexit 1\n", "utf-8")
    program.chmod(0o700)
    env = {"VAULT_BIN": str(program)}
    status, _, err = demo.run("--backend", "vault-pki", env=env)
    assert status == 1
    assert "did not get ready" in err
    assert "bind: no" in err
    demo.require_nothing_left()


def test_a_demo_that_was_kept_ends_on_ctrl_c(demo: Demo) -> None:
    folder = demo.folder / "kept"
    arguments = ("--backend", "pkcs11", "--keep", "--folder", str(folder))
    process = demo.start(*arguments, env=softhsm())
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Ctrl-C ends it"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=_SECONDS)
    assert (process.returncode, err) == (0, ""), out
    demo.require_nothing_left()


def test_a_machine_without_the_parts_is_told_and_nothing_is_made(demo: Demo) -> None:
    folder = demo.folder / "kept"
    status, out, err = demo.run(
        "--backend", "pkcs11", "--folder", str(folder), env={"PATH": "/nonexistent"}
    )
    assert (status, out) == (1, "")
    assert err == (
        "--backend pkcs11: there is no softhsm2-util on PATH: install SoftHSM 2 "
        "(apt-get install softhsm2)\n"
    )
    assert not folder.exists()
