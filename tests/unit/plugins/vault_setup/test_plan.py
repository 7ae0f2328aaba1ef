"""`bridge_vault.setup.plan`: what a plan says."""

from collections.abc import Mapping
from typing import Any

import pytest

from bridge_vault.setup.plan import PlanItem, carried_out, differences, text_of


def test_a_step_looks_when_the_ones_before_it_are_done() -> None:
    done: list[str] = []

    def first() -> PlanItem:
        return PlanItem(what="a", state="make", act=lambda: done.append("a"))

    def second() -> PlanItem:
        assert done == ["a"]
        return PlanItem(what="b", state="right")

    assert [one.what for one in carried_out([first, second])] == ["a", "b"]


@pytest.mark.parametrize(
    ("found", "wanted", "told"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({}, {"a": False}, []),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, []),
        ({"a": None}, {"a": list[str]()}, []),
        ({"a": ["x"]}, {"a": list[str]()}, ['a: ["x"] -> []']),
        ({}, {"a": True}, ["a: nothing -> true"]),
    ],
)
def test_fields_differ_when_vault_would_act_otherwise(
    found: Mapping[str, Any], wanted: Mapping[str, object], told: list[str]
) -> None:
    assert [str(one) for one in differences(found, wanted)] == told


@pytest.mark.parametrize(
    ("state", "is_done", "word"),
    [
        ("make", False, "would be made"),
        ("make", True, "made"),
        ("change", False, "would be changed"),
        ("change", True, "changed"),
        ("right", True, "is right"),
        ("wait", True, "waits"),
    ],
)
def test_a_plan_says_would(state: Any, word: str, *, is_done: bool) -> None:
    text = text_of(PlanItem(what="role r", state=state), is_done=is_done)
    assert text.split("  ")[0].strip() == word
