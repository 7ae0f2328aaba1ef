"""Severities, acceptance, and that no rule is without a case."""

import pytest

from bridge.errors import ConfigError
from bridge.hierarchy.plan import RULES, plan_of
from tests.support.parts.hierarchy_file import NOW, loaded
from tests.unit.hierarchy.plan import (
    test_cluster_rules,
    test_constraint_rules,
    test_tree_rules,
)

LONG = {"cas.root.validity": {"years": 30}}
REASON = "the root of 2020 was made so"
ACCEPTED = {"accepted": [{"rule": "validity.long", "ca": "root", "reason": REASON}]}


def test_every_rule_has_a_case_that_breaks_it() -> None:
    tables = (test_constraint_rules.BROKEN, test_cluster_rules.BROKEN)
    constraints = {rule for table in tables for rule, *_ in table.values()}
    assert constraints | test_tree_rules.BROKEN.keys() == RULES.keys()


def test_a_good_file_passes() -> None:
    plan = plan_of(loaded(), now=NOW)
    assert plan.passes
    plan.require_passes()
    assert {one.severity for one in plan.findings} == {"info"}


def test_a_warning_fails() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^hierarchy.yaml: cas.root.validity: is valid for more than 25 years.*"
        r"\[validity.long\]$",
    ):
        plan_of(loaded(LONG), now=NOW).require_passes()


def test_a_warning_that_the_file_accepts_is_shown_with_its_reason_and_passes() -> None:
    plan = plan_of(loaded(LONG | ACCEPTED), now=NOW)
    assert plan.passes
    assert [one.accepted for one in plan.findings if one.rule == "validity.long"] == [
        REASON
    ]


@pytest.mark.parametrize("ca", ["eu", None])
def test_a_warning_is_accepted_for_its_ca_alone(ca: str | None) -> None:
    other = {"rule": "validity.long", "reason": REASON} | ({"ca": ca} if ca else {})
    assert not plan_of(loaded(LONG | {"accepted": [other]}), now=NOW).passes


def test_what_fails_comes_first() -> None:
    broken = LONG | {"cas.prod.purpose": "kubernetes"}
    fails = [one.fails for one in plan_of(loaded(broken), now=NOW).findings]
    assert fails == sorted(fails, reverse=True)
    assert fails[0]
    assert not fails[-1]
