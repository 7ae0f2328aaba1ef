"""`deploy/vault/README.md`: three commands, from nothing to a certificate.

Its blocks run as they stand in a clean clone, for each backend and with each product.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness.walk import (
    BASH,
    blocks,
    clone_of,
    environment,
    run,
    serving,
    walk,
)
from tests.support.parts import install, netports
from tests.support.parts.vault import Product

ROOT = Path(__file__).parents[2]
BACKENDS = ("vault-pki", "vault-transit")
_CHANGING = {"token", "check.txt", "jwks.json", "server.log", "generation"}


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    install.openbao()
    folder = clone_of(tmp_path / "clone", "deploy/vault")
    yield folder
    for pid in folder.glob("deploy/vault/demo/*/server.pid"):
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_what_a_user_has_set_or_an_interrupted_run_left_is_not_in_the_way(
    tmp_path: Path,
) -> None:
    server, seen, made = (tmp_path / name for name in ("bao", "seen", "made"))
    server.write_text(f'#!/bin/sh\n[ "$1" != server ] || env > {seen}\nexit 1\n')
    server.chmod(0o755)
    made.mkdir()
    (made / "root-token").touch()  # interrupted before it was written
    others = {
        f"{product}_{name}": "other"
        for product in ("BAO", "VAULT")
        for name in ("NAMESPACE", "FORMAT", "CACERT", "TOKEN", "ADDR")
    }
    prepare = ROOT / "deploy/vault/prepare.sh"
    command = f"{prepare} {made} {Path(sys.executable).parent}"
    done = run(tmp_path, command, environment(**others, VAULT_BIN=str(server)))
    assert done.returncode != 0
    assert "the server did not start" in done.stderr
    env = dict(line.split("=", 1) for line in seen.read_text().splitlines())
    assert "other" not in env.values()
    assert env["BAO_DEV_ROOT_TOKEN_ID"] == (made / "root-token").read_text().strip()
    assert env["BAO_DEV_ROOT_TOKEN_ID"]


@pytest.mark.parametrize(
    ("program", "env", "installs"),
    [
        ("", {}, True),
        ("", {"VAULT_BIN": ""}, True),
        ("", {"VAULT_BIN": "/opt/vault"}, False),
        ("bao", {}, False),
        ("vault", {}, False),
    ],
)
def test_make_installs_openbao_where_there_is_no_program(
    tmp_path: Path, program: str, env: dict[str, str], *, installs: bool
) -> None:
    path = tmp_path / "path"
    path.mkdir()
    for name in filter(None, ("make", "touch", program)):
        (path / name).symlink_to(shutil.which(name) or shutil.which("true") or "")
    venv = tmp_path / "venv"
    venv.mkdir()
    made = f"make -C {ROOT} VENV={venv} PIP=echo -o {venv}/.runtime {venv}/.vault"
    here = environment(PATH=str(path))
    here.pop("VAULT_BIN", None)
    done = run(tmp_path, made, here | env)
    assert done.returncode == 0, done.stderr
    assert "deploy/locks/vault.txt" in done.stdout
    assert ("deploy/locks/openbao.txt" in done.stdout) == installs


def ports() -> tuple[str, dict[str, str]]:
    istio, admin, vault = (str(netports.reserve()) for _ in range(3))
    addresses = {"ISTIO": istio, "ADMIN": admin, "VAULT_LISTEN": vault}
    return istio, {name: f"127.0.0.1:{port}" for name, port in addresses.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_three_commands_go_from_nothing_to_a_certificate(
    clone: Path, vault_product: Product, backend: str
) -> None:
    istio, addresses = ports()
    text = (clone / "deploy/vault/README.md").read_text().replace("15012", istio)
    at = 3 * BACKENDS.index(backend)
    make, serve, request = blocks(text)[at : at + 3]
    env = environment(**addresses, VAULT_BIN=str(vault_product.binary()))
    # The environment of the tests has what this file stands for.
    make = make.replace("make ", "make -o .venv/.vault ")
    demo = clone / "deploy/vault/demo" / backend

    walk(clone, demo, (make, serve, request), env, _CHANGING)
    for secret in ("secret-id", "root-token"):
        assert (demo / secret).stat().st_mode & 0o777 == 0o600


def test_a_server_that_has_ended_is_made_anew_with_all_that_it_held(
    clone: Path,
) -> None:
    _, addresses = ports()
    command = "deploy/vault/prepare.sh deploy/vault/demo/vault-pki .venv/bin"
    demo = clone / "deploy/vault/demo/vault-pki"
    made = []
    for _ in range(2):
        done = run(clone, command, environment(**addresses))
        assert done.returncode == 0, done.stdout + done.stderr
        made.append((demo / "issuing.csr").read_bytes())
        with serving(clone, f".venv/bin/meshca serve -c {demo}/bridge.yaml"):
            pass  # its ledger knows the trust anchors from now on
        os.kill(int((demo / "server.pid").read_text()), signal.SIGKILL)
    assert made[0] != made[1]
    assert run(clone, command, environment(**addresses)).returncode == 0
    assert len([*demo.glob("ended-*/journal")]) == len(made)


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"BACKEND": "pki"}, "BACKEND is 'pki': expected vault-pki or vault-transit"),
        ({"VAULT_BIN": "/nonexistent"}, "there is no 'bao' or 'vault': run "),
    ],
)
def test_what_is_missing_is_told_before_anything_is_made(
    clone: Path, env: dict[str, str], told: str
) -> None:
    command = f"{BASH} deploy/vault/prepare.sh deploy/vault/demo/x .venv/bin"
    done = run(clone, command, environment(**env))
    assert done.returncode == 1
    assert done.stderr.startswith(f"vault: {told}")
    assert not (clone / "deploy/vault/demo").exists()
