"""The role of a process among the processes of a bridge. Quick to import."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

REFUSED = 78
"""The exit status of a worker that cannot use the configuration (EX_CONFIG)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRole:
    """Where a process stands: alone, or as one of several workers."""

    writer: str = "bridge"
    """Its name in the ledger."""
    settles_beside: Collection[str] | None = ()
    """Writers whose journals it does not settle, but its own; None: it settles none."""
    shares_ports: bool = False
    """Others listen on the same ports. That must be meant, never happen."""
    admin: str | None = None
    """The admin address in place of the configured one."""
    shared: Path | None = None
    """The file of what is counted for all workers together."""


ALONE = ProcessRole()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOrder:
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
    """See `ProcessRole`."""

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
