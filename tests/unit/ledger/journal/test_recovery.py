"""Bytes after the last row: those of a crash are moved aside, others are refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.errors import LedgerError
from bridge.ledger.journal.recovery import readable
from bridge.ledger.verify import verify
from tests.unit.ledger.support import (
    abandon,
    all_rows,
    make_ended,
    make_intent,
    open_journal,
)


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """Rows 0 to 2: opened, intent, issued. The writer was killed."""
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent(1))
    journal.append_durable(make_ended(1))
    abandon(journal)
    return tmp_path / "w0/00000001.jsonl"


ROW = b'{"at":1,"kind":"intent","prev":"00","seq":3}\n'
TAILS = {
    "a part of a row": ROW[:20],
    "a row without its newline": ROW[:-1],
    "one brace": b"{",
    "NUL bytes": bytes(5000),
    "NUL bytes with newlines": bytes(90) + b"\n" + bytes(90) + b"\n\n" + bytes(7),
    "newlines": b"\n\n\n",
    "a row with a hole": ROW[:9] + bytes(12) + ROW[21:],
    "a hole before a row's end": bytes(512) + ROW[9:],
    "two broken rows": ROW[5:] + ROW[7:],
    "not UTF-8": b'{"at":"\xff\xfe"}\n',
    "other JSON": b"[1]\n17\nnull\n",
    "deep JSON": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_a_tail_without_a_row_is_kept_aside(
    tmp_path: Path, segment: Path, tail: bytes
) -> None:
    whole = segment.read_bytes()
    segment.write_bytes(whole + tail)
    assert not verify(tmp_path).intact
    open_journal(tmp_path).close()
    assert segment.read_bytes() == whole
    assert segment.with_name("00000001.jsonl.torn").read_bytes() == tail
    kinds = [row.kind for row in all_rows(tmp_path / "w0")]
    assert kinds == ["opened", "intent", "issued", "opened", "closed"]
    report = verify(tmp_path)
    assert report.intact
    assert len(report.writers[0].torn) == 1


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_a_tail_whose_head_was_published_is_refused(
    tmp_path: Path, segment: Path, tail: bytes
) -> None:
    journal = open_journal(tmp_path)
    journal.append_durable(make_intent(2))
    published = journal.head
    abandon(journal)
    second = segment.with_name("00000002.jsonl")
    spoiled = second.read_bytes().splitlines(keepends=True)[0] + tail
    second.write_bytes(spoiled)
    with pytest.raises(LedgerError, match="ends at row 3 and its published head is"):
        open_journal(tmp_path, published=published)
    assert second.read_bytes() == spoiled, "nothing is moved that somebody has to see"
    assert not list(segment.parent.glob("*.torn"))


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_a_gap_with_a_row_behind_it_is_refused(
    tmp_path: Path, segment: Path, tail: bytes
) -> None:
    *before, last = segment.read_bytes().splitlines(keepends=True)
    spoiled = b"".join(before) + tail.rstrip(b"\n") + b"\n" + last
    segment.write_bytes(spoiled)
    with pytest.raises(LedgerError, match=r"00000001.jsonl:3: .*meshca ledger accept"):
        open_journal(tmp_path)
    assert segment.read_bytes() == spoiled


def test_a_row_at_the_end_that_does_not_chain_is_refused(
    tmp_path: Path, segment: Path
) -> None:
    segment.write_bytes(segment.read_bytes() + ROW)
    with pytest.raises(LedgerError, match=r"00000001.jsonl:4: the chain breaks"):
        open_journal(tmp_path)


def test_a_segment_without_a_row_is_kept_aside(tmp_path: Path, segment: Path) -> None:
    second = segment.with_name("00000002.jsonl")
    second.write_bytes(bytes(4096))
    open_journal(tmp_path).close()
    assert second.read_bytes() == b""
    assert verify(tmp_path).intact


def test_a_tail_of_an_earlier_segment_is_refused(tmp_path: Path, segment: Path) -> None:
    open_journal(tmp_path).close()
    segment.write_bytes(segment.read_bytes() + bytes(9) + b"\n")
    with pytest.raises(LedgerError, match=r"00000001.jsonl:1: its first or its last"):
        open_journal(tmp_path)


@given(tail=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_reading_from_the_end_finds_the_last_row_behind_anything(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "segment"
    path.write_bytes(ROW + tail)
    size, row = readable(path)
    assert row is not None
    assert (size, row.seq) == (len(ROW), 3)
