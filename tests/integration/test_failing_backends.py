"""What clients of both fronts see while an issuing CA fails, over the wire."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.errors import BackendUnavailableError
from tests.support.clients.callers import RETRYABLE, Callers
from tests.support.harness.fake_backends import FakeBackends, StallingCA
from tests.support.harness.fake_ca import lie_called
from tests.support.harness.faults import WELL_AGAIN_SECONDS
from tests.support.harness.in_process_server import eventually

FAULT_SECONDS = 4.0
"""How long a fault lasts: two timeouts of an issuing CA."""
FEW_THREADS = {"limits": {"threads": 4}}


def served(callers: Callers, since: float) -> float:
    return callers.await_served(since, 20)


def _refuse(ca: StallingCA) -> None:
    ca.error = BackendUnavailableError("refused")


def _stall(ca: StallingCA) -> None:
    ca.is_stalled = True


def _raise_nonsense(ca: StallingCA) -> None:
    ca.error = ZeroDivisionError("secret")


@pytest.mark.parametrize("harm", [_refuse, _stall, _raise_nonsense])
def test_the_second_of_two_equal_cas_serves_while_the_first_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[StallingCA], None]
) -> None:
    with (
        FakeBackends(tmp_path / "bridge", monkeypatch, FEW_THREADS) as bridge,
        Callers(bridge, each=6) as callers,
    ):
        served(callers, time.monotonic())
        harm(bridge.cas["a"])
        began = time.monotonic()
        assert served(callers, began + 1) < FAULT_SECONDS, "new calls go to the second"
        time.sleep(FAULT_SECONDS)
        codes = callers.codes(began)
        assert set(codes) <= RETRYABLE, callers.texts(began)
        assert codes["OK"] >= 0.99 * codes.total(), callers.texts(began)
        asked = len(bridge.cas["a"].called)
        time.sleep(1)
        assert len(bridge.cas["a"].called) <= asked + 1, "only a probe"
        status, page = bridge.get("/readyz")
        assert status == 200
        assert (
            "a fails, and gets no calls" in json.loads(page)["warnings"]["issuing CAs"]
        )
        assert bridge.metric("meshca_breaker_open", issuing_ca="a") == 1
        assert bridge.metric("meshca_backend_failovers_total", issuing_ca="b") > 0
        bridge.cas["a"].recover()
        eventually(lambda: len(bridge.cas["a"].called) > asked + 20)
        assert bridge.metric("meshca_breaker_open", issuing_ca="a") == 0


def test_with_the_only_ca_down_answers_come_at_once_and_few_rows_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        FakeBackends(tmp_path / "bridge", monkeypatch) as bridge,
        Callers(bridge, each=3) as callers,
    ):
        served(callers, time.monotonic())
        for ca in bridge.cas.values():
            _refuse(ca)
        eventually(lambda: bridge.metric("meshca_breaker_open") == 2)
        began, before = time.monotonic(), len(bridge.rows())
        time.sleep(FAULT_SECONDS)
        seen = callers.results(began)
        written = len(bridge.rows()) - before
        assert {one.code for one in seen} == {"UNAVAILABLE"}
        assert statistics.median(one.seconds for one in seen) < 0.1
        assert written < 10 * FAULT_SECONDS
        status, page = bridge.get("/readyz")
        assert status == 200, "a restart would help nobody"
        assert "a fails" in page
        for ca in bridge.cas.values():
            ca.recover()
        assert served(callers, time.monotonic()) < WELL_AGAIN_SECONDS


def test_calls_that_hang_do_not_silence_the_other_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {
        "issuance": {"rules": [{"fronts": ["linkerd"], "issuing_cas": ["b"]}]},
        "limits": {"threads": 24},
    }
    with FakeBackends(tmp_path / "bridge", monkeypatch, overrides) as bridge:
        first = bridge.cas["a"]
        before = len(first.called)
        first.is_stalled = first.is_deaf = True
        with Callers(bridge, each=24) as callers:
            began = time.monotonic()
            eventually(lambda: len(first.called) >= before + 18)
            time.sleep(FAULT_SECONDS)
            held = len(first.called) - before
            seen = callers.results(began)
            assert {one.code for one in seen if one.front == "linkerd"} == {"OK"}
            # Six threads are left, and serve at the equal CA whoever asks.
            assert {one.code for one in seen if one.front == "istio"} <= RETRYABLE
            assert any(one.front == "istio" and one.code == "OK" for one in seen)
            assert held <= 18 + 1, "three quarters of the threads, and a probe"
            first.recover()


def test_a_ca_that_misissues_is_stopped_and_the_other_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        FakeBackends(tmp_path / "bridge", monkeypatch) as bridge,
        Callers(bridge, each=2) as callers,
    ):
        served(callers, time.monotonic())
        bridge.cas["a"].lie = lie_called("extra name")
        eventually(lambda: callers.codes()["FAILED_PRECONDITION"] > 0)
        served(callers, time.monotonic())
        asked, later = len(bridge.cas["a"].called), time.monotonic()
        time.sleep(1)
        assert set(callers.codes(later)) == {"OK"}
        assert len(bridge.cas["a"].called) == asked
        # Each call that got the wrong certificate was refused, and not tried elsewhere.
        wrong = callers.codes()["FAILED_PRECONDITION"]
        assert len(bridge.rows(kind="unknown", issuing_ca="a")) == wrong
