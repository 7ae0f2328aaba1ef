"""The ledger as the core sees it."""

import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import ConfigError, LedgerError
from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.queries import Query
from bridge.ledger.chain import GENESIS, Head, Row
from bridge.ledger.events import CallEnding
from bridge.ledger.journal.progress import FeederState
from bridge.ledger.ledger import ArchiveLag, Ledger
from bridge.ledger.sink import HeadSink
from bridge.ledger.verify import verify
from tests.support.harness.archive import FeederThread, feed
from tests.support.harness.workers import await_true
from tests.unit.ledger.support import (
    NOW,
    SetClock,
    all_rows,
    archive_url,
    make_config,
    make_ended,
    make_intent,
    open_journal,
    published,
)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


def open_ledger(folder: Path, clock: SetClock, **changed: Any) -> Ledger:
    return Ledger.open(
        make_config(folder, **changed),
        writer="w0",
        clock=clock,
        monotonic=seconds_of(clock),
    )


def seconds_of(clock: SetClock) -> Callable[[], float]:
    return lambda: clock().timestamp()


def archived(folder: Path) -> list[str]:
    archive = Archive.open(archive_url(folder), make=False)
    found = [row["kind"] for row in archive.search(Query())]
    archive.close()
    return found


def journaled(folder: Path) -> list[Row]:
    return all_rows(folder / "journal" / "w0")


def test_from_intent_to_archive(tmp_path: Path, clock: SetClock) -> None:
    ledger = open_ledger(tmp_path, clock)
    ledger.intend(make_intent())
    assert [row.kind for row in journaled(tmp_path)] == [
        "opened",
        "published",
        "intent",
    ]
    ledger.end(make_ended(), durable=True)
    assert journaled(tmp_path)[-1].kind == "issued"
    assert ledger.problem() is None
    ledger.close()
    kinds = ["opened", "published", "intent", "issued", "published", "closed"]
    assert [row.kind for row in journaled(tmp_path)] == kinds
    feed(tmp_path / "journal", archive_url(tmp_path))
    assert archived(tmp_path) == kinds
    report = verify(tmp_path / "journal", tmp_path / "heads.jsonl")
    assert report.intact
    assert report.writers[0].heads == 2


def test_nothing_is_left_running_or_open(tmp_path: Path, clock: SetClock) -> None:
    open_ledger(tmp_path, clock).close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    ledger = open_ledger(tmp_path, clock)
    names = {t.name for t in threading.enumerate() if t.name.startswith("ledger")}
    assert names == {"ledger-flush-w0", "ledger-heads-w0"}
    ledger.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ledger")]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_start_that_fails_leaves_nothing_running_or_locked(
    tmp_path: Path, clock: SetClock
) -> None:
    (tmp_path / "sink").mkdir()
    with pytest.raises(LedgerError, match="published"):
        open_ledger(tmp_path, clock, heads={"sink": "sink"})
    assert not [t for t in threading.enumerate() if t.name.startswith("ledger")]
    open_ledger(tmp_path, clock).close()


@pytest.mark.parametrize(
    ("detail", "kept"),
    [
        ("\x1b" * 9999, 99),
        ("x" * 501, 500),
        ("\x7f" * 9999, 500),
        ('"\\' * 9999, 299),
        ("한" * 500, 199),
        ("\U0001f511" * 500, 149),
        ("\udc80" * 500, 500),
        ("한" * 199, 199),
    ],
)
def test_a_detail_of_a_peer_is_bounded_after_escaping_too(
    tmp_path: Path, clock: SetClock, detail: str, kept: int
) -> None:
    ledger = open_ledger(tmp_path, clock)
    ledger.end(make_ended(detail=detail), durable=True)
    row = journaled(tmp_path)[-1]
    assert len(row.values["detail"]) == kept
    assert len(row.line) < 1200
    ledger.close()


ESCAPED = "\x1b" * 500
OF_NOBODY = [f"token.rule-{number}" for number in range(26)]
"""As many rules as a peer without a credential can break."""


@pytest.mark.parametrize(
    ("detail", "rules", "journal", "archive"),
    [
        ("there is no token", OF_NOBODY[:1], 55e6, 120e6),
        (ESCAPED, OF_NOBODY[:1], 105e6, 205e6),
        (ESCAPED, OF_NOBODY, 145e6, 230e6),
    ],
    ids=["plain", "escaped", "each rule in turn"],
)
def test_refusals_of_a_day_leave_room_on_the_disk(
    tmp_path: Path,
    clock: SetClock,
    detail: str,
    rules: list[str],
    journal: float,
    archive: float,
) -> None:
    # 60 calls a second without a credential, for a minute. docs/ledger.md has the
    # figures for a day.
    nobody = dict.fromkeys(
        ("caller", "cluster", "issuing_ca", "serial", "certificate_sha256"), ""
    )
    ledger = open_ledger(tmp_path, clock)
    feed(tmp_path / "journal", archive_url(tmp_path))
    empty = (tmp_path / "archive.db").stat().st_size
    before = sum(len(row.line) for row in journaled(tmp_path))
    seconds, broken = 60, cycle(rules)
    for second in range(seconds):
        if second:
            clock.forward(1)
        for _ in range(60):
            ending = replace(refusal(next(broken)), detail=detail, **nobody)
            ledger.refuse_unauthenticated(ending)
    ledger._journal.flush()
    rows = journaled(tmp_path)
    assert [row.kind for row in rows].count("refused") == seconds
    counts = [row.values["rules"] for row in rows if row.kind == "summary"]
    assert [sum(each.values()) for each in counts] == [59] * (seconds - 1), "none lost"
    written = sum(len(row.line) for row in rows) - before
    assert written / seconds * 86_400 < journal
    ledger.close()
    feed(tmp_path / "journal", archive_url(tmp_path))
    grown = (tmp_path / "archive.db").stat().st_size - empty
    assert grown / seconds * 86_400 < archive


def break_archive(folder: Path) -> None:
    # A directory in its place: nobody can open the archive.
    (folder / "archive.db").mkdir()


def test_an_archive_that_is_too_many_seconds_behind_stops_issuing(
    tmp_path: Path, clock: SetClock
) -> None:
    break_archive(tmp_path)
    with FeederThread(make_config(tmp_path)):
        ledger = open_ledger(tmp_path, clock, max_lag={"seconds": 60})
        await_true(lambda: bool(ledger._journal.progress.reason()))
        clock.forward(60)
        ledger.intend(make_intent(1))
        clock.forward(0.001)
        with pytest.raises(LedgerError, match="takes no intent") as caught:
            ledger.intend(make_intent(2))
        assert caught.value.rule == "ledger.lag"
        assert "60 s behind: " in str(ledger.problem())
        assert "the archive cannot be opened" in str(ledger.problem())
        ledger.end(make_ended(1))
        # The archive comes back, and so does issuing.
        (tmp_path / "archive.db").rmdir()
        await_true(lambda: ledger.problem() is None)
        ledger.intend(make_intent(3))
        ledger.close()
    assert archived(tmp_path).count("intent") == 2


def test_without_a_feeder_the_archive_is_behind_by_every_row(
    tmp_path: Path, clock: SetClock
) -> None:
    ledger = open_ledger(tmp_path, clock, max_lag={"entries": 3})
    for number in range(4):
        ledger.intend(make_intent(number))
    with pytest.raises(LedgerError, match="takes no intent") as caught:
        ledger.intend(make_intent(9))
    assert caught.value.rule == "ledger.lag"
    ledger.close()


def test_the_lag_is_the_time_since_the_archive_had_every_row(
    tmp_path: Path, clock: SetClock
) -> None:
    journal = open_journal(tmp_path)
    lag = ArchiveLag(lambda: journal.head, journal.progress, seconds_of(clock))
    clock.forward(5)
    assert (lag.rows(), lag.seconds()) == (0, 5.0), "the feeder has not reported"
    journal.progress.report(journal.head.seq)
    lag.sample()
    clock.forward(600)
    lag.sample()
    assert (lag.rows(), lag.seconds()) == (0, 0.0)
    for _ in range(2):
        journal.append_durable(make_intent())
        clock.forward(2)
        lag.sample()
    assert (lag.rows(), lag.seconds()) == (2, 4.0)
    journal.progress.report(journal.head.seq - 1)
    lag.sample()
    assert (lag.rows(), lag.seconds()) == (1, 2.0)
    journal.progress.report(journal.head.seq)
    assert (lag.rows(), lag.seconds()) == (0, 0.0)
    journal.close()


def test_in_a_rebuild_only_rows_since_its_begin_count(
    tmp_path: Path, clock: SetClock
) -> None:
    journal = open_journal(tmp_path)
    lag = ArchiveLag(lambda: journal.head, journal.progress, seconds_of(clock))
    for _ in range(9):
        journal.append_durable(make_intent())
    journal.progress.report(journal.head.seq)
    lag.sample()
    until = journal.head.seq
    journal.progress.begin_rebuild()
    journal.progress.report(None)
    lag.sample()
    assert lag.rows() == 0
    journal.progress.report(2)
    lag.sample()
    assert (lag.rows(), lag.seconds()) == (0, 0.0)
    assert lag.rebuild().startswith(f"is rebuilt from the journal and has 2 of {until}")
    journal.append_durable(make_intent())
    clock.forward(600)
    lag.sample()
    assert (lag.rows(), lag.seconds()) == (1, 0.0)
    journal.progress.report(until)
    assert lag.rebuild() == ""
    lag.sample()
    clock.forward(3)
    assert (lag.rows(), lag.seconds()) == (1, 3.0), (
        "counted from the end of the rebuild"
    )
    journal.progress.report(journal.head.seq)
    lag.sample()
    assert (lag.rows(), lag.seconds()) == (0, 0.0)
    journal.close()


def test_rows_written_in_a_rebuild_count_only_while_it_comes_no_nearer(
    tmp_path: Path, clock: SetClock
) -> None:
    tip = Head(1, 10_000, GENESIS)
    journal = open_journal(tmp_path)
    progress = journal.progress
    progress.publish(tip)
    lag = ArchiveLag(lambda: tip, progress, seconds_of(clock))
    progress.begin_rebuild()

    def behind(written: int, fed: int) -> tuple[int, float]:
        nonlocal tip
        tip = tip._replace(seq=10_000 + written)
        progress.report(fed)
        clock.forward(30)
        lag.sample()
        return lag.rows(), lag.seconds()

    assert behind(0, -1) == (0, 0.0)
    assert behind(4_000, 5_000) == (0, 0.0), "it comes nearer"
    assert behind(6_000, 5_000) == (2_000, 0.0), "the feeder stands still"
    assert behind(8_000, 9_999) == (0, 0.0)
    assert behind(12_000, 14_001) == (0, 0.0), "it has to catch up"
    assert behind(13_000, 15_001) == (0, 0.0)
    assert behind(15_000, 15_001) == (2_000, 30.0), "the feeder stands still"
    assert behind(15_000, 24_990) == (10, 0.0), "it is over"
    assert behind(15_000, 25_000) == (0, 0.0)
    assert behind(15_200, 25_000) == (200, 30.0), "as at any other time"
    journal.close()


def test_a_rebuild_stops_no_intent(tmp_path: Path, clock: SetClock) -> None:
    ledger = open_ledger(tmp_path, clock, max_lag={"entries": 4, "seconds": 1})
    with FeederThread(make_config(tmp_path)):
        for number in range(9):
            ledger.intend(make_intent(number))
            await_true(lambda: ledger.lag()[0] == 0)
    ledger._journal.progress.begin_rebuild()
    ledger._journal.progress.report(-1)
    clock.forward(5)
    for number in range(5):
        ledger.intend(make_intent(number))
    with pytest.raises(LedgerError, match="takes no intent") as caught:
        ledger.intend(make_intent(9))
    assert caught.value.detail.startswith("the archive is 5 rows and 0 s behind")
    ledger.close()


def test_intents_wait_the_longer_the_further_the_archive_is_behind(
    tmp_path: Path, clock: SetClock
) -> None:
    ledger = open_ledger(tmp_path, clock, max_lag={"entries": 4})
    waits: list[float] = []
    ledger._pause = waits.append
    for number in range(5):
        ledger.intend(make_intent(number))
    # None up to half of the bound; the fifth finds as many rows as there may be.
    assert waits == [pytest.approx(0.05), pytest.approx(0.1)]
    ledger.close()


def test_an_intent_waits_no_longer_where_the_archive_is_lost_meanwhile(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that is deleted in use is behind by every row, between one look and the next.
    ledger = open_ledger(tmp_path, clock, max_lag={"entries": 4})
    waits: list[float] = []
    ledger._pause = waits.append
    monkeypatch.setattr(ledger, "lag", lambda: (0, 0.0))
    monkeypatch.setattr(ledger._lag, "rows", lambda: 1_000_000)
    ledger.intend(make_intent(1))
    assert waits == [pytest.approx(0.1)]
    ledger.close()


def test_a_journal_that_is_shut_is_a_problem(tmp_path: Path, clock: SetClock) -> None:
    ledger = open_ledger(tmp_path, clock)
    ledger._journal._queue._shut = "no space"
    assert ledger.problem() == "no space"
    with pytest.raises(LedgerError, match="takes no intent") as caught:
        ledger.intend(make_intent())
    assert caught.value.rule == "ledger.shut"
    ledger.close()


def test_a_broken_chain_behind_the_archive_stops_issuing(
    tmp_path: Path, clock: SetClock
) -> None:
    ledger = open_ledger(tmp_path, clock)
    state = FeederState.BROKEN
    ledger._journal.progress.report(0, state, "at byte 7: broken")
    with pytest.raises(LedgerError, match="takes no intent") as caught:
        ledger.intend(make_intent())
    assert caught.value.rule == "ledger.chain"
    assert ledger.problem() == "at byte 7: broken"
    ledger.close()


def refusal(rule: str) -> Any:
    return make_ended(0, "refused", attempt="", rule=rule, status="UNAUTHENTICATED")


def test_unauthenticated_calls_above_the_rate_share_a_row_a_second(
    tmp_path: Path, clock: SetClock
) -> None:
    ledger = open_ledger(tmp_path, clock, refusals_per_second=2)
    second = int(NOW.timestamp())
    rules = ("token.missing", "token.missing", "token.missing", "token.expired")
    told = [ledger.refuse_unauthenticated(refusal(rule)) for rule in rules]
    assert told == [True, True, False, False]
    clock.forward(1)
    ledger._tick(clock())
    for _ in range(3):
        ledger.refuse_unauthenticated(refusal("token.missing"))
    clock.forward(5)
    ledger.refuse_unauthenticated(refusal("token.missing"))
    ledger.close()
    rows = [row for row in journaled(tmp_path) if row.kind in {"refused", "summary"}]
    assert [row.kind for row in rows] == [
        "refused",
        "refused",
        "summary",
        "refused",
        "refused",
        "summary",
        "refused",
    ]
    first, then = (row.values for row in rows if row.kind == "summary")
    assert first["rules"] == {"token.expired": 1, "token.missing": 1}
    assert (first["since"], first["until"]) == (second, second + 1)
    assert (then["since"], then["rules"]) == (second + 1, {"token.missing": 1})


def denied(caller: str, rule: str) -> Any:
    return replace(refusal(rule), caller=caller, cluster="seoul", detail="x" * 500)


@pytest.mark.parametrize(
    ("calls", "rows"),
    [
        ([("a", "csr.size")] * 3, [True, True, False]),
        ([("a", "csr.size")] * 2 + [("a", "bar.key")], [True] * 3),
        ([("a", "csr.size")] * 2 + [("b", "csr.size")], [True] * 3),
        ([(f"c{one}", "csr.size") for one in range(11)], [True] * 10 + [False]),
    ],
    ids=["again and again", "another rule", "another caller", "many callers"],
)
def test_each_caller_gets_rows_of_its_own_for_each_rule(
    tmp_path: Path, clock: SetClock, calls: list[tuple[str, str]], rows: list[bool]
) -> None:
    ledger = open_ledger(tmp_path, clock, excess_per_second=2)
    assert [ledger.refuse(denied(*call)) for call in calls] == rows
    # Nobody else's rows are used up.
    assert ledger.refuse_excess(denied("a", "overload.identity"))
    assert ledger.refuse_unauthenticated(refusal("token.missing"))
    clock.forward(1)
    assert ledger.refuse(denied(*calls[-1]))
    ledger.close()
    counts = [
        row.values["rules"] for row in journaled(tmp_path) if row.kind == "summary"
    ]
    assert counts == [{"csr.size": 1}] * rows.count(False)


def test_the_pods_of_an_account_have_rows_of_their_own(
    tmp_path: Path, clock: SetClock
) -> None:
    # All ztunnels of a cluster have one account.
    ledger = open_ledger(tmp_path, clock, excess_per_second=2)
    shared = asdict(denied("ztunnel", "impersonation.node"))
    pod = dict.fromkeys(("credential", "verified_by", "pod_namespace", "pod_name"), "")
    told = [
        ledger.refuse(CallEnding(**shared, **pod, pod_uid=uid, node=""))
        for uid in ("a", "a", "a", "b", "b", "b")
    ]
    ledger.close()
    assert told == [True, True, False] * 2


@pytest.mark.parametrize(("callers", "bytes_a_day"), [(1, 0.5e9), (60, 2.5e9)])
def test_a_caller_that_is_refused_all_the_time_leaves_room_on_the_disk(
    tmp_path: Path, clock: SetClock, callers: int, bytes_a_day: float
) -> None:
    # 60 calls a second, with the longest detail. docs/ledger.md has the bounds.
    ledger = open_ledger(tmp_path, clock)
    before = sum(len(row.line) for row in journaled(tmp_path))
    seconds = 20
    for _ in range(seconds):
        clock.forward(1)
        for call in range(60):
            ledger.refuse(
                denied(f"spiffe://corp.example/ns/a/sa/{call % callers}", "r")
            )
    ledger._journal.flush()
    written = sum(len(row.line) for row in journaled(tmp_path)) - before
    assert written / seconds * 86_400 < bytes_a_day
    ledger.close()


def test_what_is_counted_at_the_end_is_not_lost(
    tmp_path: Path, clock: SetClock
) -> None:
    ledger = open_ledger(tmp_path, clock, refusals_per_second=1)
    for _ in range(3):
        ledger.refuse_unauthenticated(refusal("token.missing"))
    ledger.close()
    assert journaled(tmp_path)[-3].values["rules"] == {"token.missing": 2}


def test_heads_are_published_at_the_start_at_the_end_and_in_between(
    tmp_path: Path, clock: SetClock
) -> None:
    ledger = open_ledger(tmp_path, clock, heads={"sink": "heads.jsonl"})
    ledger.intend(make_intent())
    clock.forward(29)
    ledger._tick(clock())
    assert published(tmp_path) == [0]
    clock.forward(1)
    ledger._tick(clock())
    clock.forward(30)
    ledger._tick(clock())
    assert published(tmp_path) == [0, 2]
    ledger.close()
    assert published(tmp_path) == [0, 2], "the rows since need none"
    assert [row.kind for row in journaled(tmp_path)] == [
        *("opened", "published", "intent", "published", "closed")
    ]
    ledger = open_ledger(tmp_path, clock, heads={"sink": "heads.jsonl"})
    ledger.intend(make_intent(2))
    ledger.close()
    assert published(tmp_path) == [0, 2, 6, 8]


def test_a_row_that_comes_with_the_last_one_is_published_too(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(tmp_path, clock)
    finish = ledger._journal.finish

    def late() -> None:
        ledger.end(make_ended())
        finish()

    monkeypatch.setattr(ledger._journal, "finish", late)
    ledger.close()
    assert published(tmp_path) == [0, 3]
    assert journaled(tmp_path)[-1].kind == "closed"
    open_ledger(tmp_path, clock).close()


def test_heads_that_cannot_be_published_stop_issuing_after_a_minute(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(tmp_path, clock, max_lag={"seconds": 3600})

    def fail(*_args: object) -> None:
        raise LedgerError("cannot be published", rule="ledger.heads", detail="full")

    monkeypatch.setattr(HeadSink, "append", fail)
    ledger.intend(make_intent())
    clock.forward(60)
    ledger._tick(clock())
    assert ledger.problem() is None
    clock.forward(1)
    assert ledger.problem() == "full"
    monkeypatch.undo()
    clock.forward(30)
    ledger._tick(clock())
    assert ledger.problem() is None
    ledger.close()


def test_a_configured_key_has_to_be_there(tmp_path: Path, clock: SetClock) -> None:
    why = "heads.key: .*absent.pem: cannot be read"
    with pytest.raises(ConfigError, match=why):
        open_ledger(tmp_path, clock, heads={"sink": "heads.jsonl", "key": "absent.pem"})


def test_a_progress_file_that_is_deleted_in_use_is_made_again(
    tmp_path: Path, clock: SetClock
) -> None:
    ledger = open_ledger(tmp_path, clock)
    with FeederThread(make_config(tmp_path)):
        ledger.intend(make_intent(1))
        await_true(lambda: not ledger.lag()[0])
        (tmp_path / "journal" / "w0" / "progress").unlink()
        await_true((tmp_path / "journal" / "w0" / "progress").exists)
        assert not ledger.lag()[0]
        ledger.intend(make_intent(2))
        await_true(lambda: not ledger.lag()[0])
    ledger.close()
    feed(tmp_path / "journal", archive_url(tmp_path))
    assert archived(tmp_path) == [row.kind for row in journaled(tmp_path)]
