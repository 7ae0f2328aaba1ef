from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config.first_match import Conditions, FirstMatch


def rule(first: str | None, second: str | None) -> Conditions:
    """Return a rule of two dimensions; each a letter per value, None for all."""
    return tuple(None if text is None else frozenset(text) for text in (first, second))


RULES = [rule("ab", "x"), rule("a", None), rule(None, "y"), rule("c", "x")]


@pytest.mark.parametrize(
    ("values", "index"),
    [
        (("a", "x"), 0),  # of two that match, the first
        (("b", "x"), 0),
        (("a", "y"), 1),
        (("a", "?"), 1),  # a value that no rule lists
        (("a", None), 1),  # and one that none could
        (("b", "y"), 2),
        ((None, "y"), 2),
        (("c", "x"), 3),
        (("b", "?"), None),
        ((None, None), None),
    ],
)
def test_the_first_that_matches_wins(
    values: tuple[str | None, ...], index: int | None
) -> None:
    assert FirstMatch(RULES).index(values) == index


LETTERS = st.none() | st.text("abc", min_size=1, max_size=2)
MANY = st.lists(st.builds(rule, LETTERS, LETTERS), min_size=1, max_size=6)


def by_search(rules: Sequence[Conditions], values: tuple[str, ...]) -> int | None:
    for index, listed in enumerate(rules):
        if all(
            some is None or value in some
            for some, value in zip(listed, values, strict=True)
        ):
            return index
    return None


@given(rules=MANY)
def test_it_finds_what_a_search_finds(rules: list[Conditions]) -> None:
    match = FirstMatch(rules)
    for values in product("abc?", repeat=2):
        assert match.index(values) == by_search(rules, values)


@pytest.mark.parametrize(
    ("rules", "every", "covering"),
    [
        ([rule("a", None), rule("a", "x")], (None, None), {0}),
        ([rule(None, None), rule("a", "x")], (None, None), {0}),
        # Two together.
        ([rule("a", None), rule("b", None), rule("ab", "x")], (None, None), {0, 1}),
        ([rule("a", "x"), rule("a", "y"), rule("a", "xy")], (None, None), {0, 1}),
        # Where only some values can occur, those are all.
        ([rule("a", None), rule("b", None), rule(None, "x")], ("ab", None), {0, 1}),
        ([rule("a", None), rule("b", None), rule(None, "x")], ("abc", None), set()),
        ([rule("a", None), rule("b", None), rule(None, "x")], (None, None), set()),
        # Something is left.
        ([rule("a", "x"), rule("a", None)], (None, None), set()),
        ([rule("a", "x"), rule("ab", "x")], (None, None), set()),
        ([rule("a", None), rule(None, "x")], (None, None), set()),
        ([rule("a", "x")], (None, None), set()),
    ],
)
def test_it_says_which_rules_leave_the_last_nothing(
    rules: list[Conditions], every: tuple[str | None, str | None], covering: set[int]
) -> None:
    found = FirstMatch(rules).covering(len(rules) - 1, rule(*every))
    assert found == covering


@given(rules=MANY)
def test_a_rule_is_covered_exactly_if_nothing_reaches_it(
    rules: list[Conditions],
) -> None:
    # `?` is the value that no rule lists; in the first dimension there is none.
    match, every = FirstMatch(rules), (frozenset("abc"), None)
    reached = {match.index(values) for values in product("abc", "abc?")}
    for index in range(len(rules)):
        assert bool(match.covering(index, every)) == (index not in reached)
