"""A clock that is off, for a process under test and for its children."""

import struct
from collections.abc import Sequence
from pathlib import Path

from tests.support.parts import builds, install

_SOURCE = Path(__file__).with_suffix(".c")


class ShiftedClock:
    """The clock of a process that a test sets off while the process runs.

    Args:
        folder: For the offset.
    """

    def __init__(self, folder: Path) -> None:
        library = builds.build_shared_object(install.compiler(), _SOURCE)
        self._offset = folder / "clock-offset"
        self.set(0)
        self.prefix: Sequence[str] = (
            "env",
            f"LD_PRELOAD={library}",
            f"MESHCA_TEST_CLOCK={self._offset}",
        )
        """Put before the command of the process."""

    def set(self, seconds: int) -> None:
        """Set the clock so far ahead; below 0, so far behind."""
        # In place: the process has mapped the file.
        with self._offset.open("r+b" if self._offset.exists() else "w+b") as file:
            file.write(struct.pack("=q", seconds))
