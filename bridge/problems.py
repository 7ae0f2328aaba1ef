"""What is wrong with a file of the configuration, told so that it can be mended."""

import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from reprlib import Repr
from typing import Any

Problem = tuple[str, object, str]
"""Path of the key, value, expectation."""

_SHOWN_CHARACTERS = 80
_SECRET = re.compile("pass|pin|secret|token|credential|key", re.IGNORECASE)


def listed(path: Path, problems: Sequence[Problem]) -> str:
    """Write problems of the file at `path`, one a line."""
    return "\n".join(
        f"{path}: {key}: {expected} (found {shown(value)})"
        for key, value, expected in problems
    )


def problem_of(item: Any) -> Problem:
    """Take the problem out of one of pydantic's errors."""
    parts = [_part(part) for part in item["loc"]]
    key, value = "".join(parts).lstrip(".") or "(file)", item["input"]
    if item["type"] == "missing":
        return key, None, "is required"
    if item["type"] == "extra_forbidden":
        # A secret that stands in the wrong place must not reach a log from here.
        is_secret = _SECRET.search(str(item["loc"][-1]))
        return key, _Hidden() if is_secret else value, "unknown key"
    return key, value, str(item["msg"]).removeprefix("Value error, ")


def _part(part: int | str) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if part.isprintable() else f".{part!r}"


class _Hidden:
    def __repr__(self) -> str:
        return "a value that is not shown"


def shown(value: object) -> str:
    """Write the beginning of a value on one line."""
    if value is None:
        return "nothing"
    text = str(value) if isinstance(value, timedelta) else _SHOW.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


# Of a value that aliases make huge, only the beginning is ever written out.
_SHOW = Repr()
_SHOW.maxlevel = 2
_SHOW.maxstring = _SHOW.maxother = _SHOWN_CHARACTERS
