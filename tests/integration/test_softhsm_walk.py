"""`softhsm/README.md`: three commands, from nothing to a certificate by a token's key.

Its blocks run as they stand in a clean clone.
"""

from pathlib import Path

import pytest

from tests.support.harness.processes import descendants
from tests.support.harness.walk import (
    BASH,
    blocks,
    clone_of,
    environment,
    files_of,
    run,
    walk,
)
from tests.support.parts import install, netports

CHANGING = {"token", "check.txt", "jwks.json", "token.object", "generation"}
"""SoftHSM itself writes to the token's own object at each login."""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    install.softhsm()
    return clone_of(tmp_path / "clone", "softhsm")


def test_three_commands_go_from_nothing_to_a_certificate(clone: Path) -> None:
    istio, admin = (str(netports.reserve()) for _ in range(2))
    text = (clone / "softhsm/README.md").read_text().replace("15012", istio)
    make, serve, request = blocks(text)
    env = environment(ISTIO=f"127.0.0.1:{istio}", ADMIN=f"127.0.0.1:{admin}")
    # The environment of the tests has what this file stands for.
    make = make.replace("make ", "make -o .venv/.pkcs11 ")
    demo = clone / "softhsm/demo"

    def has_one_process_with_the_module(bridge: int) -> None:
        # The PIN and the module are in a process beside the one that serves.
        loaded = [
            "libsofthsm2" in Path(f"/proc/{pid}/maps").read_text()
            for pid in descendants(bridge)
        ]
        assert loaded.count(True) == 1

    commands = (make, serve, request)
    walk(clone, demo, commands, env, CHANGING, has_one_process_with_the_module)
    assert (demo / "pin").stat().st_mode & 0o777 == 0o600
    assert demo.stat().st_mode & 0o777 == 0o700


def test_a_machine_without_softhsm_is_told_what_to_install(clone: Path) -> None:
    done = run(
        clone, f"{BASH} softhsm/prepare.sh softhsm/demo", {"PATH": "/nonexistent"}
    )
    assert done.returncode == 1
    assert done.stderr == (
        "softhsm: there is no softhsm2-util: install SoftHSM 2 "
        "(apt-get install softhsm2)\n"
    )
    assert not (clone / "softhsm/demo").exists()


def test_a_token_whose_pin_is_lost_is_left_alone(clone: Path) -> None:
    folder = clone / "softhsm/demo"
    command = f"softhsm/prepare.sh {folder} .venv/bin"
    assert run(clone, command, environment()).returncode == 0
    tokens = files_of(folder / "tokens", CHANGING)
    for name in ("pin", "issuing.csr"):
        (folder / name).unlink()
    done = run(clone, command, environment())
    assert done.returncode == 1
    assert "refused the PIN (CKR_PIN_INCORRECT). It was tried once" in done.stderr
    assert files_of(folder / "tokens", CHANGING).keys() == tokens.keys()
    assert not (folder / "issuing.csr").exists()
