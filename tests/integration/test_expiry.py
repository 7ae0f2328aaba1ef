"""What a bridge tells while its chains come to their end, over the wire."""

import json
from pathlib import Path

import pytest

from bridge.system.clock import system_clock
from tests.support.harness.clock import SetClock
from tests.support.harness.fake_backends import FakeBackends
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

        clock.forward(days=74, hours=12)
        page = json.loads(bridge.get("/readyz")[1])
        assert page["parts"]["issuing CAs"] == "ok"
        assert "warning: the issuing CA (CN=issuing a)" in page["warnings"]["expiry"]
        assert levels() == {"1.0"}
        eventually(lambda: "in 24 days: replace it before" in caplog.text)

        clock.forward(days=24)
        page = json.loads(bridge.get("/readyz")[1])
        assert page["parts"]["issuing CAs"] == "ok"
        assert "error: the issuing CA (CN=issuing a)" in page["warnings"]["expiry"]
        assert levels() == {"2.0"}

        clock.forward(days=1)
        status, body = bridge.get("/readyz")
        assert status == 503
        assert "a can issue nothing: the " in json.loads(body)["parts"]["issuing CAs"]
        assert bridge.get("/ready") == (500, "not ready\n")
        assert levels() == {"2.0"}
        eventually(lambda: ": replace it" in caplog.text)
