"""Runs a program in a pseudo-terminal of a given width, as a person sees it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


class Terminal:
    """A program in a pseudo-terminal, which is its controlling terminal.

    Args:
        command: The program and its arguments.
        columns: The width.
        cwd: Where it runs; by default here.
        environment: Added to this process's. COLUMNS and NO_COLOR are not handed on.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        columns: int,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._own, other = pty.openpty()
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(other, termios.TIOCSWINSZ, size)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
        }
        self._process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=cwd,
            env={**kept, "TERM": "xterm-256color", **(environment or {})},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(other)
        self._said = b""

    @property
    def said(self) -> str:
        """What the program has printed so far, without colours."""
        text = self._said.decode("utf-8", "replace").replace("\r\n", "\n")
        return _CONTROL.sub("", text)

    def read_until(self, text: str, seconds: float = 60.0) -> str:
        """Read until the program has printed `text`; return all of it so far."""
        until = time.monotonic() + seconds
        while text not in self.said:
            if not self._read(until - time.monotonic()):
                raise AssertionError(f"no {text!r} within {seconds} s: {self.said}")
        return self.said

    def type(self, text: str) -> None:
        """Type a text, such as Ctrl-C as `\\x03`."""
        os.write(self._own, text.encode())

    def end(self, seconds: float = 60.0) -> int:
        """Read what is left; return the status, minus the number of a signal."""
        until = time.monotonic() + seconds
        while self._read(until - time.monotonic()):
            pass
        os.close(self._own)
        return self._process.wait(max(until - time.monotonic(), 0.1))

    def answer(self, answers: Mapping[str, str], seconds: float) -> int:
        """Type an answer to each question that is asked, to the end of the program.

        Args:
            answers: What to type, by a pattern of what ends in the question.
            seconds: How long all of it may take.

        Returns:
            The status, as `end` does.
        """
        until, answered = time.monotonic() + seconds, 0
        while self._read(until - time.monotonic()):
            said = self.said
            for question, text in answers.items():
                if re.search(question, said[answered:]):
                    answered = len(said)
                    self.type(f"{text}\n")
                    break
        return self.end(until - time.monotonic())

    def _read(self, seconds: float) -> bool:
        if not select.select([self._own], [], [], max(seconds, 0))[0]:
            return False
        try:
            data = os.read(self._own, 1 << 16)
        except OSError:  # the last one that had it open has ended
            return False
        self._said += data
        return bool(data)


def shown(
    command: Sequence[str | Path], columns: int, cwd: Path | None = None
) -> tuple[int, str]:
    """Run a program in a terminal to its end; return its status and what it printed."""
    terminal = Terminal(command, columns, cwd)
    status = terminal.end()
    return status, terminal.said
