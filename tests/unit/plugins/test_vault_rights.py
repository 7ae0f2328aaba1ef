"""What a token must be able to do, and what it need not."""

import time
from pathlib import Path
from typing import Any

import pytest

from bridge.spi import BackendBrokenError, PluginContext
from bridge_vault.rights import Rights
from tests.support.harness.scripted_vault import ScriptedVault
from tests.support.parts.pki import new_chain

WANTED = {"pki/roles/mesh": "read", "pki/config/urls": "read"}
NEEDLESS = ("pki/sign-verbatim", "pki/root/generate/internal")


def rights_of(told: list[str], **rights: Any) -> tuple[Rights, ScriptedVault]:
    vault = ScriptedVault(new_chain())
    vault.rights = {path.replace("__", "/"): one for path, one in rights.items()}
    context = PluginContext(name="a", base=Path("/nonexistent"), warn=told.append)
    session: Any = vault
    return Rights(session, context, NEEDLESS), vault


def require(rights: Rights) -> None:
    rights.require(WANTED, time.monotonic() + 5)


@pytest.mark.parametrize("own", [["read"], ["list", "read"], ["root"]])
def test_a_right_that_is_there_is_enough(own: list[str]) -> None:
    require(rights_of([], pki__roles__mesh=own)[0])


@pytest.mark.parametrize(
    "own", [["deny"], ["list"], [], None, "read", 5, [["read"]], [{}]], ids=str
)
def test_a_right_that_is_missing_is_named_with_its_path(own: object) -> None:
    rights, _ = rights_of([], pki__roles__mesh=own)
    with pytest.raises(BackendBrokenError, match=r"policies do not permit") as caught:
        require(rights)
    assert caught.value.rule == "vault.denied"
    assert caught.value.detail == "expected read on pki/roles/mesh"


def test_every_right_that_is_missing_is_named() -> None:
    rights, _ = rights_of([], pki__roles__mesh=["deny"], pki__config__urls=["deny"])
    with pytest.raises(BackendBrokenError, match=r"policies do not permit") as caught:
        require(rights)
    expected = "expected read on pki/roles/mesh, read on pki/config/urls"
    assert caught.value.detail == expected


def test_a_right_that_is_not_needed_is_told_once_until_it_changes() -> None:
    told: list[str] = []
    rights, vault = rights_of(told, **{"pki__sign-verbatim": ["update", "sudo"]})
    require(rights)
    require(rights)
    more = "the token may do more than it needs"
    first = f"issuing_cas.a: {more}: sudo, update on pki/sign-verbatim"
    assert told == [first]
    vault.rights["pki/sign-verbatim"] = ["deny"]
    require(rights)
    vault.rights["pki/sign-verbatim"] = ["update", "sudo"]
    require(rights)
    assert told == [first, first]


def test_a_root_token_is_told_as_one() -> None:
    told: list[str] = []
    rights, _ = rights_of(told, **{"pki__sign-verbatim": ["root"]})
    require(rights)
    (text,) = told
    assert text.startswith("issuing_cas.a: the token is a root token: give")


def test_a_token_with_its_own_policy_is_no_warning() -> None:
    told: list[str] = []
    require(rights_of(told)[0])
    assert told == []
