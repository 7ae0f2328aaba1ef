"""Attempts that ended `unknown`, settled by the audit log of the backend."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.config import LedgerConfig
from bridge.errors import LedgerError
from bridge.ledger.events import SHARED_FIELDS, Settled
from bridge.ledger.ledger import Ledger
from bridge.ledger.reconcile import Reconciliation, catch_up, reconcile
from bridge.ledger.vault_audit import AuditLogs, LoggedCall
from bridge.ledger.verify import verify
from tests.support.harness.archive import FeederThread, compared, feed
from tests.support.harness.audit_log import (
    Real,
    base64_der,
    issued,
    lines,
    real_lines,
)
from tests.unit.ledger.support import (
    CALLER,
    NOW,
    SetClock,
    all_rows,
    make_config,
    make_ended,
    make_intent,
    open_ledger,
)

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
SERIAL = 0x1F2E3D4C5B6A79881726354453627180
BEGINS = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ENDS = BEGINS + timedelta(hours=1)
ATTEMPT = f"{1:032x}"
NAME = x509.UniformResourceIdentifier(CALLER)
OTHER_NAME = x509.UniformResourceIdentifier("spiffe://corp.example/ns/kube/sa/admin")


def certificate(
    *,
    serial: int = SERIAL,
    key: ec.EllipticCurvePrivateKey = KEY,
    names: tuple[x509.GeneralName, ...] = (NAME,),
    begins: datetime = BEGINS,
    ends: datetime = ENDS,
    subject: str = "",
) -> x509.Certificate:
    """Return a certificate of Vault for the attempt of `intent`."""
    common = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(common))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")]))
        .not_valid_before(begins)
        .not_valid_after(ends)
        .serial_number(serial)
        .public_key(key.public_key())
    )
    if names:
        san = x509.SubjectAlternativeName(names)
        builder = builder.add_extension(san, critical=True)
    return builder.sign(OTHER_KEY, hashes.SHA256())


LEAF = certificate()
"""As it was asked for."""
DIGEST = LEAF.fingerprint(hashes.SHA256()).hex()


def intent(number: int = 1, **changed: Any) -> Any:
    """Return the intent of an attempt for which `vault-pki` builds the certificate."""
    public = KEY.public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    values: dict[str, Any] = {
        "key_sha256": hashlib.sha256(spki).hexdigest(),
        "not_before": int(BEGINS.timestamp()),
        "not_after": int(ENDS.timestamp()),
        "serial": "",
        "tbs_sha256": "",
    }
    return make_intent(number, **values | changed)


def ended(number: int = 1, kind: str = "unknown", **changed: Any) -> Any:
    values = {"serial": "", "certificate_sha256": "", "status": "UNAVAILABLE"}
    return make_ended(number, kind, **values | changed)


class World:
    """A ledger whose bridge does not run, and one audit log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: LedgerConfig = make_config(folder)
        self.log = folder / "audit.log"
        self.log.touch()

    def record(self, *rows: Any) -> None:
        ledger = open_ledger(self.folder)
        for row in rows:
            ledger.record(row)
        ledger.close()

    def write(self, *content: list[str]) -> None:
        self.log.write_text("".join(line for part in content for line in part))

    def run(self, *files: Path) -> Reconciliation:
        return reconcile(
            self.config,
            files or [self.log],
            operator="alice",
            clock=SetClock(NOW + timedelta(hours=1)),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows `settled` of all journals."""
        folders = sorted(self.config.journal.iterdir())
        rows = [row for path in folders if path.is_dir() for row in all_rows(path)]
        return [dict(row.values) for row in rows if row.kind == Settled.kind]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_an_issued_attempt_gets_a_row_with_its_certificate(world: World) -> None:
    world.record(intent(), ended())
    world.write(issued(LEAF, ATTEMPT, request="call-1", at=NOW))
    report = world.run()
    (row,) = report.settled
    assert asdict(row) == {
        "attempt": ATTEMPT,
        "request": ATTEMPT,
        "purpose": "workload",
        "front": "istio",
        "cluster": "Kubernetes",
        "caller": CALLER,
        "requester": "",
        "issuing_ca": "seoul-1",
        "result": "issued",
        "serial": f"{SERIAL:x}",
        "certificate_sha256": DIGEST,
        "not_before": int(BEGINS.timestamp()),
        "not_after": int(ENDS.timestamp()),
        "certificate": base64_der(LEAF),
        "log_file": str(world.log),
        "log_request": "call-1",
        "log_at": int(NOW.timestamp()),
        "by": "alice",
        "detail": "",
    }
    assert (report.lines, report.calls) == (2, 2)
    assert (report.problems, report.notes, report.unknown) == ([], [], {})
    (written,) = world.rows()
    assert written["kind"] == "settled"
    assert asdict(row).items() <= written.items()


def test_a_second_run_writes_nothing(world: World) -> None:
    world.record(intent(), ended(), intent(2), ended(2))
    world.write(issued(LEAF, ATTEMPT), lines(Real.REFUSED_BY_ROLE, f"{2:032x}"))
    assert len(world.run().settled) == 2
    journal = sorted((world.config.journal / "reconcile").iterdir())
    before = [path.read_bytes() for path in journal if path.suffix == ".jsonl"]
    heads = world.config.heads.sink.read_bytes()
    report = world.run(world.log, world.log)
    assert (report.settled, report.settled_before, report.problems) == ([], 2, [])
    assert before == [path.read_bytes() for path in journal if path.suffix == ".jsonl"]
    assert heads == world.config.heads.sink.read_bytes()


def test_the_ledger_verifies_and_the_archive_has_the_row(world: World) -> None:
    world.record(intent(), ended())
    world.write(issued(LEAF, ATTEMPT))
    world.run()
    report = verify(world.config.journal, world.config.heads.sink)
    assert report.intact
    assert [writer.writer for writer in report.writers] == ["reconcile", "w0"]
    assert [writer.open_intents for writer in report.writers] == [[], []]
    assert compared(world.folder).agrees


def test_bridges_that_share_an_archive_have_journals_of_different_names(
    world: World,
) -> None:
    world.config = make_config(world.folder, replica="seoul")
    world.record(intent(), ended())
    world.write(issued(LEAF, ATTEMPT))
    world.run()
    assert (world.config.journal / "seoul-reconcile").is_dir()


LOGS: dict[str, tuple[list[list[str]], str]] = {
    "refused by the role": ([lines(Real.REFUSED_BY_ROLE, ATTEMPT)], "not-issued"),
    "no such role": ([lines(Real.NO_ROLE, ATTEMPT)], "not-issued"),
    "no such issuer": ([lines(Real.NO_ISSUER, ATTEMPT)], "not-issued"),
    "no such mount": ([lines(Real.NO_MOUNT, ATTEMPT)], "not-issued"),
    "no such key": ([lines(Real.TRANSIT_NO_KEY, ATTEMPT)], "not-issued"),
    "no such version": ([lines(Real.TRANSIT_NO_VERSION, ATTEMPT)], "not-issued"),
    "not in the log": ([lines(Real.ISSUED, f"{3:032x}")], ""),
    "another call of the attempt": ([real_lines(Real.LOOKUP)], ""),
    "denied, so called again": ([lines(Real.DENIED, ATTEMPT)], ""),
    "a dead token, so called again": ([lines(Real.BAD_TOKEN, ATTEMPT)], ""),
    "not answered": ([lines(Real.KILLED, ATTEMPT)], ""),
    "an answer that says nothing": (
        [lines(Real.REFUSED_BY_ROLE, ATTEMPT, error=None)],
        "",
    ),
    "refused, and called again without an answer": (
        [
            lines(Real.REFUSED_BY_ROLE, ATTEMPT),
            lines(Real.KILLED, ATTEMPT, request="2"),
        ],
        "",
    ),
    "refused, and denied later": (
        [
            lines(Real.DENIED, ATTEMPT, at=NOW + timedelta(seconds=1)),
            lines(Real.REFUSED_BY_ROLE, ATTEMPT, request="2", at=NOW),
        ],
        "",
    ),
    "denied, then refused": (
        [
            lines(Real.REFUSED_BY_ROLE, ATTEMPT, at=NOW + timedelta(seconds=1)),
            lines(Real.DENIED, ATTEMPT, request="2", at=NOW),
        ],
        "not-issued",
    ),
    "denied, then issued": (
        [lines(Real.DENIED, ATTEMPT), issued(LEAF, ATTEMPT, request="2")],
        "issued",
    ),
    "issued, and called again without an answer": (
        [issued(LEAF, ATTEMPT), lines(Real.KILLED, ATTEMPT, request="2")],
        "issued",
    ),
    "the line of the request is lost": ([issued(LEAF, ATTEMPT)[1:]], "issued"),
}


@pytest.mark.parametrize("case", LOGS)
def test_an_attempt_is_settled_only_by_an_answer(case: str, world: World) -> None:
    logs, result = LOGS[case]
    world.record(intent(), ended())
    world.write(*logs)
    report = world.run()
    assert [row.result for row in report.settled] == ([result] if result else [])
    assert [row["result"] for row in world.rows()] == ([result] if result else [])


def test_a_refusal_has_no_certificate(world: World) -> None:
    world.record(intent(), ended())
    world.write(lines(Real.NO_ISSUER, ATTEMPT))
    (row,) = world.run().settled
    assert (row.serial, row.certificate_sha256, row.certificate) == ("", "", "")
    assert (row.not_before, row.not_after) == (0, 0)
    assert "unable to find PKI issuer" in row.detail


def test_what_stays_unknown_is_told_with_its_line(world: World) -> None:
    world.record(intent(), ended(), intent(2), ended(2))
    world.write(lines(Real.KILLED, ATTEMPT), lines(Real.DENIED, f"{2:032x}"))
    report = world.run()
    assert report.unknown == {
        ATTEMPT: f"{world.log}:1: the log does not say how this call was answered",
        f"{2:032x}": f"{world.log}:3: refused (1 error occurred: * permission denied), "
        "and the bridge may have called again: look for that call in the other logs",
    }
    assert report.problems == []


def test_logs_are_read_in_any_order(world: World, tmp_path: Path) -> None:
    later = tmp_path / "later.log"
    later.write_text("".join(issued(LEAF, ATTEMPT, request="2")))
    world.record(intent(), ended())
    world.write(lines(Real.DENIED, ATTEMPT))
    report = world.run(later, world.log)
    assert [row.log_file for row in report.settled] == [str(later)]


def test_a_hashed_certificate_leaves_the_serial_number_unknown(world: World) -> None:
    world.record(intent(), ended())
    begins, ends = int(BEGINS.timestamp()), int(ENDS.timestamp())
    world.write(lines(Real.HASHED, ATTEMPT, not_before=begins, expiration=ends))
    report = world.run()
    (row,) = report.settled
    assert (row.result, row.serial, row.certificate_sha256) == ("issued", "", "")
    assert (row.not_before, row.not_after) == (begins, ends)
    assert report.problems == []


def test_a_second_audit_device_may_hash(world: World) -> None:
    world.record(intent(), ended())
    begins, ends = int(BEGINS.timestamp()), int(ENDS.timestamp())
    hashed = lines(Real.HASHED, ATTEMPT, not_before=begins, expiration=ends)
    world.write(hashed, issued(LEAF, ATTEMPT), hashed)
    report = world.run()
    assert [row.serial for row in report.settled] == [f"{SERIAL:x}"]
    assert report.problems == []


def test_a_signature_settles_an_attempt_that_the_bridge_has_built(
    world: World,
) -> None:
    world.record(intent(serial="abc1", tbs_sha256="2" * 64), ended(serial="abc1"))
    world.write(
        lines(Real.TRANSIT, ATTEMPT), lines(Real.TRANSIT, ATTEMPT, request="again")
    )
    (row,) = world.run().settled
    assert (row.result, row.serial, row.certificate) == ("issued", "abc1", "")
    assert (row.not_before, row.not_after) == (
        int(BEGINS.timestamp()),
        int(ENDS.timestamp()),
    )


MISISSUED: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"names": (OTHER_NAME,)}, "the names"),
    "one name more": ({"names": (NAME, OTHER_NAME)}, "the names"),
    "a name of another type": ({"names": (x509.DNSName(CALLER),)}, "the names"),
    "no name": ({"names": ()}, "cannot be read"),
    "another key": ({"key": OTHER_KEY}, "the public key"),
    "a subject": ({"subject": "admin"}, "the subject"),
    "begins too early": ({"begins": BEGINS - timedelta(seconds=31)}, "the validity"),
    "begins too late": ({"begins": BEGINS + timedelta(seconds=31)}, "the validity"),
    "ends too late": ({"ends": ENDS + timedelta(seconds=6)}, "the validity"),
    "ends too early": ({"ends": ENDS - timedelta(seconds=6)}, "the validity"),
}


@pytest.mark.parametrize("outcome", ["unknown", "issued"])
@pytest.mark.parametrize("case", MISISSUED)
def test_a_certificate_that_was_not_asked_for_is_a_misissuance(
    case: str, outcome: str, world: World
) -> None:
    changed, what = MISISSUED[case]
    leaf = certificate(**changed)
    world.record(intent(), ended(kind=outcome))
    world.write(issued(leaf, ATTEMPT))
    report = world.run()
    (problem,) = report.problems
    assert problem.startswith(f"{world.log}:2: MIS-ISSUANCE: attempt {ATTEMPT} of ")
    assert f"{SERIAL:x}" in problem
    assert what in problem
    assert [row.detail.startswith("mis-issued: ") for row in report.settled] == [
        True for _ in report.settled
    ]
    assert len(report.settled) == (outcome == "unknown")


@pytest.mark.parametrize(
    "changed",
    [
        {"begins": BEGINS - timedelta(seconds=30)},
        {"begins": BEGINS + timedelta(seconds=30)},
        {"ends": ENDS + timedelta(seconds=5)},
    ],
)
def test_the_backends_clock_may_differ(changed: dict[str, Any], world: World) -> None:
    world.record(intent(), ended())
    world.write(issued(certificate(**changed), ATTEMPT))
    report = world.run()
    assert (len(report.settled), report.problems) == (1, [])


@pytest.mark.parametrize(
    ("call", "data", "what"),
    [
        (Real.ISSUED, {"certificate": "AAAA"}, "cannot be read"),
        (Real.ISSUED, {"serial_number": "0a:0b"}, "the serial number"),
        (Real.HASHED, {}, "the validity"),
    ],
)
def test_an_answer_that_does_not_fit_is_a_misissuance(
    call: Real, data: dict[str, Any], what: str, world: World
) -> None:
    world.record(intent(), ended())
    if call is Real.ISSUED:
        world.write(issued(LEAF, ATTEMPT, **data))
    else:
        world.write(lines(call, ATTEMPT, **data))
    report = world.run()
    (problem,) = report.problems
    assert "MIS-ISSUANCE" in problem
    assert what in problem
    assert len(report.settled) == 1


IN_ORDER = {"serial": f"{SERIAL:x}", "certificate_sha256": DIGEST}


@pytest.mark.parametrize(
    ("outcome", "changed", "problem"),
    [
        ("issued", IN_ORDER, ""),
        ("issued", {"serial": "abc"}, "another certificate"),
        ("issued", {"certificate_sha256": "3" * 64}, "another certificate"),
        ("failed", {}, "the ledger says failed, and the log has a certificate"),
        ("refused", {}, "the ledger says refused, and the log has a certificate"),
    ],
)
def test_a_certificate_must_be_in_the_ledger(
    outcome: str, changed: dict[str, Any], problem: str, world: World
) -> None:
    world.record(intent(), ended(kind=outcome, **changed))
    world.write(issued(LEAF, ATTEMPT))
    report = world.run()
    assert report.settled == []
    if not problem:
        assert report.problems == []
        return
    (found,) = report.problems
    assert found.startswith(f"{world.log}:2: CONTRADICTION: attempt {ATTEMPT}, ")
    assert problem in found


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        (
            lines(Real.REFUSED_BY_ROLE, ATTEMPT),
            issued(LEAF, ATTEMPT),
            "not-issued",
        ),
        (
            issued(LEAF, ATTEMPT),
            issued(certificate(serial=SERIAL + 1), ATTEMPT),
            "another certificate",
        ),
        (issued(LEAF, ATTEMPT), lines(Real.REFUSED_BY_ROLE, ATTEMPT), ""),
    ],
)
def test_no_attempt_is_settled_twice(
    first: list[str], second: list[str], problem: str, world: World
) -> None:
    world.record(intent(), ended())
    world.write(first)
    assert len(world.run().settled) == 1
    world.write(second)
    report = world.run()
    assert (report.settled, report.settled_before) == ([], 1)
    assert [problem in found for found in report.problems] == [True] * bool(problem)
    assert len(world.rows()) == 1


def test_two_certificates_of_one_attempt_settle_nothing(world: World) -> None:
    world.record(intent(), ended())
    other = issued(certificate(serial=SERIAL + 1), ATTEMPT, request="2")
    world.write(issued(LEAF, ATTEMPT), other)
    report = world.run()
    (problem,) = report.problems
    assert f"attempt {ATTEMPT} has 2 certificates: nothing was settled" in problem
    assert (report.settled, world.rows()) == ([], [])


def test_a_certificate_of_an_attempt_that_the_ledger_does_not_know(
    world: World,
) -> None:
    world.record(intent(2), ended(2))
    world.write(issued(LEAF, ATTEMPT), lines(Real.DENIED, f"{3:032x}"))
    report = world.run()
    (problem,) = report.problems
    assert problem == (
        f"{world.log}:2: CERTIFICATE OUTSIDE THE LEDGER: attempt {ATTEMPT}, serial "
        f"number {SERIAL:x}: another bridge's, or mis-issued"
    )
    (note,) = report.notes
    assert note.startswith("3 lines tell of refused or unanswered calls of attempts")


def test_an_outcome_without_its_intent_is_not_known(world: World) -> None:
    world.record(ended())
    world.write(issued(LEAF, ATTEMPT))
    report = world.run()
    assert report.settled == []
    assert "CERTIFICATE OUTSIDE THE LEDGER" in report.problems[0]


def test_an_attempt_without_an_outcome_is_left_alone(world: World) -> None:
    ledger = open_ledger(world.folder)
    ledger.intend(intent())
    world.write(issued(LEAF, ATTEMPT))
    report = world.run()
    ledger.close()
    assert (report.settled, report.problems) == ([], [])
    (note,) = report.notes
    assert note.startswith("1 attempts have no outcome yet: they are running, or ")


def test_a_line_that_cannot_be_read_is_a_problem_and_the_rest_goes_on(
    world: World,
) -> None:
    world.record(intent(), ended())
    world.write(["{}\n"], issued(LEAF, ATTEMPT), ['{"type":"resp'])
    report = world.run()
    assert len(report.settled) == 1
    assert [problem.rsplit(": ", 1)[0] for problem in report.problems] == [
        f"{world.log}:1",
        f"{world.log}:4",
    ]


def test_a_log_without_the_header_is_told(world: World) -> None:
    world.record(intent(), ended())
    world.write(real_lines(Real.LOOKUP))
    assert world.run().notes == [
        "no line names an attempt: is the header x-meshca-attempt audited?"
    ]


def test_a_log_with_hashed_attempts_is_told(world: World) -> None:
    world.record(intent(), ended())
    world.write(lines(Real.ISSUED, "hmac-sha256:" + "0" * 64))
    (note,) = world.run().notes
    assert note.startswith("2 lines have a hash in place of the attempt")


def test_many_calls_are_judged_in_batches(world: World) -> None:
    count = 1203
    rows = [row(number) for number in range(1, 4) for row in (intent, ended)]
    world.record(*rows)
    refused = [lines(Real.DENIED, f"{number:032x}") for number in range(10, count)]
    world.write(
        issued(LEAF, f"{1:032x}"),
        *refused,
        issued(certificate(serial=SERIAL + 1), f"{2:032x}"),
        *refused,
        issued(certificate(serial=SERIAL + 2), f"{3:032x}"),
    )
    report = world.run()
    assert len(report.settled) == 3
    assert report.calls == report.lines == 6 + 4 * (count - 10)


# The ledger beside a server.


def test_a_server_that_runs_feeds_the_archive(world: World) -> None:
    world.write(issued(LEAF, ATTEMPT))
    with FeederThread(world.config):
        ledger = open_ledger(world.folder)
        ledger.intend(intent())
        ledger.end(ended(), durable=True)
        report = world.run()
        assert len(report.settled) == 1
        assert world.run().settled_before == 1
        ledger.close()
    assert compared(world.folder).agrees


def test_an_archive_that_stays_behind_is_an_error(world: World) -> None:
    world.record(intent(), ended())
    feed(world.config.journal, world.config.archive)
    world.record(intent(2), ended(2))
    fd = os.open(world.config.journal / "feeder.lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(LedgerError, match="does not have all rows of w0") as caught:
        catch_up(world.config, 0.1)
    os.close(fd)
    assert caught.value.rule == "ledger.lag"
    catch_up(world.config, 0.1)


def test_an_archive_that_cannot_be_opened_is_an_error(world: World) -> None:
    world.record(intent(), ended())
    (world.folder / "archive.db").write_text("no database")
    with pytest.raises(LedgerError, match="the archive of the ledger does not answer"):
        catch_up(world.config, 0.1)


def test_only_one_run_writes_at_a_time(world: World) -> None:
    world.record(intent(), ended())
    world.write(issued(LEAF, ATTEMPT))
    other = open_ledger(world.folder, "reconcile")
    with pytest.raises(LedgerError, match="another process writes this journal"):
        world.run()
    other.close()
    assert world.rows() == []


def test_a_run_that_waited_for_another_one_settles_nothing_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.record(intent(), ended())
    world.write(issued(LEAF, ATTEMPT))
    opened: list[Callable[..., Ledger]] = [Ledger.open]
    values: dict[str, Any] = {
        **{name: getattr(intent(), name) for name in SHARED_FIELDS},
        **dict.fromkeys(("log_file", "log_request", "by", "detail"), ""),
        **dict.fromkeys(("certificate_sha256", "certificate"), ""),
        **dict.fromkeys(("log_at", "not_before", "not_after"), 0),
    }
    settled = Settled(**values | {"result": "issued", "serial": "abc"})

    def open_late(*args: Any, **kwargs: Any) -> Ledger:
        # The other run has ended before this one gets the lock, and was killed before
        # it had fed the archive.
        real = opened.pop()
        monkeypatch.setattr(Ledger, "open", real)
        other = open_ledger(world.folder, "reconcile")
        other.record(settled)
        other.close()
        return real(*args, **kwargs)

    monkeypatch.setattr(Ledger, "open", open_late)
    report = world.run()
    assert (report.settled, report.settled_before) == ([], 1)
    assert len(world.rows()) == 1


def test_an_attempt_that_a_server_begins_meanwhile_is_known(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.record(intent(2), ended(2))
    world.write(issued(LEAF, ATTEMPT))
    read = AuditLogs.read

    def read_later(logs: AuditLogs, path: Path) -> Iterator[LoggedCall]:
        world.record(intent(), ended())
        return read(logs, path)

    monkeypatch.setattr(AuditLogs, "read", read_later)
    report = world.run()
    assert (len(report.settled), report.problems) == (1, [])


def test_another_user_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.record(intent(), ended())
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(LedgerError, match=f"belongs to the user with uid {uid}"):
        world.run()


def test_a_ledger_that_is_not_there_is_an_error(world: World) -> None:
    with pytest.raises(LedgerError, match="journal: No such file or directory"):
        world.run()


def test_the_row_is_what_the_reference_says(world: World) -> None:
    world.record(intent(), ended())
    world.write(issued(LEAF, ATTEMPT))
    world.run()
    (row,) = world.rows()
    body = json.loads(json.dumps(row))
    assert set(body) == {*Settled.__slots__, "kind", "seq", "prev", "at"}
