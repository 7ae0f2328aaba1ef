"""What `meshca demo --backend` needs, and what it says where that is missing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.cli.demo_setup import backends
from bridge.cli.demo_setup.backends import (
    free_addresses,
    require_parts,
    softhsm_module,
    vault_program,
)
from bridge.errors import ConfigError, PluginError


def program(path: Path, *, mode: int = 0o700) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has nothing: its folders are in the one that is returned."""
    monkeypatch.setattr("sys.executable", str(tmp_path / "venv/python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("VAULT_BIN", raising=False)
    monkeypatch.delenv("SOFTHSM2_MODULE", raising=False)
    monkeypatch.setattr(backends, "_LIBRARIES", (tmp_path / "lib", tmp_path / "lib64"))
    return tmp_path


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (("path/vault",), "path/vault"),
        (("path/bao", "path/vault"), "path/bao"),
        (("venv/bao", "path/bao"), "venv/bao"),
    ],
)
def test_a_server_is_found(machine: Path, there: tuple[str, ...], found: str) -> None:
    for name in there:
        program(machine / name)
    assert vault_program() == machine / found


def test_a_server_that_is_named_is_taken(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(machine / "path/bao")
    named = program(machine / "named")
    monkeypatch.setenv("VAULT_BIN", str(named))
    assert vault_program() == named


@pytest.mark.parametrize(
    "place",
    [
        "lib/softhsm/libsofthsm2.so",
        "lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "lib64/pkcs11/libsofthsm2.so",
        "lib64/libsofthsm2.so",
    ],
)
def test_the_module_of_softhsm_is_found(machine: Path, place: str) -> None:
    program(machine / "path/softhsm2-util")
    module = program(machine / place)
    assert softhsm_module() == module


def test_a_module_that_is_named_is_taken(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(machine / "path/softhsm2-util")
    program(machine / "lib64/libsofthsm2.so")
    named = program(machine / "named.so")
    monkeypatch.setenv("SOFTHSM2_MODULE", str(named))
    assert softhsm_module() == named


def nothing(_machine: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    pass


def other_vault(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(machine / "path/bao")
    monkeypatch.setenv("VAULT_BIN", "/nonexistent/vault")


def no_program(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_BIN", str(program(machine / "text", mode=0o600)))


def utility(machine: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    program(machine / "path/softhsm2-util")


def other_module(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(machine / "path/softhsm2-util")
    program(machine / "lib/softhsm/libsofthsm2.so")
    monkeypatch.setenv("SOFTHSM2_MODULE", "/nonexistent.so")


def no_extra(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(machine / "path/bao")

    def refuse(name: str) -> None:
        raise PluginError(f"plugin {name!r}: install meshca-bridge[vault]")

    monkeypatch.setattr(backends, "load", refuse)


def no_extra_and_no_server(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_extra(machine, monkeypatch)
    (machine / "path/bao").unlink()


@pytest.mark.parametrize(
    ("backend", "change", "told"),
    [
        ("vault-pki", nothing, ["there is no 'bao' or 'vault' (none on PATH): "]),
        ("vault-transit", other_vault, ["(VAULT_BIN is /nonexistent/vault): install "]),
        ("vault-pki", no_program, ["there is no 'bao' or 'vault' (VAULT_BIN is "]),
        ("pkcs11", nothing, ["there is no softhsm2-util on PATH: install SoftHSM 2 "]),
        ("pkcs11", utility, ["(none in /usr/lib): set SOFTHSM2_MODULE to its path"]),
        ("pkcs11", other_module, ["(SOFTHSM2_MODULE is /nonexistent.so): set "]),
        ("vault-pki", no_extra, ["install meshca-bridge[vault]"]),
        (
            "vault-pki",
            no_extra_and_no_server,
            ["install meshca-bridge[vault]", "there is no 'bao' or 'vault'"],
        ),
    ],
)
def test_each_part_that_is_missing_is_told_with_what_to_install(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: backends.Backend,
    change: Callable[[Path, pytest.MonkeyPatch], None],
    told: list[str],
) -> None:
    change(machine, monkeypatch)
    with pytest.raises(ConfigError, match=f"^--backend {backend}: ") as caught:
        require_parts(backend)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(told)
    for line, part in zip(lines, told, strict=True):
        assert part in line


@pytest.mark.usefixtures("machine")
def test_a_key_in_a_file_needs_nothing() -> None:
    require_parts("file")


def test_addresses_are_free_and_apart() -> None:
    found = [*free_addresses(5)]
    assert len(set(found)) == 5
