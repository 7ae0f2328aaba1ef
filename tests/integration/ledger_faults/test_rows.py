"""The rows of each kind of call, one test for each sentence of the design."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.client.istio import IstioRequest, ask
from tests.integration.ledger_faults.support import (
    segment,
    status,
    workload_rows,
)
from tests.support.harness.real_process import SERVER_NAME, Bridge
from tests.support.harness.workers import await_true

_NONSENSE = "nonsense"


def test_an_attempt_is_one_intent_and_one_outcome_that_match_the_certificate(
    tmp_path: Path,
) -> None:
    with Bridge(tmp_path / "served") as bridge:
        wanted = IstioRequest(
            address=bridge.address,
            roots=bridge.roots.read_bytes(),
            token=bridge.token(),
            server_name=SERVER_NAME,
        )
        leaf = x509.load_pem_x509_certificate(ask(wanted).cert_chain[0].encode())
    (intent,) = workload_rows(bridge, "intent")
    (issued,) = workload_rows(bridge, "issued")
    assert (
        intent["tbs_sha256"] == hashlib.sha256(leaf.tbs_certificate_bytes).hexdigest()
    )
    assert (issued["attempt"], issued["request"]) == (
        intent["attempt"],
        intent["request"],
    )
    spki = leaf.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    assert intent["key_sha256"] == hashlib.sha256(spki).hexdigest()
    assert issued["serial"] == f"{leaf.serial_number:x}"
    assert issued["seq"] > intent["seq"]


def test_unauthenticated_calls_are_rows_up_to_a_rate_and_then_one_a_second(
    tmp_path: Path,
) -> None:
    calls = 25
    overrides = {"ledger": {"refusals_per_second": 2}}
    with Bridge(tmp_path / "served", overrides=overrides) as bridge:
        # At once, so that some come in one second on a busy machine, too.
        with ThreadPoolExecutor(calls) as pool:
            asked = [pool.submit(status, bridge, token=_NONSENSE) for _ in range(calls)]
        assert {one.result() for one in asked} == {"UNAUTHENTICATED"}
    rows = workload_rows(bridge, "refused")
    summaries = bridge.rows(kind="summary")
    counted = sum(sum(row["rules"].values()) for row in summaries)
    assert len(rows) + counted == calls
    assert summaries
    assert len({row["since"] for row in summaries}) == len(summaries)
    seconds = [row["at"] // 1_000_000 for row in rows]
    assert all(seconds.count(second) <= 2 for second in seconds)


def test_a_restart_gives_open_attempts_the_outcome_unknown(tmp_path: Path) -> None:
    # The last head was published at the start: what comes later may be cut.
    overrides = {"ledger": {"heads": {"interval": "1m"}}}
    bridge = Bridge(tmp_path / "served", overrides=overrides)
    with bridge:
        assert status(bridge) == "OK"
        await_true(lambda: workload_rows(bridge, "issued"))
        bridge.kill()
    # As if the process had died between the intent and the outcome.
    (intent,) = workload_rows(bridge, "intent")
    lines = segment(bridge).read_bytes().splitlines(keepends=True)
    segment(bridge).write_bytes(b"".join(lines[: intent["seq"] + 1]))
    (bridge.folder / "archive.db").unlink(missing_ok=True)
    with bridge:
        pass
    (unknown,) = workload_rows(bridge, "unknown")
    assert unknown["attempt"] == intent["attempt"]
    assert unknown["rule"] == "ledger.restart"
    checked = bridge.run("ledger", "verify", "--archive")
    assert checked.returncode == 0, checked.stderr
