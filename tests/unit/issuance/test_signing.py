import hashlib
import threading
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import (
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
    LedgerError,
    MisissuedError,
)
from bridge.ledger.events import Ending, Intent
from bridge.resilience.breaker import FAILURES_IN_A_ROW
from bridge.resilience.budget import Budget
from bridge.resilience.quarantine import StoppedCAs
from bridge.spi import IssuedChain, LeafRequest, Prepared
from tests.support.harness.core import CALLER, World, kinds, leaf_of
from tests.support.harness.fake_ca import Lie, lie_called


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


# The ledger fails.


def test_without_an_intent_on_disk_nothing_is_signed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Intent) -> None:
        raise LedgerError("the ledger takes no intent", rule="ledger.lag")

    monkeypatch.setattr(world.ledger, "intend", refuse)
    with pytest.raises(LedgerError, match="takes no intent"):
        world.issue()
    (row,) = world.ended()
    assert not world.cas["a"].called
    assert (row["kind"], row["rule"]) == ("failed", "ledger.lag")
    assert (row["attempt"], row["status"]) == ("", "UNAVAILABLE")


def test_a_ledger_that_is_shut_signs_nothing(world: World) -> None:
    world.ledger.close()
    with pytest.raises(LedgerError, match=r"ledger|journal"):
        world.issue()
    assert not world.cas["a"].called
    assert world.rows() == []


def test_an_outcome_that_cannot_be_written_releases_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The certificate exists by then: it must never be told as `failed`.
    ends: list[Ending] = []

    def end(ended: Ending, **_: bool) -> None:
        ends.append(ended)
        raise LedgerError("the disk is full", rule="ledger.disk")

    monkeypatch.setattr(world.ledger, "end", end)
    with pytest.raises(LedgerError, match="disk is full"):
        world.issue()
    assert [ended.kind for ended in ends] == ["issued", "unknown"]
    assert ends[1].certificate_sha256 == ends[0].certificate_sha256 != ""


def test_a_ledger_that_fails_does_not_hide_a_misissuance(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Ending, **__: bool) -> None:
        raise LedgerError("the disk is full", rule="ledger.disk")

    monkeypatch.setattr(world.ledger, "end", end)
    world.cas["a"].lie = lie_called("extra name")
    with pytest.raises(MisissuedError, match="issued certificate is refused"):
        world.issue()
    assert world.signing.stopped(world.snapshot.issuers["a"]) is not None


# The backend fails.


@pytest.mark.parametrize(
    "error",
    [
        BackendUnavailableError("down"),
        BackendAuthError("no"),
        BackendThrottledError("slow"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_another_issuing_ca_stands_in(world: World, error: BackendError) -> None:
    world.cas["a"].error = error
    leaf = leaf_of(world.issue().leaf_pem)
    assert leaf.issuer == world.authorities["b"].certificate.subject
    rows = world.ended()
    assert kinds(rows) == ["intent", "failed", "intent", "issued"]
    assert [row["issuing_ca"] for row in rows] == ["a", "a", "b", "b"]
    assert len({row["request"] for row in rows}) == 1
    assert len({row["attempt"] for row in rows}) == 2
    assert rows[0]["serial"] != rows[2]["serial"]
    assert rows[1]["rule"] == error.rule


@pytest.mark.parametrize(
    ("error", "kind", "status", "attempts"),
    [
        # The TBSCertificate is ours: it may be signed again, also after this.
        (BackendTimeoutError("late"), "unknown", "UNAVAILABLE", [2, 1]),
        (BackendRefusedError("no"), "failed", "FAILED_PRECONDITION", [1, 1]),
        (BackendBrokenError("gone"), "failed", "FAILED_PRECONDITION", [1, 1]),
        (BackendCredentialError("PIN"), "failed", "FAILED_PRECONDITION", [1, 1]),
        (BackendError("other"), "failed", "FAILED_PRECONDITION", [1, 1]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_attempt_has_its_rows_and_the_last_error_its_status(
    world: World, error: BackendError, kind: str, status: str, attempts: list[int]
) -> None:
    for ca in world.cas.values():
        ca.error = error
    with pytest.raises(type(error), match=str(error)):
        world.issue()
    assert [len(ca.called) for ca in world.cas.values()] == attempts
    rows = world.ended()
    assert kinds(rows) == ["intent", kind] * sum(attempts)
    assert (rows[1]["status"], rows[1]["rule"]) == (status, error.rule)
    assert len({row["request"] for row in rows}) == 1, "the attempts are linked"
    assert world.signing.stopped(world.snapshot.issuers["a"]) is None


@pytest.mark.parametrize(
    ("certificate", "kept"),
    [
        pytest.param(b"a leaf", b"a leaf", id="kept"),
        pytest.param(b"x" * 70_000, b"", id="too long"),
        pytest.param("no bytes", None, id="no bytes"),
    ],
)
def test_a_certificate_that_an_error_carries_is_on_record_and_not_released(
    world: World, certificate: Any, kept: bytes | None
) -> None:
    world.cas["a"].error = BackendBrokenError("changed", certificate=certificate)
    leaf_of(world.issue().leaf_pem)
    (row,) = (one for one in world.rows() if one.get("rule") == "backend.broken")
    assert row["kind"] == "unknown"
    found = row.get("certificate")
    assert (None if found is None else b64decode(found)) == kept
    if kept is not None:
        assert row["certificate_sha256"] == hashlib.sha256(certificate).hexdigest()


def test_what_the_backend_builds_is_not_asked_for_twice(world: World) -> None:
    world.cas["a"].error = BackendTimeoutError("late")
    description = replace(world.cas["a"].describe(), chooses_serial=True)
    world.snapshot = world.replace_issuer(
        "a", lambda issuer: replace(issuer, description=description)
    )
    with pytest.raises(BackendTimeoutError, match="late"):
        world.issue()
    rows = world.ended()
    assert kinds(rows) == ["intent", "unknown"]
    assert not world.cas["b"].called


def test_a_ca_that_fails_in_a_row_is_not_asked_any_more(world: World) -> None:
    world.cas["a"].error = BackendUnavailableError("down")
    for _ in range(20):
        world.issue()  # by b
    assert [len(ca.called) for ca in world.cas.values()] == [FAILURES_IN_A_ROW, 20]


def test_an_open_breaker_leaves_a_row_a_second_and_no_intent(world: World) -> None:
    for issuer in world.snapshot.issuers.values():
        world.guards.of(issuer).breaker.open(BackendUnavailableError("down"))
    for _ in range(20):
        with pytest.raises(BackendUnavailableError, match="gets no calls"):
            world.issue()
    one, summary = world.ended()
    assert (one["kind"], one["rule"]) == ("failed", "issuer.open")
    assert summary["rules"] == {"issuer.open": 19}
    assert [len(ca.called) for ca in world.cas.values()] == [0, 0]


def test_a_backend_that_comes_back_is_asked_again(world: World) -> None:
    down = BackendUnavailableError("down")
    first, second = world.cas.values()
    first.error = second.error = down

    def come_back(_: Prepared) -> None:
        if len(first.called) > 1:
            first.error = None

    first.hook = come_back
    world.issue()
    assert [row["issuing_ca"] for row in world.ended()][::2] == ["a", "b", "a"]


def test_when_all_are_down_the_last_error_is_returned_inside_the_budget(
    world: World,
) -> None:
    for name, ca in world.cas.items():
        ca.error = BackendThrottledError(f"{name} is busy", retry_after_seconds=60)
    with pytest.raises(BackendThrottledError, match="b is busy"):
        world.issue()
    assert kinds(world.ended()) == ["intent", "failed", "intent", "failed"]


def test_a_bug_of_a_plugin_is_unknown_and_an_equal_ca_stands_in(world: World) -> None:
    world.cas["a"].error = ZeroDivisionError("secret")
    world.issue()
    rows = world.ended()
    assert kinds(rows) == ["intent", "unknown", "intent", "issued"]
    assert (rows[1]["rule"], rows[1]["status"]) == (
        *("backend.plugin", "FAILED_PRECONDITION"),
    )
    assert rows[1]["detail"] == "the plugin failed: ZeroDivisionError"


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (BackendBrokenError("gone"), "backend.broken"),
        (ValueError("bug"), "backend.plugin"),
    ],
    ids=["error", "bug"],
)
def test_a_ca_that_cannot_prepare_leaves_one_row_and_no_intent(
    world: World, error: Exception, rule: str
) -> None:
    world.cas["a"].prepare_error = error
    world.issue()
    row, *others = world.ended()
    assert (row["kind"], row["rule"], row["attempt"]) == ("failed", rule, "")
    assert (row["caller"], row["issuing_ca"]) == (CALLER, "a")
    assert [other["issuing_ca"] for other in others] == ["b", "b"]


def test_a_backend_that_hangs_does_not_delay_other_requests(tmp_path: Path) -> None:
    overrides = {"issuance": {"cert_signers": {"b": ["b"]}}}
    with World(tmp_path, overrides=overrides) as world, ThreadPoolExecutor(1) as pool:
        hanging = world.cas["a"]
        hanging.hold = threading.Event()
        waiting = pool.submit(world.issue)
        assert hanging.entered.wait(20)
        world.issue(cert_signer="b")
        assert not waiting.done()
        assert kinds(world.rows())[0] == "intent"
        hanging.hold.set()
        waiting.result(20)
        assert sorted(kinds(world.ended())) == ["intent"] * 2 + ["issued"] * 2


def test_a_backend_gets_its_own_timeout_or_what_is_left(world: World) -> None:
    world.issue()
    assert world.cas["a"].timeouts.pop() == 2.0
    world.issue(budget=Budget.of_seconds(2))
    assert 0.5 < world.cas["a"].timeouts.pop() <= 1, "as much is left for the other"


# The backend lies.


@pytest.mark.parametrize("builds_tbs", [False, True], ids=["ours", "built"])
@pytest.mark.parametrize(
    "lie",
    [
        *("other key", "extra name", "CA:TRUE", "signature of another key", "no DER"),
        *("version 4", "no intermediates", "later notAfter"),
    ],
)
def test_a_misissuance_is_not_released_and_stops_the_ca(
    world: World, lie: str, *, builds_tbs: bool
) -> None:
    fake = world.cas["a"]
    fake.builds_tbs, fake.lie = builds_tbs, lie_called(lie)
    with pytest.raises(MisissuedError, match="issued certificate is refused") as found:
        world.issue()
    world.issue()  # by b
    rows = world.ended()
    assert kinds(rows) == ["intent", "unknown", "intent", "issued"]
    assert [row["issuing_ca"] for row in rows] == ["a", "a", "b", "b"]
    assert rows[1]["rule"] == found.value.rule
    assert rows[1]["status"] == "FAILED_PRECONDITION"
    # What the intent says is not what is in it, so the certificate itself is kept.
    kept = b64decode(rows[1]["certificate"])
    assert rows[1]["certificate_sha256"] == hashlib.sha256(kept).hexdigest()
    assert len(fake.called) == 1
    assert world.signing.stopped(world.snapshot.issuers["a"]) is not None
    assert world.signing.stopped(world.snapshot.issuers["b"]) is None


@pytest.mark.parametrize(
    ("answer", "is_kept"),
    [
        (b"no certificate", True),  # whatever it is
        (b"\x30" * 16 * 1024, True),
        (b"\x30" * (16 * 1024 + 1), False),  # no row may fill the disk
    ],
)
def test_an_answer_that_cannot_be_read_is_kept_as_far_as_it_is_small(
    world: World, answer: bytes, *, is_kept: bool
) -> None:
    fake = world.cas["a"]
    fake.lie = lambda made: setattr(made, "after", lambda _: answer)
    with pytest.raises(MisissuedError, match="issued certificate is refused"):
        world.issue()
    _, row = world.ended()
    assert b64decode(row["certificate"]) == (answer if is_kept else b"")
    assert (row["not_before"], row["not_after"]) == (0, 0)
    assert row["certificate_sha256"] == hashlib.sha256(answer).hexdigest()


def test_an_answer_that_is_no_bytes_stops_the_ca_and_has_its_outcome(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = world.cas["a"]
    answer = fake.answer

    def in_pem(prepared: Prepared, lie: Lie) -> IssuedChain:
        text: Any = "-----BEGIN CERTIFICATE-----"
        return replace(answer(prepared, lie), leaf=text)

    monkeypatch.setattr(fake, "answer", in_pem)
    with pytest.raises(MisissuedError, match="issued certificate is refused"):
        world.issue()
    rows = world.ended()
    assert kinds(rows) == ["intent", "unknown"]
    assert rows[1]["rule"] == "misissued.unreadable"
    assert world.signing.stopped(world.snapshot.issuers["a"]) is not None


def test_when_all_are_stopped_the_refusal_says_so(world: World) -> None:
    for ca in world.cas.values():
        ca.lie = lie_called("other name")
    for _ in world.cas:
        with pytest.raises(MisissuedError, match="issued certificate is refused"):
            world.issue()
    with pytest.raises(BackendBrokenError, match="stopped after a mis-issuance") as no:
        world.issue()
    assert no.value.rule == "issuer.stopped"
    assert world.ended()[-1]["rule"] == "issuer.stopped"
    assert [len(ca.called) for ca in world.cas.values()] == [1, 1]


def test_a_ca_that_is_stopped_meanwhile_is_not_asked(world: World) -> None:
    # The second call chose the CA before the first one's answer stopped it.
    fake = world.cas["a"]
    fake.lie = lie_called("extra name")
    second_is_there, first_is_over = threading.Event(), threading.Event()
    prepare = world.signing.prepare

    def late(*arguments: Any) -> Any:
        second_is_there.set()
        assert first_is_over.wait(20)
        return prepare(*arguments)

    with ThreadPoolExecutor(1) as pool:
        world.signing.prepare = late  # type: ignore[method-assign, assignment]
        second = pool.submit(world.issue)
        assert second_is_there.wait(20)
        world.signing.prepare = prepare  # type: ignore[method-assign]
        with pytest.raises(MisissuedError, match="issued certificate is refused"):
            world.issue()
        first_is_over.set()
        second.result(20)
    assert len(fake.called) == 1
    assert len(world.cas["b"].called) == 1


def test_a_stop_holds_for_other_workers_and_after_a_restart(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "state/latch.json"
    beside = StoppedCAs(path)
    assert not beside
    world.signing._stopped = StoppedCAs(path)
    world.cas["a"].lie = lie_called("extra name")
    with pytest.raises(MisissuedError, match="issued certificate is refused"):
        world.issue()
    issuers = world.snapshot.issuers
    for known in (beside, StoppedCAs(path)):
        assert known
        reason = known.reason(issuers["a"].certificate_sha256)
        assert reason == world.signing.stopped(issuers["a"])
        assert known.reason(issuers["b"].certificate_sha256) is None
        assert [entry.name for entry in known.latched()] == ["a"]


# What is prepared is looked at before it is signed.


def test_what_differs_from_the_request_is_not_signed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = world.cas["a"].prepare

    def longer(request: LeafRequest) -> Prepared:
        later = replace(request, not_after=request.not_after + timedelta(seconds=1))
        return replace(honest(later), request=request)

    monkeypatch.setattr(world.cas["a"], "prepare", longer)
    world.issue()
    row = world.ended()[0]
    assert (row["kind"], row["rule"]) == ("failed", "backend.prepared")
    assert "is not what was requested" in row["detail"]
    assert not world.cas["a"].called
