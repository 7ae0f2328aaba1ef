"""Disks that get full, or read-only, while a real process writes to them."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from tests.support.harness.real_process import Bridge

_BLOCK = bytes(1 << 16)


class SmallDisk(Protocol):
    """Where a bridge keeps its ledger."""

    def fill(self, bridge: Bridge) -> None:
        """Leave no room."""

    def free(self, bridge: Bridge) -> None:
        """Leave room again."""


class Tmpfs:
    """A file system in memory, of a few MB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, bridge: Bridge) -> None:
        """See `SmallDisk.fill`."""
        with (self.folder / "ballast").open("wb", buffering=0) as file:
            for size in (len(_BLOCK), 1):
                with suppress(OSError):
                    while file.write(_BLOCK[:size]) == size:
                        pass

    def free(self, bridge: Bridge) -> None:
        """See `SmallDisk.free`."""
        (self.folder / "ballast").unlink()

    def remount(self, option: str) -> None:
        """Remount it `ro` or `rw`."""
        _run("mount", "-o", f"remount,{option}", str(self.folder))


class FileLimit:
    """The process may not make a file longer: what needs no right to mount."""

    def fill(self, bridge: Bridge) -> None:
        """See `SmallDisk.fill`."""
        (last,) = (bridge.folder / "journal/w0").glob("*.jsonl")
        resource.prlimit(
            bridge.worker,
            resource.RLIMIT_FSIZE,
            (last.stat().st_size + 100, resource.RLIM_INFINITY),
        )

    def free(self, bridge: Bridge) -> None:
        """See `SmallDisk.free`."""
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(bridge.worker, resource.RLIMIT_FSIZE, unlimited)


@contextmanager
def mounted(folder: Path, size: str = "4m") -> Iterator[Tmpfs]:
    """Mount a file system of `size` at `folder`, which is made.

    Raises:
        PermissionError: This process may not mount.
    """
    if os.geteuid():
        raise PermissionError("only root may mount")
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield Tmpfs(folder)
    finally:
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"{' '.join(command)}: {done.stderr.strip()}")
