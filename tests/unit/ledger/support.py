"""Rows, clocks and a disk that fails when told to."""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bridge.config import LedgerConfig
from bridge.config.types import ValidationState
from bridge.ledger.chain import Head, Row, read_rows
from bridge.ledger.events import Ending, Intent, Published
from bridge.ledger.heads import HeadKey, parse_head
from bridge.ledger.journal.journal import Journal, JournalOptions
from bridge.ledger.journal.segments import JournalFile
from bridge.ledger.ledger import Ledger
from bridge.ledger.sink import HeadSink
from tests.support.harness import clock

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
CALLER = "spiffe://corp.example/ns/payments/sa/api"


class SetClock(clock.SetClock):
    """One that starts at `NOW`."""

    def __init__(self, now: datetime = NOW) -> None:
        super().__init__(now)


def make_intent(number: int = 1, **changed: Any) -> Intent:
    values: dict[str, Any] = {
        "attempt": f"{number:032x}",
        "request": f"{number:032x}",
        "purpose": "workload",
        "front": "istio",
        "cluster": "Kubernetes",
        "caller": CALLER,
        "credential": "token",
        "requester": "",
        "verified_by": "token_review",
        "proven_at": 1_795_000_100,
        "pod_namespace": "payments",
        "pod_name": "api-1",
        "pod_uid": "0000",
        "node": "worker-1",
        "issuing_ca": "seoul-1",
        "generation": 1,
        "issuer_sha256": "1" * 64,
        "key_sha256": f"{number + 7:064x}",
        "names": [f"URI:{CALLER}"],
        "not_before": 1_795_000_000,
        "not_after": 1_795_086_400,
        "serial": f"{number + 0xABC000:x}",
        "tbs_sha256": "2" * 64,
    }
    return Intent(**values | changed)


def make_ended(number: int = 1, kind: str = "issued", **changed: Any) -> Ending:
    values: dict[str, Any] = {
        "kind": kind,
        "attempt": f"{number:032x}",
        "request": f"{number:032x}",
        "purpose": "workload",
        "front": "istio",
        "cluster": "Kubernetes",
        "caller": CALLER,
        "issuing_ca": "seoul-1",
        "serial": f"{number + 0xABC000:x}",
        "certificate_sha256": f"{number + 9:064x}",
        "status": "OK",
    }
    return Ending(**values | changed)


class FaultyDisk:
    """Opens files that write to the real disk, until a fault is set."""

    def __init__(self) -> None:
        self.write_fault: OSError | None = None
        self.sync_fault: OSError | None = None
        self.open_fault: OSError | None = None
        self.at_most: int | None = None
        """Bytes that one write takes."""
        self.room: int | None = None
        """Bytes until the disk is full."""
        self.full_once = False
        """Whether there is room again after the first refusal."""
        self.no_room = OSError(28, os.strerror(28))
        """What it says then."""
        self.syncs = 0
        self.open_files = 0
        self.in_sync = threading.Event()
        self.may_sync = threading.Event()
        self.may_sync.set()

    def open(self, path: Path) -> "FaultyFile":
        if self.open_fault:
            raise self.open_fault
        self.open_files += 1
        return FaultyFile(self, path)


class FaultyFile(JournalFile):
    def __init__(self, disk: FaultyDisk, path: Path) -> None:
        super().__init__(path)
        self._disk = disk

    def write(self, data: bytes) -> int:
        disk = self._disk
        if disk.write_fault:
            raise disk.write_fault
        if disk.at_most is not None:
            data = data[: disk.at_most]
        if disk.room is not None:
            if not disk.room:
                if disk.full_once:
                    disk.room = None
                raise disk.no_room
            data = data[: disk.room]
            disk.room -= len(data)
        return super().write(data)

    def sync(self) -> None:
        disk = self._disk
        disk.in_sync.set()
        if not disk.may_sync.wait(20):
            raise OSError("nobody let the sync go on")
        if disk.sync_fault:
            raise disk.sync_fault
        disk.syncs += 1
        super().sync()

    def cut(self, size: int) -> None:
        disk = self._disk
        if disk.sync_fault:
            raise disk.sync_fault
        super().cut(size)

    def close(self) -> None:
        self._disk.open_files -= 1
        super().close()


def open_journal(folder: Path, writer: str = "w0", **options: Any) -> Journal:
    # The background flush is out of the way unless a test asks for it.
    options = {"flush_seconds": 3600.0, "patience_seconds": 10.0} | options
    return Journal.open(
        folder,
        writer=writer,
        clock=SetClock(),
        options=JournalOptions(**options),
    )


def abandon(journal: Journal) -> None:
    """End a journal as a killed process would: no last row, nothing flushed."""
    journal._flusher.close()
    journal._writer.close()
    journal.close()


def publish(folder: Path, journal: Journal) -> None:
    """Publish the head of a journal, as a server does when it has opened it."""
    key = HeadKey.load_or_make(folder / "journal/heads.key")
    append(folder / "heads.jsonl", key, journal.folder.name, journal.head)


def append(path: Path, key: HeadKey, writer: str, head: Head, at: int = 5) -> Published:
    """Publish a head, as a server does that has read the sink."""
    return HeadSink(path, key).append(
        lambda line, before: key.sign(writer, head, at, line=line, before=before)
    )


def published(folder: Path) -> list[int]:
    """Return the rows whose heads are in the sink."""
    heads = map(parse_head, (folder / "heads.jsonl").read_bytes().splitlines())
    return [head.seq for head in heads if head]


def all_rows(folder: Path) -> list[Row]:
    return [row for path in sorted(folder.glob("*.jsonl")) for row in read_rows(path)]


def fed(ledger: Ledger) -> bool:
    """Return whether the archive is open and has every row."""
    return ledger._journal.progress.fed is not None and ledger.lag()[0] == 0


def make_config(folder: Path, **changed: Any) -> LedgerConfig:
    values: dict[str, Any] = {
        "journal": "journal/",
        "archive": "sqlite:///archive.db",
        "heads": {"sink": "heads.jsonl"},
    }
    state = ValidationState(folder / "bridge.yaml")
    return LedgerConfig.model_validate(values | changed, context=state)


def archive_url(folder: Path, name: str = "archive.db") -> str:
    return f"sqlite:///{folder / name}"


def open_ledger(folder: Path, writer: str = "w0", **changed: Any) -> Ledger:
    config = make_config(folder, **changed)
    # A machine that is busy with other tests may let the disk wait.
    options = JournalOptions(patience_seconds=60.0)
    return Ledger.open(config, writer=writer, clock=SetClock(), options=options)
