"""Markdown that a program writes: tables, and tables between markers in prose."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

GENERATED = "<!-- Written by `make docs` from the code. Do not edit. -->"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield _row(header)
    yield "|" + "---|" * len(header)
    for row in rows:
        yield _row(row)


def code(text: str) -> str:
    """Return `text` as code, or nothing if it is empty."""
    return f"`{text}`" if text else ""


def one_line(text: str) -> str:
    """Return a docstring's text as one line."""
    return " ".join(text.split())


def write(path: Path, title: str, lines: Iterable[str]) -> None:
    """Write a document that has nothing but what a program wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join([f"# {title}", "", GENERATED, "", *lines])
    path.write_text(body.rstrip("\n") + "\n", "utf-8")


def fill(path: Path, parts: Mapping[str, Iterable[str]]) -> None:
    """Write each part between its markers in a document that has prose, too.

    Raises:
        LookupError: The document has no place for a part, or one for no part.
    """
    text = path.read_text("utf-8")
    places = re.findall(r"^<!-- generated: (.+?) -->$", text, re.MULTILINE)
    if sorted(places) != sorted(parts):
        raise LookupError(f"{path} has places for {places}, not for {[*parts]}")
    for name, lines in parts.items():
        begin, end = f"<!-- generated: {name} -->", "<!-- end -->"
        body = "\n".join([begin, *lines, end])
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        text = pattern.sub(lambda _, body=body: body, text, count=1)  # type: ignore[misc]
    path.write_text(text, "utf-8")


def _row(cells: Sequence[str]) -> str:
    return (
        "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"
    )
