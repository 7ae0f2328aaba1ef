"""What a part of the soak found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bound, and whether it held."""

    text: str
    good: bool

    def __str__(self) -> str:
        return f"{'PASS' if self.good else 'FAIL'}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row of the table in docs/faults.md."""

    fault: str
    saw: str
    """What clients saw."""
    on_record: str
    recovery: str
    """How long it took until all was well again."""


@dataclass(slots=True)
class Result:
    """Of one part."""

    part: str
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was seen beside the bounds."""
    faults: list[Fault] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """All that was measured, for the file of figures."""

    @property
    def good(self) -> bool:
        """Whether every bound held."""
        return all(one.good for one in self.verdicts)

    def lines(self) -> list[str]:
        """Return what was found, a line each."""
        return [*map(str, self.verdicts), *self.notes]

    def note(self, text: str) -> None:
        """Add what was seen beside the bounds."""
        self.notes.append(text)

    def judge(self, text: str, *, good: bool) -> None:
        """Add a verdict."""
        self.verdicts.append(Verdict(text, good))


def counted(counts: Mapping[str, float]) -> str:
    """Return counts as one text, the most first: `OK 12, UNAVAILABLE 3`."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:,.0f}" for name, count in ordered) or "nothing"
