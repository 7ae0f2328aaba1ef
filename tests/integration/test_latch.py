"""What is latched, in a bridge that runs: every worker, a restart, a clearance."""

import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from bridge.errors import BackendCredentialError, BridgeError
from bridge.resilience.latch import Latch
from bridge.resilience.quarantine import StoppedCAs
from tests.support.harness.workers import Supervised, await_true

pytestmark = pytest.mark.xdist_group("workers")


def certificate_of(bridge: Supervised) -> str:
    """Return the SHA-256 of the issuing CA's certificate."""
    certificate = x509.load_pem_x509_certificate(bridge.chain.read_bytes())
    return certificate.fingerprint(hashes.SHA256()).hex()


def refused(bridge: Supervised, calls: int = 8) -> int:
    """Ask some times; return how many were refused. Each worker gets some calls."""
    told = []
    for _ in range(calls):
        try:
            bridge.ask()
        except BridgeError as error:
            told.append(f"{error} {error.detail}")
    assert all("stopped after a mis-issuance" in text for text in told), told
    return len(told)


def warnings(bridge: Supervised) -> str:
    return json.dumps(json.loads(bridge.get("/readyz")[1]))


def test_a_ca_is_stopped_for_all_workers_and_restarts_until_it_is_cleared(
    tmp_path: Path,
) -> None:
    bridge = Supervised(tmp_path / "served", 2, awaits="/healthz")
    latch = bridge.folder / "journal/state/latch.json"
    with bridge:
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        assert refused(bridge) == 0
        StoppedCAs(latch).add("demo", certificate_of(bridge), "another name")
        assert refused(bridge) == 8
        await_true(lambda: bridge.metric("meshca_latched", kind="issuing_ca") == 1)
        await_true(lambda: "another name" in warnings(bridge))
        (row,) = bridge.await_rows(1, kind="stopped")
        assert row["detail"] == "another name"
    with bridge:
        # The listener's own certificate would be of this issuing CA, too.
        await_true(lambda: "stopped after a mis-issuance" in warnings(bridge))
        assert bridge.get("/readyz")[0] == 503
        said = bridge.run("ledger", "latch", "clear", "demo", "--reason", "mended")
        assert said.returncode == 0, said.stderr
        await_true(lambda: bridge.get("/readyz")[0] == 200)
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        assert refused(bridge) == 0
        assert bridge.metric("meshca_latched") == 0
        (row,) = bridge.await_rows(1, kind="cleared")
        assert row["detail"] == "mended"
    bridge.require_sound_ledger("--archive")
    assert len(bridge.rows(kind="stopped")) == 1


def test_a_refused_credential_shows_and_its_rows_are_written_at_the_next_start(
    tmp_path: Path,
) -> None:
    bridge = Supervised(tmp_path / "served")
    latch = Latch(bridge.folder / "journal/state/latch.json", issuing_ca="hsm")
    error = BackendCredentialError("the PIN is wrong")
    with (
        pytest.raises(BackendCredentialError, match="the PIN is wrong"),
        latch.attempt("token 0042", b"hunter-2-31337"),
    ):
        raise error
    with bridge:
        await_true(lambda: "hsm: refused: the PIN is wrong" in warnings(bridge))
        assert bridge.metric("meshca_latched", issuing_ca="hsm") == 1
        bridge.await_rows(1, kind="latched")
        # It is another issuing CA's.
        bridge.ask()
        # The feeder of a bridge that is stopped at once may not have begun.
        search = ("ledger", "search", "--kind", "latched", "-o", "json")
        await_true(lambda: "token 0042" in bridge.run(*search).stdout)
    found = bridge.run(*search)
    assert [row["scope"] for row in json.loads(found.stdout)["entries"]] == [
        "token 0042"
    ]
    spellings = ("hunter-2-31337", b"hunter-2-31337".hex())
    for file in bridge.folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not any(spelling.encode() in content for spelling in spellings), file


def test_a_start_with_a_damaged_file_is_refused_in_words(tmp_path: Path) -> None:
    bridge = Supervised(tmp_path / "served")
    latch = bridge.folder / "journal/state/latch.json"
    latch.parent.mkdir(parents=True)
    latch.write_text("{")
    said = bridge.run("serve")
    assert said.returncode == 1
    assert f"{latch} holds no latch" in said.stderr
    assert "move it away" in said.stderr
