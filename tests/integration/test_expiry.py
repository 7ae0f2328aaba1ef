"""What a bridge tells while its chains come to their end, over the wire."""

import json
import time
from datetime import timedelta
from pathlib import Path

import pytest

from bridge.process.role import UNPROVEN
from bridge.system.clock import system_clock
from tests.support.clients.callers import Callers
from tests.support.harness.clock import SetClock
from tests.support.harness.fake_backends import FakeBackends, StallingCA
from tests.support.harness.in_process_server import eventually


def test_the_level_rises_until_the_bridge_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bridge.snapshot.expiry._LOOK_SECONDS", 0.05)
    clock = SetClock(system_clock())
    with FakeBackends(tmp_path / "bridge", monkeypatch, clock=clock) as bridge:

        def levels() -> set[str]:
            lines = bridge.get("/metrics")[1].splitlines()
            mine = [
                line for line in lines if line.startswith("meshca_certificate_expiry_l")
            ]
            return {line[-3:] for line in mine if 'tier="issuing"' in line}

        page = json.loads(bridge.get("/readyz")[1])
        assert page["parts"]["issuing CAs"] == "ok"
        assert "expiry" not in page["warnings"]
        assert levels() == {"0.0"}

        clock.forward(days=60)
        page = json.loads(bridge.get("/readyz")[1])
        assert "issuing CA" not in page["warnings"].get("expiry", "")
        assert levels() == {"1.0"}

        clock.forward(days=24, hours=12)
        page = json.loads(bridge.get("/readyz")[1])
        assert page["parts"]["issuing CAs"] == "ok"
        assert "warning: the issuing CA (CN=issuing a)" in page["warnings"]["expiry"]
        assert levels() == {"2.0"}
        eventually(lambda: "80 % of its life is over: replace it before" in caplog.text)

        clock.forward(days=11)
        page = json.loads(bridge.get("/readyz")[1])
        assert page["parts"]["issuing CAs"] == "ok"
        assert "95 % of its life is over: replace it now" in page["warnings"]["expiry"]
        assert levels() == {"3.0"}

        clock.forward(days=3)
        page = json.loads(bridge.get("/readyz")[1])
        assert page["parts"]["issuing CAs"] == "ok"
        assert "error: the issuing CA (CN=issuing a)" in page["warnings"]["expiry"]
        assert levels() == {"3.0"}

        clock.forward(days=1)
        status, body = bridge.get("/readyz")
        assert status == 503
        told = json.loads(body)["parts"]["issuing CAs"]
        assert "front istio can issue nothing: the " in told
        assert bridge.get("/ready") == (500, "not ready\n")
        assert levels() == {"3.0"}
        eventually(lambda: ": replace it" in caplog.text)


def test_a_bridge_starts_beside_an_issuing_ca_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = FakeBackends(tmp_path / "bridge", monkeypatch)
    good = bridge.cas["b"].authority
    old = good.above[0].issue_ca(
        "old", path_length=0, not_after=system_clock() - timedelta(days=1)
    )
    bridge.cas["a"] = StallingCA(old)
    with bridge:
        status, body = bridge.get("/readyz")
        page = json.loads(body)
        assert (status, page["parts"]["issuing CAs"]) == (200, "ok")
        told = page["warnings"]
        assert told["expiry"].startswith("error: the issuing CA (CN=old) of a ended ")
        assert told["issuing CAs"].endswith("the issuing CA's chain has ended")
        assert UNPROVEN not in told, "no reload waits for it"
        eventually(lambda: "the issuing CA (CN=old) of a ended " in caplog.text)
        with Callers(bridge, each=1) as callers:
            began = time.monotonic()
            callers.await_served(began, 20)
            assert {*callers.codes(began)} == {"OK"}
    assert bridge.cas["a"].called == []
