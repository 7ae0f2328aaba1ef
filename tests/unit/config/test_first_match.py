from collections.abc import Iterator, Sequence
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from bridge.config.first_match import Conditions, FirstMatch


def rule(first: str | None, second: str | None) -> Conditions:
    """Return a rule of two dimensions; each a letter per value, None for all."""
    return tuple(None if text is None else frozenset(text) for text in (first, second))


LETTERS = st.none() | st.text("abc", min_size=1, max_size=2)
MANY = st.lists(st.builds(rule, LETTERS, LETTERS), min_size=1, max_size=6)


def matching(
    rules: Sequence[Conditions], values: Sequence[str | None]
) -> Iterator[int]:
    """Yield the indexes of the rules that match, by a search."""
    for index, listed in enumerate(rules):
        if all(
            some is None or value in some
            for some, value in zip(listed, values, strict=True)
        ):
            yield index


@given(rules=MANY)
def test_it_finds_what_a_search_finds(rules: list[Conditions]) -> None:
    match = FirstMatch(rules)
    # `?` is a value that no rule lists, and None one that none could.
    for values in product([*"abc?", None], repeat=2):
        assert match.index(values) == next(matching(rules, values), None)


@given(rules=MANY)
def test_a_rule_is_covered_exactly_if_nothing_reaches_it(
    rules: list[Conditions],
) -> None:
    # `?` is the value that no rule lists; in the first dimension there is none.
    match, every = FirstMatch(rules), (frozenset("abc"), None)
    found = [[*matching(rules, values)] for values in product("abc", "abc?")]
    for index in range(len(rules)):
        callers = [own for own in found if index in own]
        covering = match.covering(index, every)
        assert bool(covering) == all(own[0] < index for own in callers)
        assert max(covering, default=-1) < index
        assert not covering or all(covering & {*own} for own in callers)
