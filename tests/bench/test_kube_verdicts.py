"""How `make bench-kube` judges what it measures."""

import re
from dataclasses import replace
from typing import Any

import pytest

from tests.bench import kube_verdicts
from tests.bench.kube_verdicts import (
    BOUND,
    ISTIO,
    ISTIO_FREE,
    JWKS,
    LINKERD,
    LINKERD_FREE,
    REVIEW,
    Listed,
    Round,
    Side,
    Watches,
)
from tests.bench.load import Result


def result(per_second: float, cpu_us: float) -> Result:
    return Result(
        per_second=per_second,
        cpu_us=cpu_us,
        p50_ms=1.0,
        p99_ms=2.0,
        errors={},
        duplicates=0,
        other_percent=0.0,
    )


def round_of(**changed: dict[str, Any]) -> Round:
    """Return a round in which each bound is just met, but for what is changed."""
    made = {
        BOUND: Side(result=result(600, 1000), api_calls=10, certificates=1000),
        REVIEW: Side(result=result(500, 1000), api_calls=1050, certificates=1000),
        JWKS: Side(result=result(700, 800)),
        ISTIO: Side(result=result(80, 2000)),
        ISTIO_FREE: Side(result=result(900, 750)),
        LINKERD: Side(result=result(100, 1500)),
        LINKERD_FREE: Side(result=result(1900, 400)),
    }
    for name, values in changed.items():
        of_result = {k: v for k, v in values.items() if k in Result.__slots__}
        of_side = {k: v for k, v in values.items() if k not in of_result}
        side = made[name]
        made[name] = replace(side, result=replace(side.result, **of_result), **of_side)
    return made


def missed(*rounds: Round) -> list[str]:
    return [text for good, text in kube_verdicts.of_rates(rounds) if not good]


def test_figures_that_just_meet_the_bounds_are_good() -> None:
    assert missed(round_of()) == []


@pytest.mark.parametrize(
    ("side", "changed", "told"),
    [
        (BOUND, {"per_second": 599.0}, "6.0 times .* of linkerd-identity as shipped"),
        (ISTIO, {"per_second": 101.0}, "5.9 times .* of Istio's CA as shipped"),
        (JWKS, {"cpu_us": 790.0}, "bound: 0.79 of jwks"),
        (REVIEW, {"cpu_us": 1020.0}, "token_review: 0.74 of Istio's CA, limiter off"),
        (BOUND, {"api_calls": 11}, "bound: 11 API calls for 1000 certificates"),
        (REVIEW, {"api_calls": 1051}, "token_review: 1051 API calls"),
        (REVIEW, {"certificates": 0}, "token_review: 1050 API calls for 0"),
        (JWKS, {"errors": {"Unavailable": 1}}, "repeated serial numbers .*: 1"),
        (BOUND, {"duplicates": 1}, "repeated serial numbers of the bridge: 1"),
    ],
)
def test_a_figure_beyond_its_bound_is_told(
    side: str, changed: dict[str, Any], told: str
) -> None:
    (found,) = missed(round_of(**{side: changed}))
    assert re.search(told, found)


def test_the_median_of_the_rounds_is_judged() -> None:
    slow = round_of(**{BOUND: {"per_second": 1.0, "cpu_us": 9_999.0}})
    assert missed(round_of(), slow, round_of()) == []
    assert len(missed(slow, slow, round_of())) == 3


def test_what_peers_refuse_is_no_fault_of_the_bridge() -> None:
    assert missed(round_of(**{ISTIO: {"errors": {"Unavailable": 9}}})) == []


GOOD = Listed(
    source="some pods",
    resident_kb=130_000,
    empty_kb=40_000,
    cpu_seconds=10.0,
    reviewed=1,
    refused=0,
)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"resident_kb": 138_000}, "grew by at most 100 MB"),
        ({"cpu_seconds": 10.1}, "10.1 s of CPU"),
        ({"reviewed": 0}, "meanwhile 0 certificates"),
        ({"refused": 1}, "1 callers without one"),
    ],
)
def test_a_watcher_that_needs_too_much_is_told(
    changed: dict[str, Any], told: str | None
) -> None:
    found = kube_verdicts.of_list(replace(GOOD, **changed))
    texts = [text for good, text in found if not good]
    assert len(texts) == (told is not None)
    assert told is None or told in texts[0]


@pytest.mark.parametrize(
    ("counted", "good"),
    [
        ({"pods": 1, "nodes": 1}, True),
        ({"pods": 4, "nodes": 1}, False),
        ({"pods": 0, "nodes": 1}, False),
        ({}, False),
    ],
)
def test_a_bridge_has_one_watch_of_each_resource(
    counted: dict[str, int], *, good: bool
) -> None:
    found, _ = kube_verdicts.of_watches(Watches(when="x", by_resource=counted))
    assert found is good


@pytest.mark.parametrize(
    ("asked", "reviews", "good"), [(6, 0, True), (6, 1, False), (0, 0, False)]
)
def test_junk_costs_no_call(asked: int, reviews: int, *, good: bool) -> None:
    assert kube_verdicts.of_junk(asked, reviews)[0] is good


def test_the_table_has_the_medians_of_each_server() -> None:
    other = round_of(**{BOUND: {"per_second": 800.0, "cpu_us": 600.0}})
    head, _, bound, *rest = kube_verdicts.table([round_of(), other])
    assert bound.startswith("| bound | 700 | 800 | 600 to 1000 |")
    assert len(rest) == 6
    assert {line.count("|") for line in (head, bound, *rest)} == {11}
