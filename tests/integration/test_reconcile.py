"""A certificate whose answer is lost, found in the audit log of a real server."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from bridge.errors import BridgeError
from tests.support.harness.journals import whole_lines
from tests.support.harness.workers import Supervised, await_true
from tests.support.parts import vault_mounts
from tests.support.parts.vault import Server
from tests.support.parts.vault_mounts import PKI, Transit

pytestmark = pytest.mark.xdist_group("workers")

_SIGNS = b"/sign/"


class LosingProxy:
    """Relays to a server; while `loses` is set, answers to calls that sign are lost.

    The call reaches the server, and the server answers; the client sees the end of the
    connection.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.loses = threading.Event()
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            signing = threading.Event()
            back = threading.Thread(
                target=self._answer, args=(server, client, signing), daemon=True
            )
            back.start()
            for data in _chunks(client):
                if _SIGNS in data.partition(b"\r\n")[0]:
                    signing.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
            back.join()

    def _answer(
        self, server: socket.socket, client: socket.socket, signing: threading.Event
    ) -> None:
        for data in _chunks(server):
            if signing.is_set() and self.loses.is_set():
                client.shutdown(socket.SHUT_RDWR)
                return
            client.sendall(data)
            signing.clear()


def _chunks(source: socket.socket) -> Iterator[bytes]:
    while data := source.recv(1 << 16):
        yield data


@pytest.mark.parametrize("plugin", ["vault-pki", "vault-transit"])
def test_a_lost_answer_is_settled_by_the_audit_log(
    plugin: str, vault_server: Server, tmp_path: Path
) -> None:
    log = tmp_path / "audit.log"
    device = vault_mounts.audit_to(vault_server, log)
    bridge = Supervised(tmp_path / "served")
    kind = PKI if plugin == "vault-pki" else Transit
    mount = kind.make(vault_server, bridge.folder / "hierarchy", tmp_path / "ca.pem")
    if isinstance(mount, PKI):
        # The bridge's own names, too: of its listener, and of the probe.
        mount.write_role(
            allowed_uri_sans=["spiffe://corp.example/*"],
            allowed_domains=["istio-system.svc"],
            allow_subdomains=True,
        )
    vault_server.api.post(
        f"sys/mounts/{mount.mount}/tune",
        audit_non_hmac_response_keys=["certificate", "serial_number"],
    )
    policy = vault_mounts.write_policy(vault_server, mount.rules)
    token = vault_mounts.new_token(vault_server, policy)
    login = vault_mounts.token_login(token, tmp_path / "token")
    with LosingProxy(vault_server.port) as proxy:
        section = {
            "plugin": plugin,
            "chain": str(mount.chain),
            "options": mount.options(login, addresses=[proxy.url]),
        }
        bridge.change(
            issuing_cas={"vault": section},
            issuance__issuing_cas=["vault"],
            issuance__backdate="60s",
        )
        with bridge:
            bridge.ask()
            proxy.loses.set()
            with pytest.raises(BridgeError):
                bridge.ask()
            proxy.loses.clear()
            await_true(lambda: bridge.rows(kind="unknown"))
            require_settled(bridge, log)
            await_true(lambda: bridge.get("/readyz")[0] == 200)
            bridge.ask()
    bridge.require_sound_ledger("--archive")
    vault_server.api.delete(f"sys/audit/{device}")


def require_settled(bridge: Supervised, log: Path) -> None:
    """Settle what is unknown, twice, while the bridge runs."""
    unknown = {row["attempt"] for row in bridge.rows(kind="unknown")}
    args = ("ledger", "reconcile", "--vault-audit", str(log), "-o", "json")
    done = bridge.run(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = bridge.rows(kind="settled")
    assert {row["attempt"] for row in rows} >= unknown
    assert {row["result"] for row in rows} == {"issued"}
    for row in rows:
        (intent,) = bridge.rows(kind="intent", attempt=row["attempt"])
        assert row["serial"] == (intent["serial"] or logged_serial(log, row["attempt"]))
        assert abs(row["not_after"] - intent["not_after"]) <= 5
    again = json.loads(bridge.run(*args).stdout)
    assert (again["settled"], again["problems"]) == ([], [])
    assert again["settled_before"] == len(rows)
    left = bridge.run("ledger", "search", "--unsettled")
    assert (left.returncode, left.stdout) == (1, "")


def logged_serial(log: Path, attempt: str) -> str:
    """Return the serial number of the answer in the log, as the ledger writes it."""
    for line in whole_lines(log):
        entry = json.loads(line)
        headers = entry["request"].get("headers") or {}
        if entry["type"] == "response" and headers == {"x-meshca-attempt": [attempt]}:
            digits = entry["response"]["data"]["serial_number"].replace(":", "")
            return f"{int(digits, 16):x}"
    raise AssertionError(f"{log} has no answer of {attempt}")
