"""What a worker is told by its parent, and how it answers: quick to import."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

REFUSED = 78
"""The exit status of a worker that cannot use the configuration (EX_CONFIG)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One line of JSON on a worker's standard input.

    The pipe stays open for as long as the parent lives: its end is the parent's.
    """

    path: str
    """Of the configuration file; what is relative in it is relative to its folder."""
    text: str
    """Its content, as the parent checked it. The worker does not read the file."""
    writer: str
    """Name in the ledger, and of the worker."""
    cpu: int
    """The core that it keeps to."""
    folder: str
    """Private to the parent and its workers."""
    log_level: str = "INFO"
    settles_beside: tuple[str, ...] | None = None
    """See `Place`."""

    @property
    def socket(self) -> Path:
        """Where health and metrics are served to the parent."""
        return Path(self.folder) / self.writer

    @property
    def shared(self) -> Path:
        """The file of what is counted for all workers together."""
        return Path(self.folder) / "ceilings"

    @property
    def reason(self) -> Path:
        """The file that says why the worker could not start."""
        return Path(self.folder) / f"{self.writer}.reason"

    @classmethod
    def read(cls, line: bytes) -> Self:
        """Read one line."""
        return cls(**json.loads(line))

    def line(self) -> bytes:
        """Return the line."""
        return json.dumps(asdict(self)).encode() + b"\n"
