"""Feeds the archive by a process of its own, which this one starts and watches over."""

import logging
import os
import select
import subprocess
import sys
import time
from typing import IO

from bridge.ledger.archive.feed import Attended, FeedTask
from bridge.ledger.archive.feedorder import FeedOrder, Told, goal_line
from bridge.system.turns import step_back

_COMMAND = (sys.executable, "-P", "-m", "bridge.ledger.archive.feedmain")
_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 30.0
_STEADY_SECONDS = 30.0
"""A process that ran for so long was well: the next wait is the first again."""
_SILENT_SECONDS = 10.0
"""Longer than a batch takes. Opening an archive whose tables have to be brought up to
date takes what it takes: that is told, and nobody is killed for it."""
_GRACE_SECONDS = 0.5
"""Between the end of the time that feeding has, and the end by force."""
_log = logging.getLogger(__name__)


class FeederProcess(Attended):
    """A process that feeds. See `bridge.ledger.archive.feed.Feed`.

    On the core that it shares with threads that sign, it is pushed aside by any that
    wakes up, and Python's lock is not between them. One that dies is followed by
    another; what it did not feed, the next one does.

    Args:
        task: What is to be fed.
    """

    def __init__(self, task: FeedTask) -> None:
        super().__init__(task)
        self._task = task
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def stop(self, timeout_seconds: float) -> None:
        """See `Feed.stop`."""
        self._desk.stop(timeout_seconds)
        if not self._thread.is_alive():
            return
        self._thread.join(timeout_seconds + _GRACE_SECONDS)
        if self._thread.is_alive() and (process := self._process) is not None:
            process.kill()
            # Not for ever: on a full core, a process of the idle class ends slowly.
            self._thread.join(_GRACE_SECONDS)

    def _run(self) -> None:
        # What is started from here has the same priority, from its first moment.
        step_back()
        pause = _FIRST_WAIT_SECONDS
        while True:
            # Looked at first: what was written before the end is still fed.
            is_last = self._desk.is_stopping()
            began = time.monotonic()
            death = self._attend()
            if death is None or is_last or self._desk.is_over():
                return
            if time.monotonic() - began >= _STEADY_SECONDS:
                pause = _FIRST_WAIT_SECONDS
            name = self._task.folder.name
            _log.error("feeder of %s: %s; the next one in %.1f s", name, death, pause)
            self._desk.wait(pause)
            longest = min(_LONGEST_WAIT_SECONDS, self._task.max_lag.seconds / 4)
            pause = min(pause * 2, longest)

    def _attend(self) -> str | None:
        # Starts a process, answers it until it ends, and returns why another has to
        # follow, or None.
        try:
            with subprocess.Popen(  # noqa: S603 - our own interpreter and module
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C in a terminal is for the server alone.
                process_group=0,
            ) as process:
                self._process = process
                last = self._answer(process)
        except OSError as error:
            last, status = None, error.strerror
        else:
            status = _how(process.returncode)
        finally:
            self._process = None
        if last is not None and last.problem:
            self._problem = last.problem
        if last is not None and not last.death:
            return None
        death = last.death if last is not None else f"it ended with {status}"
        self._desk.fail(f"the process that feeds the archive: {death}")
        return death

    def _answer(self, process: "subprocess.Popen[bytes]") -> Told | None:
        # Returns the last that it told of itself, if it came to that.
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the feeder was started without pipes")
        try:
            _tell(process.stdin, self._order().line())
            has_position = False
            while line := self._next_line(process.stdout):
                told = Told.read(line)
                has_position = has_position or told.report.seq is not None
                # What the archive had before this process was begun it has still.
                report = told.report if has_position else self._desk.kept(told.report)
                if told.is_end:
                    if not told.death:
                        self._desk.take(report)
                    return told
                goal = self._desk.exchange(report)
                _tell(process.stdin, goal_line(goal))
        except (BrokenPipeError, ValueError):
            # It died while it was told something, or in the middle of a line.
            return None
        return None

    def _next_line(self, pipe: IO[bytes]) -> bytes:
        # It tells one line and waits for the answer: there is nothing in the buffer.
        lines, began = select.poll(), time.monotonic()
        lines.register(pipe, select.POLLIN)
        while not lines.poll(_SILENT_SECONDS * 1000):
            silent = time.monotonic() - began
            self._desk.fail(
                f"the process that feeds the archive, {self.pid}, has said nothing for "
                f"{silent:.0f} s"
            )
        return pipe.readline()

    def _order(self) -> FeedOrder:
        task = self._task
        return FeedOrder(
            folder=str(task.folder),
            archive=task.archive,
            entries=task.max_lag.entries,
            seconds=task.max_lag.seconds,
        )


def _tell(pipe: IO[bytes], line: bytes) -> None:
    # Not through the buffered file: that would try again when it is closed.
    left = memoryview(line)
    while left:
        left = left[os.write(pipe.fileno(), left) :]


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
