"""The servers of the tests can be harmed as a real one can, and end with the tests."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import processes
from tests.support.parts.vault import AnswerError, Server
from tests.support.parts.vault_mounts import new_token

_LOOKUP = "auth/token/lookup-self"
_STARTS = """
import pathlib, sys, time
from tests.support.parts.vault import Server
server = Server(pathlib.Path(sys.argv[1]), storage="inmem")
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def test_it_is_sealed_and_killed_and_keeps_its_tokens(tmp_path: Path) -> None:
    with Server(tmp_path / "server", tls=True) as server:
        token = server.api_with(new_token(server, "default"))
        server.seal()
        with pytest.raises(AnswerError, match=r"^503: .*sealed"):
            token.get(_LOOKUP)
        server.unseal()
        server.kill()
        with pytest.raises(ConnectionRefusedError):
            token.get(_LOOKUP)
        server.start()
        assert token.get(_LOOKUP)["policies"] == ["default"]


def test_it_gets_an_earlier_store_or_an_empty_one(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        server.api.post("sys/mounts/here", type="transit")
        saved = server.save_store()
        token = server.api_with(new_token(server, "default"))
        assert token.get(_LOOKUP)["policies"] == ["default"]
        server.restart(store=saved)
        with pytest.raises(AnswerError, match=r"^403: permission denied"):
            token.get(_LOOKUP)
        assert "here/" in server.api.get("sys/mounts")
        former = server.root_token
        server.restart(empty=True)
        assert server.root_token != former
        assert "here/" not in server.api.get("sys/mounts")


def test_it_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = [sys.executable, "-c", _STARTS, str(tmp_path / "server")]
    with subprocess.Popen(code, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    processes.await_gone([pid], seconds=10)
