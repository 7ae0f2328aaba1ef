"""The lines of JSON between a writer and the process that feeds its archive."""

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from bridge.ledger.archive.feeding import Goal, Report
from bridge.ledger.chain import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedOrder:
    """The first line that the process gets; a `Goal` follows each of its reports."""

    folder: str
    """The writer's; its name is the writer's."""
    archive: str
    """The URL of the archive: it may hold a password, which is for nobody else."""
    entries: int
    """How many rows behind issuing stops."""
    seconds: float
    """How many seconds behind issuing stops."""

    @classmethod
    def read(cls, line: bytes) -> Self:
        """Read one line."""
        return cls(**json.loads(line))

    def line(self) -> bytes:
        """Return the line."""
        return _line(asdict(self))


class Told(NamedTuple):
    """What the process tells; one that has an end is its last."""

    report: Report
    problem: str = ""
    """Why it has stopped for good."""
    death: str = ""
    """Why another has to go on in its place."""
    is_end: bool = False
    """It has done what it was told, or one of the above."""

    @classmethod
    def read(cls, line: bytes) -> Self:
        """Read one line.

        Raises:
            ValueError: It is none of the kind.
        """
        values = json.loads(line)
        try:
            return cls(**values | {"report": Report(**values["report"])})
        except (TypeError, KeyError) as error:
            raise ValueError("not what is told") from error

    def line(self) -> bytes:
        """Return the line."""
        return _line({**self._asdict(), "report": self.report._asdict()})


def read_goal(line: bytes) -> Goal:
    """Read one line."""
    values = json.loads(line)
    return Goal(**values | {"head": Head(**values["head"])})


def goal_line(goal: Goal) -> bytes:
    """Return the line."""
    return _line({**goal._asdict(), "head": goal.head._asdict()})


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"
