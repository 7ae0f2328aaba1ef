import pytest

from bridge.cli.console import complain, warn


def test_complaints_are_written_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = "[vault] " + "x" * 300
    complain(long)
    warn("careful")
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{long}\nwarning: careful\n")
