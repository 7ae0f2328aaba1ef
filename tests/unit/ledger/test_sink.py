"""The sink of the heads: no line of it can be cut, moved, repeated or changed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.errors import LedgerError
from bridge.ledger.accept import accept
from bridge.ledger.chain import GENESIS, Head, canonical
from bridge.ledger.events import Published
from bridge.ledger.heads import HeadKey, parse_head
from bridge.ledger.journal.journal import Journal
from bridge.ledger.sink import HeadPublisher, HeadSink, newest_head
from bridge.ledger.verify import verify
from tests.unit.ledger.support import (
    SetClock,
    abandon,
    all_rows,
    append,
    make_config,
    make_ended,
    make_intent,
    open_ledger,
    published,
)

TIP = Head(1, 7, "ab" * 32)
Lines = list[bytes]


def run(folder: Path, writer: str, number: int) -> None:
    """Start a server, issue once, and stop it: two heads, at rows 0 and 3 of four."""
    ledger = open_ledger(folder, writer)
    ledger.intend(make_intent(number))
    ledger.end(make_ended(number))
    ledger.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two stopped servers with one sink. Its lines: w0 w0 w1 w1 w0 w0."""
    for number, writer in enumerate(("w0", "w1", "w0")):
        run(tmp_path, writer, number)
    return tmp_path


def sink_of(folder: Path) -> Path:
    return folder / "heads.jsonl"


def lines_of(folder: Path) -> Lines:
    return sink_of(folder).read_bytes().splitlines(keepends=True)


def put(folder: Path, lines: Lines) -> None:
    sink_of(folder).write_bytes(b"".join(lines))


def key_of(folder: Path) -> HeadKey:
    return HeadKey.load(folder / "journal/heads.key")


def is_verified(folder: Path) -> bool:
    report = verify(folder / "journal", sink_of(folder))
    return report.intact and all(each.is_vouched for each in report.writers)


def starts(folder: Path, writer: str) -> str:
    try:
        open_ledger(folder, writer).close()
    except LedgerError as error:
        return str(error)
    return ""


def accepted(folder: Path, writer: str) -> None:
    accept(
        make_config(folder),
        writer=writer,
        operator="kim",
        reason="lost",
        clock=SetClock(),
    )


def edited(text: bytes, **changed: object) -> bytes:
    return canonical(json.loads(text) | changed) + b"\n"


def test_each_line_has_its_number_and_the_digest_of_all_before(folder: Path) -> None:
    heads = [parse_head(line) for line in lines_of(folder)]
    assert [head.line for head in heads if head] == [1, 2, 3, 4, 5, 6]
    assert [head.writer for head in heads if head] == ["w0", "w0", "w1", "w1"] + [
        "w0"
    ] * 2
    assert is_verified(folder)
    for writer in ("w0", "w1", "w7"):
        assert starts(folder, writer) == ""
    assert is_verified(folder)


CHANGES: list[tuple[str, Callable[[Lines], Lines], str]] = [
    ("emptied", lambda _: [], "has no head of it"),
    ("last line cut", lambda lines: lines[:-1], "it ends at line 5, and the .* line 6"),
    ("half cut", lambda lines: lines[:2], "it ends at line 2, and the journal"),
    ("first line cut", lambda lines: lines[1:], ":1: its number is 2, and 1 was exp"),
    ("line cut", lambda lines: [*lines[:3], *lines[4:]], ":4: its number is 5, and 4"),
    ("swapped", lambda lines: [lines[1], lines[0], *lines[2:]], ":1: its number is 2"),
    (
        "line repeated",
        lambda lines: [*lines[:2], lines[1], *lines[2:]],
        ":3: its number is 2, and the line before it has 2",
    ),
    (
        "line appended again",
        lambda lines: [*lines, lines[4]],
        ":7: its number is 5, and the line before it has 6: it was appended again",
    ),
    (
        "all appended again",
        lambda lines: lines * 2,
        ":7: its number is 1, and the line before it has 6: it was appended again",
    ),
    (
        "renumbered",
        lambda lines: [*lines, edited(lines[4], line=7)],
        ":7: (the bytes before it|the signature of the head is wrong)",
    ),
    (
        "a row changed",
        lambda lines: [*lines[:2], edited(lines[2], seq=1), *lines[3:]],
        ":3: the signature of the head is wrong",
    ),
    (
        "a torn line put in between",
        lambda lines: [*lines[:2], b'{"at"\n', *lines[2:]],
        ":4: the bytes before it are not those",
    ),
    (
        "a line that is no head",
        lambda lines: [*lines, b'{"a":1}\n'],
        ":7: this is not a head",
    ),
    (
        "a line without a number",
        lambda lines: [*lines, edited(lines[5], line=0)],
        ":7: (it has no number|the signature of the head is wrong)",
    ),
]


@pytest.mark.parametrize(
    ("change", "reason"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES]
)
def test_a_changed_sink_is_refused_and_can_be_accepted(
    folder: Path, change: Callable[[Lines], Lines], reason: str
) -> None:
    whole = lines_of(folder)
    put(folder, change(whole))
    assert not is_verified(folder)
    with pytest.raises(LedgerError, match=rf"{reason}.*ledger accept -c FILE .*w0"):
        open_ledger(folder, "w0")
    # The right one is put back.
    spoiled = lines_of(folder)
    put(folder, whole)
    assert starts(folder, "w0") == ""
    (folder / "journal/w0/00000003.jsonl").unlink()
    # It is lost: each journal with a line that is not there is accepted.
    put(folder, spoiled)
    accepted(folder, "w0")
    assert starts(folder, "w0") == ""
    if starts(folder, "w1"):
        accepted(folder, "w1")
    assert [starts(folder, writer) for writer in ("w0", "w1")] == ["", ""]
    assert is_verified(folder)


def test_a_torn_last_line_stays_and_is_covered(folder: Path) -> None:
    torn = lines_of(folder)[0][:60]
    with sink_of(folder).open("ab") as file:
        file.write(torn)
    assert is_verified(folder)
    run(folder, "w1", 5)
    assert lines_of(folder)[6] == torn + b"\n"
    assert is_verified(folder)
    assert starts(folder, "w0") == ""


def test_a_line_that_lost_only_its_newline_counts(folder: Path) -> None:
    # A crash, or a full disk, came after the last but one byte of w1's head.
    key, sink = key_of(folder), sink_of(folder)
    last = all_rows(folder / "journal/w1")[-1]
    append(sink, key, "w1", Head(1, last.seq, last.digest))
    sink.write_bytes(sink.read_bytes()[:-1])
    run(folder, "w0", 5)
    head = parse_head(lines_of(folder)[7])
    assert head is not None
    assert head.line == 8
    assert is_verified(folder)


def roll_back(folder: Path, to: Path) -> None:
    for name in ("journal", "archive.db"):
        if (to / name).is_dir():
            shutil.rmtree(folder / name)
            shutil.copytree(to / name, folder / name)


# The owner of the disk may also append to the sink.
@pytest.mark.parametrize("with_acceptance", [False, True])
def test_a_disk_that_is_rolled_back_cannot_have_its_head_repeated(
    folder: Path, *, with_acceptance: bool
) -> None:
    if with_acceptance:
        path = folder / "journal/w0/00000002.jsonl"
        path.unlink()
        accepted(folder, "w0")
    old = folder / "old"
    old.mkdir()
    shutil.copytree(folder / "journal", old / "journal")
    line = lines_of(folder)[-1]
    run(folder, "w0", 8)
    roll_back(folder, old)
    for tail in ([], [line]):
        put(folder, [*lines_of(folder), *tail])
        assert starts(folder, "w0")
        assert not is_verified(folder)


def test_an_acceptance_names_what_it_overrides_and_fits_nothing_else(
    folder: Path,
) -> None:
    (folder / "journal/w0/00000002.jsonl").unlink()
    accepted(folder, "w0")
    before, head = map(parse_head, lines_of(folder)[-2:])
    assert before is not None
    assert head is not None
    assert (head.overrides, head.overrides_head) == (before.line, before.head)
    # Another head of this writer came in between.
    put(folder, lines_of(folder)[:-1])
    append(sink_of(folder), key_of(folder), "w0", Head(1, head.seq, head.head))
    sink = HeadSink(sink_of(folder), key_of(folder))
    sink.append(
        lambda line, before: key_of(folder).sign(
            "w0",
            Head(1, head.seq, head.head),
            5,
            line=line,
            before=before,
            accepted_by="kim",
            reason="lost",
            overrides=head.overrides,
            overrides_head=head.overrides_head,
        )
    )
    report = verify(folder / "journal", sink_of(folder))
    expected = (
        f"{sink_of(folder)}:8: it accepts what line 6 published, and the newest line "
        "of w0 before it is line 7"
    )
    assert report.problems == [expected]


def test_an_acceptance_of_a_lost_sink_names_the_line_that_the_journal_knows(
    folder: Path,
) -> None:
    put(folder, [])
    accepted(folder, "w0")
    head = newest_head(sink_of(folder), "w0")
    assert head is not None
    assert (head.overrides, head.overrides_head, head.line) == (6, "", 7)


def test_the_last_line_is_missed_by_the_journal_too(folder: Path) -> None:
    # Its head is still there, and everything else as well.
    journal = all_rows(folder / "journal/w0")
    assert [row.kind for row in journal].count("published") == 4
    put(folder, lines_of(folder)[:-1])
    report = verify(folder / "journal", sink_of(folder))
    (problem,) = (text for each in report.writers for text in each.problems)
    assert "00000002.jsonl:5: line 6 of" in problem
    assert "was published, and is not there as it was" in problem


# Sinks of earlier versions.


@pytest.fixture
def earlier(folder: Path) -> Path:
    """A sink of an earlier version, and journals without rows `published`."""
    shutil.rmtree(folder / "journal/w0")
    shutil.rmtree(folder / "journal/w1")
    sink_of(folder).unlink()
    for writer in ("w0", "w1", "w0"):
        make_earlier(folder, writer)
    return folder


def make_earlier(folder: Path, writer: str) -> None:
    newest = newest_head(sink_of(folder), writer) if sink_of(folder).exists() else None
    journal = Journal.open(folder / "journal", writer=writer, clock=SetClock())
    add_earlier(folder, writer, journal.head)
    journal.append_durable(make_intent(newest.seq if newest else 1))
    journal.append_durable(make_ended(newest.seq if newest else 1))
    add_earlier(folder, writer, journal.head)
    journal.close()


def add_earlier(folder: Path, writer: str, head: Head, **more: str) -> None:
    line = canonical(key_of(folder).sign(writer, head, 5, **more).values())
    with sink_of(folder).open("ab") as file:
        file.write(line + b"\n")


def test_a_sink_of_an_earlier_version_is_read_and_covered(earlier: Path) -> None:
    old = lines_of(earlier)
    assert is_verified(earlier)
    run(earlier, "w1", 20)
    run(earlier, "w0", 21)
    assert is_verified(earlier)
    first = parse_head(lines_of(earlier)[len(old)])
    assert first is not None
    assert first.line == len(old) + 1
    # Lines of before are now as safe as the others.
    whole = lines_of(earlier)
    for changed in (
        [whole[1], whole[0], *whole[2:]],
        whole[1:],
        [whole[0], *whole],
        [*whole, whole[0]],
        [*whole[:-1], old[-1]],
    ):
        put(earlier, changed)
        assert starts(earlier, "w0")
        assert not is_verified(earlier)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda lines: [*lines, lines[0]],
            ":7: it is the head of row 0 of w0, and line 6 is that of row 6: it was",
        ),
        (lambda lines: [*lines, lines[-1]], ":7: it is the head of row 6 of w0"),
    ],
    ids=["an old line", "the last line"],
)
def test_a_line_of_an_earlier_version_cannot_be_repeated(
    earlier: Path, change: Callable[[Lines], Lines], reason: str
) -> None:
    put(earlier, change(lines_of(earlier)))
    assert reason in starts(earlier, "w0")
    assert not is_verified(earlier)


def test_an_acceptance_of_an_earlier_version_cannot_be_repeated(earlier: Path) -> None:
    path = earlier / "journal/w0/00000002.jsonl"
    later = path.read_bytes()
    path.unlink()
    row = all_rows(earlier / "journal/w0")[-1]
    tip = Head(1, row.seq, row.digest)
    add_earlier(earlier, "w0", tip, attested_by="kim", reason="lost")
    acceptance = lines_of(earlier)[-1]
    assert is_verified(earlier)
    assert later
    make_earlier(earlier, "w0")
    assert is_verified(earlier)
    path.unlink()
    put(earlier, [*lines_of(earlier), acceptance])
    assert "this acceptance stands in the file twice" in starts(earlier, "w0")
    assert not is_verified(earlier)


# One server and its sink.


def test_writers_take_turns(folder: Path) -> None:
    first, second = open_ledger(folder, "w0"), open_ledger(folder, "w1")
    first._loop.close()
    second._loop.close()
    clock = SetClock()
    for number in range(3):
        for ledger in (first, second):
            ledger.intend(make_intent(30 + number))
            clock.forward(31)
            ledger._tick(clock())
    assert is_verified(folder), "they are running"
    second.close()
    first.close()
    assert is_verified(folder)
    assert len(lines_of(folder)) == 6 + 8


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: [], "it ends at line 0, and the journal recorded that line 7"),
        (lambda lines: lines[:-1], "it ends at line 6"),
        (lambda lines: [*lines, lines[0]], ":8: its number is 1"),
    ],
    ids=["emptied", "cut", "repeated"],
)
def test_a_sink_that_changes_under_a_server_stops_it(
    folder: Path, change: Callable[[Lines], Lines], reason: str
) -> None:
    ledger = open_ledger(folder, "w0")
    ledger._loop.close()
    clock, whole = SetClock(), lines_of(folder)
    put(folder, change(whole))
    for number in range(3):
        ledger.intend(make_intent(30 + number))
        clock.forward(31)
        ledger._tick(clock())
        assert reason in ledger._heads_trouble
    assert lines_of(folder) == change(whole), "nothing is written behind it"
    put(folder, whole)
    clock.forward(31)
    ledger._tick(clock())
    assert ledger._heads_trouble == ""
    ledger.close()
    assert is_verified(folder)


def test_a_server_that_was_killed_before_its_row_starts_again(folder: Path) -> None:
    ledger = open_ledger(folder, "w0")
    ledger._loop.close()
    ledger.intend(make_intent(30))
    # The head is in the sink, and the journal does not know yet.
    ledger._publisher.publish(ledger._journal.head)
    abandon(ledger._journal)
    assert is_verified(folder)
    assert starts(folder, "w0") == ""
    assert is_verified(folder)


def test_a_sink_with_the_lines_of_another_key(folder: Path) -> None:
    # Another bridge writes into it. Its lines are not ours to judge, and ours hold.
    other = HeadKey.load_or_make(folder / "other.key")
    append(sink_of(folder), other, "other-w0", TIP)
    assert starts(folder, "w0") == ""
    report = verify(folder / "journal", sink_of(folder))
    assert report.problems == [
        f"{sink_of(folder)}:7: the head is signed by a key that is not this journal's"
    ]
    put(folder, lines_of(folder)[1:])
    assert "its number is 2, and 1 was expected" in starts(folder, "w0")


def test_a_new_key_is_accepted_for_each_journal(folder: Path) -> None:
    for name in ("heads.key", "heads.pub"):
        (folder / "journal" / name).unlink()
    for writer in ("w0", "w1"):
        assert "signed by a key that is not" in starts(folder, writer)
        accepted(folder, writer)
        assert starts(folder, writer) == ""
    assert is_verified(folder)


def test_a_head_is_published_when_there_are_new_rows(tmp_path: Path) -> None:
    key = HeadKey.load_or_make(tmp_path / "heads.key")
    publisher = HeadPublisher("w0", key, HeadSink(sink_of(tmp_path), key), SetClock())
    recorded: list[Published] = []
    for seq in (7, 7, 8, 9):
        publisher.publish(TIP._replace(seq=seq), recorded.append)
    assert published(tmp_path) == [7, 9], "row 8 is the row `published`"
    assert [mark.line for mark in recorded] == [1, 2]
    assert recorded[-1].size == sink_of(tmp_path).stat().st_size
    first = json.loads(lines_of(tmp_path)[0])
    assert first.keys() == {
        *("at", "before", "head", "key_id", "line", "segment", "seq", "signature"),
        "writer",
    }
    assert first["before"] != GENESIS


def test_a_sink_that_cannot_be_written(tmp_path: Path) -> None:
    key = HeadKey.load_or_make(tmp_path / "heads.key")
    with pytest.raises(LedgerError, match="cannot be published"):
        append(tmp_path / "absent" / "heads.jsonl", key, "w0", TIP)


def test_a_sink_that_another_process_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.ledger.sink._LOCK_SECONDS", 0.0)
    sink = HeadSink(sink_of(folder), key_of(folder))
    with sink._locked(), pytest.raises(LedgerError, match="cannot be") as caught:
        append(sink_of(folder), key_of(folder), "w0", TIP)
    assert "another process holds the lock" in caught.value.detail


def test_the_newest_head_of_a_writer_is_found_from_the_end(folder: Path) -> None:
    key, sink = key_of(folder), sink_of(folder)
    with sink.open("ab") as file:
        file.write(b"x" * 300_000)
    append(sink, key, "w2", replace_seq(9))
    newest = newest_head(sink, "w1")
    assert newest is not None
    assert newest.line == 4
    assert newest_head(sink, "w3") is None
    assert newest_head(folder / "absent", "w0") is None


def replace_seq(seq: int) -> Head:
    return TIP._replace(seq=seq)


def test_a_forged_line_under_the_right_number_is_refused(folder: Path) -> None:
    sink, key = sink_of(folder), key_of(folder)
    append(sink, key, "w9", TIP)
    line = parse_head(lines_of(folder)[-1])
    assert line is not None
    forged = replace(line, signature="00" * 64)
    put(folder, [*lines_of(folder)[:-1], canonical(forged.values()) + b"\n"])
    assert ":7: the signature of the head is wrong" in starts(folder, "w0")
