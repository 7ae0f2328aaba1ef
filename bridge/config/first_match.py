"""Finds the first rule of an ordered list that matches, without a search.

A rule lists values for some of a fixed number of dimensions, and matches what is listed
in each of them. What takes a value in one dimension is kept as a bit mask, so a look-up
is one dictionary per dimension, however many rules there are.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import reduce
from itertools import product
from operator import and_

Conditions = Sequence[frozenset[str] | None]
"""The values that a rule lists, by dimension; `None` is every value."""


class FirstMatch:
    """An ordered list of rules, prepared for look-ups.

    Args:
        rules: In order; each with the same number of dimensions.
    """

    __slots__ = ("_masks", "_others", "_rules")

    def __init__(self, rules: Sequence[Conditions]) -> None:
        self._rules = rules
        self._others: list[int] = []
        """By dimension, the rules that match a value which no rule lists."""
        self._masks: list[dict[str, int]] = []
        for listed in zip(*rules, strict=True):
            others = sum(1 << i for i, values in enumerate(listed) if values is None)
            masks: dict[str, int] = {}
            for index, values in enumerate(listed):
                for value in values or ():
                    masks[value] = masks.get(value, others) | 1 << index
            self._others.append(others)
            self._masks.append(masks)

    def index(self, values: Iterable[str | None]) -> int | None:
        """Return the index of the first rule that matches, or None.

        Args:
            values: One for each dimension; `None` is one that no rule lists.
        """
        found = -1
        for value, masks, others in zip(values, self._masks, self._others, strict=True):
            found &= others if value is None else masks.get(value, others)
        return _lowest(found) if found > 0 else None

    def covering(self, index: int, all_values: Conditions) -> frozenset[int]:
        """Return the earlier rules that match all callers of rule `index`.

        Args:
            index: The index of a rule.
            all_values: The values that can occur, by dimension; `None` if any can.

        Returns:
            The indexes of earlier rules; empty if rule `index` can match.
        """
        upto = (2 << index) - 1  # later rules do not matter
        kinds = [
            {
                upto & (others if value is None else masks.get(value, others))
                for value in _values(listed, every)
            }
            for listed, every, masks, others in zip(
                self._rules[index], all_values, self._masks, self._others, strict=True
            )
        ]
        # Values that the same rules match are one case.
        firsts = {_lowest(reduce(and_, case)) for case in product(*kinds)}
        return frozenset() if index in firsts else frozenset(firsts)


def _lowest(mask: int) -> int:
    # The index of the lowest bit that is set.
    return (mask & -mask).bit_length() - 1


def _values(
    listed: frozenset[str] | None, every: frozenset[str] | None
) -> Collection[str | None]:
    # The values that a rule matches in one dimension. If it matches every value, and
    # any value can occur, one that no rule lists represents all: a rule that matches
    # it matches every value.
    found = every if listed is None else listed
    return (None,) if found is None else found
