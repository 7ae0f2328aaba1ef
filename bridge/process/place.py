"""The role of a process: the only one, or one of several workers."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
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


ALONE = Place()
