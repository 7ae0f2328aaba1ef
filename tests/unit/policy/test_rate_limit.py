"""The rate limits of callers."""

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.config import CeilingConfig, LimitsConfig
from bridge.errors import AuthenticationError, ConfigError, OverloadedError
from bridge.identity.caller import Caller, Pod
from bridge.policy import rate_limit as module
from bridge.policy.rate_limit import RateLimit, RateLimits, SharedBuckets
from bridge.spiffe import SpiffeID
from tests.support.harness.core import World


def caller(name: str = "web", cluster: str = "east") -> Caller:
    return Caller(
        spiffe_id=SpiffeID.parse(f"spiffe://corp.example/ns/shop/sa/{name}"),
        cluster=cluster,
        credential="token",
        verified_by="jwks",
    )


def test_a_refused_call_costs_nothing() -> None:
    rate_limit = RateLimit(1, 1, SharedBuckets())
    assert rate_limit.admits("a", 0.0)
    assert not any(rate_limit.admits("a", 0.1 * n) for n in range(1, 9))
    assert rate_limit.admits("a", 1.0)


@given(
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 20),
)
def test_never_more_than_the_burst_and_the_rate_allow(
    gaps: list[float], rate: float, burst: int
) -> None:
    rate_limit, now, admitted = RateLimit(rate, burst, SharedBuckets()), 0.0, 0
    for gap in gaps:
        now += gap
        admitted += rate_limit.admits("a", now)
        assert admitted <= burst + rate * now + 1e-4 + 1e-6 * len(gaps)


@given(
    uptime=st.floats(0, 30 * 365 * 86_400),
    rate=st.floats(0.001, 1e9),
    burst=st.integers(1, 50),
)
@example(uptime=2.0**23 * 1.3, rate=10, burst=1)
def test_a_burst_passes_however_long_the_host_is_up(
    uptime: float, rate: float, burst: int
) -> None:
    rate_limit = RateLimit(rate, burst, SharedBuckets())
    assert all(rate_limit.admits("a", uptime) for _ in range(burst))
    if rate <= 10_000:
        assert not rate_limit.admits("a", uptime)
        assert rate_limit.admits("a", uptime + 1.001 / rate)


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ({"per_identity": CeilingConfig(rate=1, burst=1)}, "overload.identity"),
        ({"per_cluster": CeilingConfig(rate=1, burst=1)}, "overload.cluster"),
    ],
)
def test_the_rule_names_the_limit_that_was_exceeded(
    limits: dict[str, CeilingConfig], rule: str
) -> None:
    rate_limits = RateLimits.of(LimitsConfig(**limits))  # type: ignore[arg-type]
    rate_limits.require("istio", caller(), 0.0)
    with pytest.raises(OverloadedError, match="asks too often") as caught:
        rate_limits.require("istio", caller(), 0.0)
    assert caught.value.rule == rule


def test_a_loud_identity_does_not_use_up_what_its_cluster_may() -> None:
    rate_limits = RateLimits.of(
        LimitsConfig(
            per_identity=CeilingConfig(rate=1, burst=1),
            per_cluster=CeilingConfig(rate=1, burst=2),
        )
    )
    rate_limits.require("istio", caller("loud"), 0.0)
    for _ in range(5):
        with pytest.raises(OverloadedError, match="identity"):
            rate_limits.require("istio", caller("loud"), 0.0)
    rate_limits.require("istio", caller("quiet"), 0.0)


def test_one_account_has_a_limit_in_each_mesh() -> None:
    rate_limits = RateLimits.of(
        LimitsConfig(per_identity=CeilingConfig(rate=1, burst=1))
    )
    for front in ("istio", "linkerd"):
        rate_limits.require(front, caller(), 0.0)
        with pytest.raises(OverloadedError, match="identity"):
            rate_limits.require(front, caller(), 0.0)


def test_each_pod_that_asks_for_others_has_a_limit() -> None:
    rate_limits = RateLimits.of(
        LimitsConfig(per_identity=CeilingConfig(rate=1, burst=2))
    )
    pods = [replace(caller(), pod=Pod("shop", "web", uid)) for uid in ("a", "b")]
    for pod in pods:
        for _ in range(2):
            rate_limits.require_requester("istio", pod, 0.0)
        with pytest.raises(OverloadedError, match="for other workloads") as refused:
            rate_limits.require_requester("istio", pod, 0.0)
        assert refused.value.rule == "overload.requester"
    # What is asked for itself is counted apart.
    rate_limits.require("istio", pods[0], 0.0)


def test_without_configuration_there_is_no_limit() -> None:
    rate_limits = RateLimits.of(LimitsConfig())
    for _ in range(1000):
        rate_limits.require("istio", caller(), 0.0)
        rate_limits.require_requester("istio", caller(), 0.0)


# On the whole way of a request.


def rate_limits(**limits: Any) -> dict[str, Any]:
    return {"limits": limits}


def test_a_loop_gets_a_summary_and_not_a_row_for_each_call(tmp_path: Path) -> None:
    overrides = rate_limits(per_cluster={"rate": 0.001, "burst": 1})
    overrides["ledger"] = {"excess_per_second": 2}
    with World(tmp_path, overrides=overrides) as made:
        made.issue()
        for _ in range(5):
            with pytest.raises(OverloadedError, match="this cluster asks too often"):
                made.issue()
        rows = made.ended()
    assert len([row for row in rows if row["kind"] == "refused"]) == 2
    (summary,) = [row for row in rows if row["kind"] == "summary"]
    assert summary["rules"] == {"overload.cluster": 3}


def test_unauthenticated_calls_do_not_use_up_the_rows_of_callers(
    tmp_path: Path,
) -> None:
    overrides = rate_limits(per_identity={"rate": 0.001, "burst": 1})
    overrides["ledger"] = {"excess_per_second": 1}
    with World(tmp_path, overrides=overrides) as made:
        for _ in range(2):
            with pytest.raises(AuthenticationError, match="token"):
                made.issue(audiences=frozenset({"other"}))
        made.issue()
        with pytest.raises(OverloadedError, match="identity"):
            made.issue()
        refused = [row["rule"] for row in made.ended() if row["kind"] == "refused"]
    assert refused == ["token.audience", "overload.identity"]


TAKER = """
import sys
from pathlib import Path
from bridge.policy.rate_limit import SharedBuckets
from bridge.policy.rate_limit import RateLimit
rate_limit = RateLimit(0.001, 500, SharedBuckets(Path(sys.argv[1])))
sys.stdin.read(1)
print(sum(rate_limit.admits("a", 100.0) for _ in range(400)))
"""


def opened(tmp_path: Path) -> SharedBuckets:
    return SharedBuckets(tmp_path / "rate_limits")


def test_processes_take_from_one_bucket_and_none_counts_in_vain(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", TAKER, str(tmp_path / "rate_limits")]
    pipe = subprocess.PIPE
    takers = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)
    ]
    taken = [int(taker.communicate("x")[0]) for taker in takers]
    assert sum(taken) == 500


def test_the_disk_has_room_for_every_place_before_the_first_call(
    tmp_path: Path,
) -> None:
    opened(tmp_path)
    found = (tmp_path / "rate_limits").stat()
    assert found.st_blocks * 512 >= found.st_size


def test_a_disk_without_room_is_named_and_left_as_it_was(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(
            ConfigError,
            match=rf"^limits: {tmp_path}/rate_limits: .*: File too large \(it ",
        ):
            opened(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "rate_limits").stat().st_size == 0


def test_what_others_have_counted_stays_when_the_file_is_opened(tmp_path: Path) -> None:
    first = RateLimit(0.001, 1, opened(tmp_path))
    assert first.admits("a", 100.0)
    assert not RateLimit(0.001, 1, opened(tmp_path)).admits("a", 100.0)


def test_the_rate_and_the_burst_are_those_of_one_process(tmp_path: Path) -> None:
    rate_limits = [RateLimit(2, 3, opened(tmp_path)) for _ in range(2)]
    both = [rate_limits[n % 2].admits("a", 100.0) for n in range(4)]
    assert both == [True, True, True, False]
    assert not rate_limits[1].admits("a", 100.4)
    assert rate_limits[1].admits("a", 100.5)


def test_keys_and_limits_do_not_share_a_bucket(tmp_path: Path) -> None:
    shared = opened(tmp_path)
    rate_limit, other = RateLimit(1, 1, shared), RateLimit(1, 2, shared)
    assert rate_limit.admits("a", 100.0)
    assert rate_limit.admits("b", 100.0)
    assert other.admits("a", 100.0)
    assert not rate_limit.admits("a", 100.0)


def test_where_all_places_are_taken_a_call_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLOTS", 1)
    monkeypatch.setattr(module, "_PROBES", 2)
    rate_limit = RateLimit(1, 1, opened(tmp_path))
    assert [rate_limit.admits(key, 100.0) for key in "abcc"] == [True] * 4
    # A bucket that is full again leaves its place.
    assert rate_limit.admits("c", 101.5)
    assert not rate_limit.admits("c", 101.6)
