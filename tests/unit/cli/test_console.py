import io
import json
import re
import sys

import pytest

from bridge.cli.console import (
    complain,
    print_folded,
    print_json,
    print_rows,
    rfc3339,
    warn,
)

COLUMNS = ("time", "caller", "serial", "")
SERIAL = "f" * 40
ROWS = [
    ("2026-11-23T08:00:00Z", "spiffe://corp.example/ns/shop/sa/web", SERIAL, "ok"),
    ("2026-11-23T08:00:01Z", "", "1f", "it says: " + "much [bold]text " * 12),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def said(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue())


def terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> Terminal:
    monkeypatch.setattr(sys, "stdout", found := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    return found


def test_complaints_are_written_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = "[vault] " + "x" * 300
    complain(long)
    warn("careful")
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{long}\nwarning: careful\n")


@pytest.mark.parametrize("char", ["\x1b", "\x9b", "\0", "\u202e", "\ud800"])
def test_what_would_control_the_terminal_is_not_written(
    char: str, capsys: pytest.CaptureFixture[str]
) -> None:
    complain(f"a{char}[2J\nb")
    print_rows(("a",), [(f"c{char}[2J",)])
    out, err = capsys.readouterr()
    assert (out, err) == (
        "a\nc\N{REPLACEMENT CHARACTER}[2J\n",
        "a\N{REPLACEMENT CHARACTER}[2J\nb\n",
    )


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120])
def test_a_wide_table_gives_way_to_blocks_and_loses_nothing(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = terminal(monkeypatch, columns)
    print_rows(COLUMNS, ROWS, ["", "red"])
    first, second = found.said.split("\n\n")
    assert first.split() == [
        "time",
        ROWS[0][0],
        "caller",
        ROWS[0][1],
        "serial",
        SERIAL,
        "ok",
    ]
    assert second.split() == ["time", ROWS[1][0], "serial", "1f", *ROWS[1][3].split()]
    # Only a word that is longer than the line goes over its end.
    label = len("serial") + 2
    for line in found.said.splitlines():
        assert len(line) <= columns or " " not in line[label:], line


def test_a_table_that_fits_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found = terminal(monkeypatch, 12)
    print_rows(("a", "bb"), [("1", "2"), ("333", "4")])
    assert found.said == "a    bb\n1    2\n333  4\n"


def test_in_a_pipe_each_row_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(COLUMNS, [*ROWS, ("", "", "", "two\nlines")])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["time", "caller", "serial"]
    assert [line.split()[-1] for line in lines] == ["ok", "[bold]text", "lines"]
    assert (
        len(
            {
                line.index(last)
                for line, last in zip(lines, ("ok", "it", "two"), strict=True)
            }
        )
        == 1
    )


def test_a_folded_text_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = terminal(monkeypatch, 20)
    print_folded(f"serial {SERIAL} [red] end", "[bold]leaf[/bold] ", "  ")
    assert found.said == f"leaf serial\n  {SERIAL}\n  [red] end\n"


def test_json_says_its_format(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"at": rfc3339(0), "later": rfc3339(1.5)})
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "format": 1,
        "at": "1970-01-01T00:00:00Z",
        "later": "1970-01-01T00:00:01.500000Z",
    }
