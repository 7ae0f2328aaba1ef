"""The role of a process among the processes of a bridge. Quick to import."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from bridge.config import ConfigText

REFUSED = 78
"""The exit status of a worker that cannot use its configuration, or a file or ledger
that it names (EX_CONFIG)."""
BROKEN = 65
"""The exit status of a worker whose journal is broken or was cut (EX_DATAERR). Another
start would find the same: an operator has to act."""
WITHOUT_KEYS = "clusters without token keys or remote secrets"
UNPROVEN = "issuing CAs that have not signed"
"""Warnings in a worker's readiness whose text is names, separated by commas."""
HELD = {"listeners": "waiting for the other workers of this configuration"}
"""All that is wrong with a worker that could listen, and is held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRole:
    """What a process is in a bridge: one of its workers, or on its own in a test."""

    writer: str = "bridge"
    """Its name in the ledger."""
    shares_ports: bool = False
    """Whether other processes listen on the same ports, on purpose (SO_REUSEPORT)."""
    admin: str | None = None
    """The admin address in place of `admin.listen`."""
    shared: Path | None = None
    """The file of what is counted for all workers together."""
    watched: Path | None = None
    """The index of what the watcher has seen; None where none runs."""
    anchors: bytes | None = None
    """The content of `trust_anchors`; None: the process reads the file."""
    is_held: bool = False
    """Whether it listens only when it is told to."""


ALONE = ProcessRole()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One line of JSON on the standard input of a child process."""

    path: str
    """The configuration file; relative paths in it start from its folder."""
    text: str
    """The content, as the parent checked it. The child does not read the file."""
    log_level: str = "INFO"

    @classmethod
    def read(cls, line: bytes) -> Self:
        """Read one line."""
        return cls(**json.loads(line))

    def line(self) -> bytes:
        """Return the line."""
        return json.dumps(asdict(self)).encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOrder(Order):
    """The order of a worker."""

    writer: str
    """The worker's name, also in the ledger."""
    cpu: int | None
    """The core that the worker keeps to; None: any."""
    folder: str
    """Private to the parent and its workers."""
    anchors: str | None = None
    """The content of `trust_anchors`, as the parent checked it."""
    is_held: bool = False
    """Whether the worker listens only after a SIGUSR1."""

    @property
    def socket(self) -> Path:
        """Where health and metrics are served to the parent."""
        return Path(self.folder) / self.writer

    @property
    def shared(self) -> Path:
        """The file of what is counted for all workers together."""
        return Path(self.folder) / "ceilings"

    @property
    def watched(self) -> Path:
        """The index of what the watcher has seen."""
        return index_in(Path(self.folder))

    @property
    def reason(self) -> Path:
        """The file that says why the worker could not start."""
        return Path(self.folder) / f"{self.writer}.reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherOrder(Order):
    """The order of the watcher."""

    index: str
    """The file of what it has seen."""


def index_in(folder: Path) -> Path:
    """Return the index of what the watcher has seen, in the folder of a parent."""
    return folder / "watched"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeederOrder(Order):
    """The order of the archive feeder. It parses the text only to settle a journal."""

    journal: str
    """The folder of the journals."""
    archive: str
    """The URL of the archive. It may hold a password: it is in no argument, and not in
    the environment."""
    entries: int
    """How many rows behind issuing stops."""
    seconds: float
    """How many seconds behind issuing stops."""
    latch: str = ""
    """The file of the latch, where other hosts share the archive."""
    bars: str = ""
    """The file of the bars, which is made from the archive where it was removed."""

    @classmethod
    def of(cls, source: "ConfigText", log_level: str) -> Self:
        """Return the order for a configuration."""
        ledger = source.config.ledger
        return cls(
            path=str(source.path),
            text=source.text,
            journal=str(ledger.journal),
            archive=ledger.archive,
            entries=ledger.max_lag.entries,
            seconds=ledger.max_lag.seconds,
            latch=str(ledger.latch) if ledger.archive_is_shared else "",
            bars=str(ledger.bars),
            log_level=log_level,
        )
