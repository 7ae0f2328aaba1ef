"""What setup finds in Vault, and what it would make or change there."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["right", "make", "change", "wait", "problem"]
"""Of one thing in Vault:

* `right`: it is there, and as it must be;
* `make`: it is not there;
* `change`: some of its fields differ;
* `wait`: it needs something that an operator has to do first;
* `problem`: setup does not touch it, and the bridge could not use it.
"""
_WORDS: Mapping[tuple[State, bool], str] = {
    ("right", False): "is right",
    ("make", False): "would be made",
    ("change", False): "would be changed",
    ("wait", False): "waits",
    ("problem", False): "problem",
    ("make", True): "made",
    ("change", True): "changed",
}
"""In a plan, and once it was carried out."""


@dataclass(frozen=True, slots=True)
class Change:
    """A field that differs."""

    field: str
    found: object
    wanted: object

    def __str__(self) -> str:
        return f"{self.field}: {_text(self.found)} -> {_text(self.wanted)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanItem:
    """What was found of one thing, and how it is made right."""

    what: str
    """Kind and path, such as `role pki/roles/mesh`."""
    state: State
    changes: tuple[Change, ...] = ()
    note: str = ""
    act: Callable[[], object] | None = None
    """Makes or changes it."""


Step = Callable[[], PlanItem]
"""Looks at one thing. It changes nothing by itself."""


def differences(
    found: Mapping[str, Any], wanted: Mapping[str, object]
) -> tuple[Change, ...]:
    """Return the fields that differ. A field that is not there is as if it were empty.

    Args:
        found: As Vault has it.
        wanted: Other fields of `found` may be anything.
    """
    return tuple(
        Change(name, found.get(name), value)
        for name, value in wanted.items()
        if not _is_same(found.get(name), value)
    )


def carried_out(steps: Iterable[Step]) -> Iterator[PlanItem]:
    """Make and change what differs, and yield each finding once it is right.

    Each thing is looked at in its turn, so a run that stopped half way is completed by
    the next one.
    """
    for step in steps:
        finding = step()
        if finding.act is not None:
            finding.act()
        yield finding


def text_of(finding: PlanItem, *, is_done: bool) -> str:
    """Return a finding for people: a line, and one more for each field."""
    word = _WORDS.get((finding.state, is_done)) or _WORDS[finding.state, False]
    note = f": {finding.note}" if finding.note else ""
    lines = [f"{word:<17} {finding.what}{note}"]
    return "\n".join([*lines, *(f"    {change}" for change in finding.changes)])


def public(finding: PlanItem) -> dict[str, Any]:
    """Return a finding for programs."""
    return {
        "what": finding.what,
        "state": finding.state,
        "changes": [
            {"field": one.field, "found": one.found, "wanted": one.wanted}
            for one in finding.changes
        ],
        "note": finding.note,
    }


def _is_same(found: object, wanted: object) -> bool:
    if isinstance(wanted, list):
        # Vault does not keep the order of all its lists.
        own = found if isinstance(found, list) else []
        return sorted(map(str, own)) == sorted(map(str, wanted))
    return (found or type(wanted)()) == wanted


def _text(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
