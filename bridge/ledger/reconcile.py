"""Settles attempts that ended `unknown`, by the audit log of the backend.

A backend whose answer was lost may have signed. Its log says so, since the plugin sent
the attempt's ID along. The other way round, a certificate that is in the log has to be
in the ledger, as it was asked for.

Importing this module imports SQLAlchemy.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.config import LedgerConfig
from bridge.errors import LedgerError
from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.feeder import ArchiveFeeder, BatchSize
from bridge.ledger.events import SHARED_FIELDS, Intent, Outcome, Settled, kept
from bridge.ledger.journal.progress import Progress
from bridge.ledger.journal.segments import writer_folders
from bridge.ledger.ledger import Ledger
from bridge.ledger.vault_audit import AuditLogs, LoggedCall, Step, shown
from bridge.system.clock import Clock
from bridge.x509.certificate import UNREADABLE, validity_of

WRITER = "reconcile"
"""The journal of the rows `settled`; after the name of the bridge, if it has one."""
ISSUED = "issued"
NOT_ISSUED = "not-issued"
_BATCH = 500
_CATCH_UP_SECONDS = 30.0
_POLL_SECONDS = 0.05
_NOT_BEFORE_SLACK = 30
"""Seconds, as `bridge.policy.issued` allows them to a backend that dates certificates
by its own clock."""
_NOT_AFTER_SLACK = 5
_ASKED_AGAIN = (
    *("permission denied", "invalid token", "bad token", "quota", "sealed"),
    *("standby", "not active", "unavailable", "too many", "timeout", "cancel"),
)
"""In errors after which the plugin may have called once more, elsewhere or with another
token. That call may be in another log."""


@dataclass(slots=True)
class Reconciliation:
    """The result of a run."""

    lines: int = 0
    """Lines that were read."""
    calls: int = 0
    """Lines that tell of a call with an attempt's ID."""
    settled: list[Settled] = field(default_factory=list)
    """The rows that were written."""
    settled_before: int = 0
    """Attempts of the log that had been settled."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Attempts of the log that stay `unknown`, and why."""
    notes: list[str] = field(default_factory=list)
    """What an operator should know, and is no problem."""
    problems: list[str] = field(default_factory=list)
    """Certificates that the ledger does not know, or not so; lines that cannot be
    read. Each names file and line."""


@dataclass(slots=True)
class _Attempt:
    # What the archive has of an attempt.
    values: dict[str, Any] = field(default_factory=dict)
    outcome: str = ""
    serials: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    settled: str = ""

    def add(self, row: Mapping[str, Any]) -> None:
        kind = row["kind"]
        if kind == Intent.kind:
            self.values = dict(row)
            return
        if kind == Settled.kind:
            self.settled = json.loads(row["body"])["result"]
        elif kind in _ORDER:
            self.outcome = max(self.outcome, kind, key=_ORDER.index)
        self.serials |= {row["serial"]} - {""}
        self.digests |= {row["certificate_sha256"]} - {""}

    @property
    def is_open(self) -> bool:
        return self.outcome == Outcome.UNKNOWN and not self.settled


_ORDER = ("", *(Outcome.REFUSED, Outcome.FAILED, Outcome.UNKNOWN, Outcome.ISSUED))


@dataclass(slots=True)
class _Evidence:
    # What the logs have of an attempt that ended `unknown`.
    issued: dict[str, LoggedCall] = field(default_factory=dict)
    refused: list[LoggedCall] = field(default_factory=list)
    asked: dict[str, LoggedCall] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)

    def add(self, call: LoggedCall) -> None:
        if call.step is Step.ISSUED:
            # Of one call, two audit devices may have two lines, one of them hashed.
            before = self.issued.get(call.request)
            if before is None or (call.certificate and not before.certificate):
                self.issued[call.request] = call
        elif call.step is Step.REFUSED:
            self.refused.append(call)
            self.answered.add(call.request)
        else:
            self.asked[call.request] = call

    def why_unknown(self) -> str:
        # Why the attempt cannot be settled; empty if nothing was issued.
        for request, call in self.asked.items():
            if request not in self.answered:
                return f"{call.place}: the log does not say how this call was answered"
        last = max(self.refused, key=lambda call: call.at)
        if any(word in last.reason.lower() for word in _ASKED_AGAIN):
            return (
                f"{last.place}: refused ({last.reason}), and the bridge may have "
                "called again: look for that call in the other logs"
            )
        return ""


def reconcile(
    config: LedgerConfig, files: Sequence[Path], *, operator: str, clock: Clock
) -> Reconciliation:
    """Read audit logs, and write a row for each attempt that they settle.

    A second run over the same files writes nothing. The server may be running.

    Args:
        config: Section `ledger` of the configuration.
        files: Audit logs of Vault or OpenBao, in any order.
        operator: Who runs it.
        clock: Gives each row its time.

    Raises:
        LedgerError: A file cannot be opened, or the ledger cannot be used: nothing, or
            not everything, was settled.
    """
    _require_owner(config.journal)
    catch_up(config)
    with closing(Archive.open(config.archive, make=False)) as archive:
        run = _Run(archive)
        run.read(files)
        if run.strange:
            # A server that runs may have asked after the first look at the archive.
            catch_up(config)
            run.look_again()
        rows = list(run.rows(operator))
        if rows:
            _write(config, archive, rows, run.report, clock)
            catch_up(config)
    return run.report


def catch_up(config: LedgerConfig, seconds: float = _CATCH_UP_SECONDS) -> None:
    """Return when the archive has all rows that are durable now.

    Where no server runs, this process feeds the archive.

    Args:
        config: Section `ledger` of the configuration.
        seconds: How long the feeder of a server may take.

    Raises:
        LedgerError: The archive cannot be fed, or is not fed in time.
    """
    feeder = ArchiveFeeder(
        config.journal, lambda: Archive.open(config.archive), BatchSize()
    )
    wanted, until = _durable(config.journal), time.monotonic() + seconds
    try:
        while (problem := _lag(config, feeder, wanted)) is not None:
            if time.monotonic() >= until:
                raise problem
            time.sleep(_POLL_SECONDS)
    finally:
        feeder.close()


def _durable(journal: Path) -> dict[str, int]:
    found = {}
    for folder in writer_folders(journal) if journal.is_dir() else ():
        if (progress := Progress.find(folder)) is not None:
            with closing(progress):
                durable = progress.durable()
            if durable is not None and durable.head.seq >= 0:
                found[folder.name] = durable.head.seq
    return found


def _lag(
    config: LedgerConfig, feeder: ArchiveFeeder, wanted: Mapping[str, int]
) -> LedgerError | None:
    # Why the archive does not have everything, or None.
    while feeder.run_pass(at_once=True):
        pass
    try:
        with closing(Archive.open(config.archive, make=False)) as archive:
            behind = [
                writer
                for writer, seq in wanted.items()
                if archive.position(writer).head.seq < seq
            ]
    except LedgerError as error:
        return error  # a server that has just started may be making it
    if not behind:
        return None
    return LedgerError(
        f"the archive does not have all rows of {', '.join(behind)}: see /readyz of "
        "the bridge, or `meshca ledger verify --archive`",
        rule="ledger.lag",
        detail=feeder.trouble,
    )


def _require_owner(journal: Path) -> None:
    # Files of another user would keep the server from its own ledger.
    try:
        owner = journal.stat().st_uid
    except OSError as error:
        raise LedgerError(f"{journal}: {error.strerror}") from error
    if owner != os.geteuid():
        raise LedgerError(
            f"{journal} belongs to the user with uid {owner}: run this command as that "
            "user, as the server does"
        )


class _Run:
    # One reading of all files.
    def __init__(self, archive: Archive) -> None:
        self.report = Reconciliation()
        self.strange: list[LoggedCall] = []
        self._archive = archive
        self._logs = AuditLogs(self.report.problems.append)
        self._evidence: dict[str, _Evidence] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._settled: set[str] = set()
        self._running: set[str] = set()

    def read(self, files: Iterable[Path]) -> None:
        for file in files:
            batch: list[LoggedCall] = []
            for call in self._logs.read(file):
                batch.append(call)
                if len(batch) >= _BATCH:
                    self._judge(batch)
                    batch = []
            self._judge(batch)
        report = self.report
        report.lines = self._logs.lines
        if self._logs.hashed:
            report.notes.append(
                f"{self._logs.hashed} lines have a hash in place of the attempt: have "
                "the header audited with hmac=false"
            )
        elif report.lines and not report.calls:
            report.notes.append(
                "no line names an attempt: is the header x-meshca-attempt audited?"
            )

    def look_again(self) -> None:
        strange, self.strange = self.strange, []
        for first in range(0, len(strange), _BATCH):
            self._judge(strange[first : first + _BATCH], again=True)
        issued = [call for call in self.strange if call.step is Step.ISSUED]
        for call in issued:
            serial = f"serial number {call.serial}" if call.serial else call.path
            self.report.problems.append(
                f"{call.place}: CERTIFICATE OUTSIDE THE LEDGER: attempt "
                f"{call.attempt}, {serial}: another bridge's, or mis-issued"
            )
        if others := len(self.strange) - len(issued):
            self.report.notes.append(
                f"{others} lines tell of refused or unanswered calls of attempts that "
                "the ledger does not know"
            )

    def rows(self, operator: str) -> Iterator[Settled]:
        # The rows to be written, for what the logs settle.
        for name, evidence in self._evidence.items():
            attempt = self._attempts[name]
            calls = list(evidence.issued.values())
            if len(calls) > 1 and not attempt.values["tbs_sha256"]:
                places = ", ".join(call.place for call in calls)
                self.report.problems.append(
                    f"{places}: attempt {name} has {len(calls)} certificates: nothing "
                    "was settled"
                )
            elif calls:
                yield _row(attempt, calls[0], ISSUED, operator)
            elif reason := evidence.why_unknown():
                self.report.unknown[name] = reason
            else:
                last = max(evidence.refused, key=lambda call: call.at)
                yield _row(attempt, last, NOT_ISSUED, operator)
        self.report.settled_before = len(self._settled)
        if self._running:
            self.report.notes.append(
                f"{len(self._running)} attempts have no outcome yet: they are running, "
                "or get one at the next start of the server"
            )

    def _judge(self, calls: Sequence[LoggedCall], *, again: bool = False) -> None:
        found = _attempts(self._archive, {call.attempt for call in calls})
        for call in calls:
            self.report.calls += not again
            attempt = found.get(call.attempt)
            if attempt is None or not attempt.values:
                self.strange.append(call)
            elif attempt.is_open:
                self._attempts[call.attempt] = attempt
                self._evidence.setdefault(call.attempt, _Evidence()).add(call)
                self._require_as_asked(call, attempt)
            elif not attempt.outcome:
                self._running.add(call.attempt)
            else:
                if attempt.settled:
                    self._settled.add(call.attempt)
                if call.step is Step.ISSUED:
                    self._require_as_asked(call, attempt)
                    self._require_known(call, attempt)

    def _require_as_asked(self, call: LoggedCall, attempt: _Attempt) -> None:
        if call.step is Step.ISSUED and (odd := difference(attempt.values, call)):
            self.report.problems.append(
                f"{call.place}: MIS-ISSUANCE: attempt {call.attempt} of issuing CA "
                f"{attempt.values['issuing_ca']}, serial number "
                f"{call.serial or 'unknown'}: {odd}"
            )

    def _require_known(self, call: LoggedCall, attempt: _Attempt) -> None:
        # The ledger has an outcome: it must be the one that the log has.
        result = attempt.settled or attempt.outcome
        if result != ISSUED:
            problem = f"the ledger says {result}, and the log has a certificate"
        elif _differs(attempt.serials, _serial_of(call, attempt.values)) or _differs(
            attempt.digests, _digest(call)
        ):
            problem = "the ledger has another certificate of this attempt"
        else:
            return
        self.report.problems.append(
            f"{call.place}: CONTRADICTION: attempt {call.attempt}, serial number "
            f"{call.serial or 'unknown'}: {problem}; nothing was written"
        )


def difference(intent: Mapping[str, Any], call: LoggedCall) -> str:
    """Compare a certificate of the log with what was asked for.

    Args:
        intent: The row `intent`, by the columns of the archive.
        call: The answer.

    Returns:
        What differs; empty if nothing does, as far as the log shows it.
    """
    window = call.not_before, call.not_after
    if not call.certificate:
        return _window_difference(intent, window) if all(window) else ""
    try:
        leaf = x509.load_der_x509_certificate(call.certificate)
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        key = leaf.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        names = Counter(_name(name) for name in extension.value)
        serial, subject = leaf.serial_number, leaf.subject
    except (*UNREADABLE, x509.ExtensionNotFound) as error:
        return f"the certificate cannot be read: {shown(error)}"
    found = {
        "the public key": hashlib.sha256(key).hexdigest() != intent["key_sha256"],
        "the names": names != Counter(json.loads(intent["names"])),
        "the subject": subject != x509.Name([]),
        "the serial number": _differs(
            {call.serial, intent["serial"]} - {""}, f"{serial:x}"
        ),
    }
    odd = [what for what, differs in found.items() if differs]
    if validity := _window_difference(intent, validity_of(leaf)):
        odd.append(validity)
    return f"{', '.join(odd)}: not as asked for" if odd else ""


def _window_difference(intent: Mapping[str, Any], window: tuple[int, int]) -> str:
    if (
        abs(window[0] - intent["not_before"]) > _NOT_BEFORE_SLACK
        or abs(window[1] - intent["not_after"]) > _NOT_AFTER_SLACK
    ):
        return "the validity"
    return ""


def _name(name: x509.GeneralName) -> str:
    if isinstance(name, x509.UniformResourceIdentifier):
        return f"URI:{name.value}"
    if isinstance(name, x509.DNSName):
        return f"DNS:{name.value}"
    return f"{type(name).__name__}:{name.value}"


def _differs(known: set[str], found: str) -> bool:
    # What is not known, or hidden in the log, does not differ.
    return bool(known and found) and known != {found}


def _leaf(call: LoggedCall) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(call.certificate)
    except UNREADABLE:
        return None


def _serial_of(call: LoggedCall, intent: Mapping[str, Any]) -> str:
    leaf = _leaf(call)
    return f"{leaf.serial_number:x}" if leaf else call.serial or intent["serial"]


def _digest(call: LoggedCall) -> str:
    content = call.certificate
    return hashlib.sha256(content).hexdigest() if content else ""


def _window(call: LoggedCall, intent: Mapping[str, Any]) -> tuple[int, int]:
    if (leaf := _leaf(call)) is not None:
        return validity_of(leaf)
    if intent["tbs_sha256"]:
        return intent["not_before"], intent["not_after"]
    return call.not_before, call.not_after


def _row(attempt: _Attempt, call: LoggedCall, result: str, operator: str) -> Settled:
    intent, is_issued = attempt.values, result == ISSUED
    window = _window(call, intent) if is_issued else (0, 0)
    odd = difference(intent, call) if is_issued else ""
    return Settled(
        **{name: intent[name] for name in SHARED_FIELDS if name != "serial"},
        result=result,
        serial=_serial_of(call, intent) if is_issued else "",
        certificate_sha256=_digest(call),
        not_before=window[0],
        not_after=window[1],
        certificate=kept(call.certificate),
        log_file=call.file,
        log_request=call.request,
        log_at=call.at,
        by=operator,
        detail=f"mis-issued: {odd}" if odd else call.reason,
    )


def _attempts(archive: Archive, names: Iterable[str]) -> dict[str, _Attempt]:
    found: dict[str, _Attempt] = {}
    for row in archive.of_attempts(sorted(names)):
        found.setdefault(row["attempt"], _Attempt()).add(row)
    return found


def _write(
    config: LedgerConfig,
    archive: Archive,
    rows: Sequence[Settled],
    report: Reconciliation,
    clock: Clock,
) -> None:
    writer = f"{config.replica}-{WRITER}" if config.replica else WRITER
    with closing(Ledger.open(config, writer=writer, clock=clock)) as ledger:
        # With the lock of the journal: another run may have settled some meanwhile.
        catch_up(config)
        for first in range(0, len(rows), _BATCH):
            batch = rows[first : first + _BATCH]
            known = _attempts(archive, (row.attempt for row in batch))
            for row in batch:
                if known[row.attempt].is_open:
                    ledger.record(row)
                    report.settled.append(row)
                else:
                    report.settled_before += 1
