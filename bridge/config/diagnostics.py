"""The problems of a configuration file: each with key, value and expectation."""

import re
from collections.abc import Sequence
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

Problem = tuple[str, object, str]
"""Path of the key, value, expectation."""

_SHOWN_CHARACTERS = 80
_MANY = (tuple, dict)
_SECRET = re.compile("pass|pin|secret|token|credential|key", re.IGNORECASE)


class Plain:
    """A value that is shown as it is, without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def listed(path: Path, problems: Sequence[Problem]) -> str:
    """Return the problems of the file at `path`, one a line."""
    return "\n".join(
        f"{path}: {key}: {expected} (found {shown(value)})"
        for key, value, expected in problems
    )


def problem_of(item: Any, known: Sequence[str] = ()) -> Problem:
    """Convert one of pydantic's errors to a problem.

    Args:
        item: One of `ValidationError.errors()`.
        known: The known keys of the section.
    """
    place, value = item["loc"], item["input"]
    # For a key that is not valid, pydantic adds "[key]" to its place.
    is_key = place[-1:] == ("[key]",) and item["type"] != "extra_forbidden"
    key = path_of(place[:-1] if is_key else place) or "(file)"
    if item["type"] == "missing":
        return key, None, "is required"
    if item["type"] == "extra_forbidden":
        # A secret at the wrong key must not reach a log.
        is_secret = _SECRET.search(str(item["loc"][-1]))
        hidden = Plain("a value that is not shown") if is_secret else value
        near = get_close_matches(str(item["loc"][-1]), () if is_secret else known, 1)
        return (
            key,
            hidden,
            "unknown key" + "".join(f"; did you mean {k}?" for k in near),
        )
    if item["type"] == "tuple_type":
        like = f", such as [{value}]" if isinstance(value, str | int) else ""
        return key, value, f"expected a list{like}"
    if found := getattr(item.get("ctx", {}).get("error"), "found", ""):
        value = Plain(found)
    return key, value, str(item["msg"]).removeprefix("Value error, ")


def path_of(place: Sequence[int | str]) -> str:
    """Return keys and indexes as one path, such as `clusters[0].tokens.file`."""
    return "".join(_part(part) for part in place).lstrip(".")


def known_keys(model: type[BaseModel], path: Sequence[int | str]) -> tuple[str, ...]:
    """Return the keys of a section; none if `path` leads to no section.

    Args:
        model: The model of the whole file.
        path: Keys and indexes that lead to the section.
    """
    found: type[BaseModel] | None = model
    every: tuple[type[BaseModel], ...] = (model,)
    is_within = False  # a list or a mapping of sections
    for part in path:
        if is_within or found is None:
            is_within = False
            continue
        field = found.model_fields.get(str(part))
        annotation = field.annotation if field else None
        every = sections_of(annotation)
        found = next(iter(every), None)
        is_within = get_origin(annotation) in _MANY
    return tuple(dict.fromkeys(key for each in every for key in each.model_fields))


def sections_of(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the models of the section, or sections, that a key holds.

    More than one are alternatives.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    if get_origin(annotation) in {*_MANY, Union, UnionType}:
        return tuple(one for each in get_args(annotation) for one in sections_of(each))
    return ()


def _part(part: int | str) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if part.isprintable() else f".{part!r}"


def shown(value: object) -> str:
    """Return the beginning of a value, on one line."""
    if value is None:
        return "nothing"
    text = str(value) if isinstance(value, timedelta) else _SHOW.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


# YAML aliases can make a value huge: only the beginning is formatted.
_SHOW = Repr()
_SHOW.maxlevel = 2
_SHOW.maxstring = _SHOW.maxother = _SHOWN_CHARACTERS
