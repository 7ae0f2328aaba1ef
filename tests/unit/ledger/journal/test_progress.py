"""The file that the writer of a journal and the archive feeder share."""

from pathlib import Path

import pytest

from bridge.errors import LedgerError
from bridge.ledger.chain import Head
from bridge.ledger.journal.progress import FeederState, Progress

HEADS = [Head(1, number, f"{number:064x}") for number in range(4)]


def both(folder: Path) -> tuple[Progress, Progress]:
    writer = Progress.make(folder)
    feeder = Progress.find(folder)
    assert feeder is not None
    return writer, feeder


def test_each_side_reads_what_the_other_wrote(tmp_path: Path) -> None:
    writer, feeder = both(tmp_path)
    assert writer.fed is None
    for head in HEADS:
        writer.publish(head)
        durable = feeder.durable()
        assert durable is not None
        assert durable.head == head
        feeder.report(head.seq)
        assert writer.fed == head.seq
    feeder.report(3, FeederState.RETRYING, "it is locked")
    assert (writer.is_broken, writer.reason()) == (False, "it is locked")
    feeder.report(3, FeederState.BROKEN, "é" * 2000)
    assert writer.is_broken
    assert writer.reason() == "é" * 400
    feeder.report(3)
    assert (writer.is_broken, writer.reason()) == (False, "")


def test_a_new_start_of_the_writer_forgets_what_was_said(tmp_path: Path) -> None:
    writer, feeder = both(tmp_path)
    writer.publish(HEADS[3])
    feeder.report(3, FeederState.BROKEN, "the chain breaks")
    before = feeder.durable()
    again = Progress.make(tmp_path)
    assert again.fed is None
    assert not again.is_broken
    after = feeder.durable()
    assert before is not None
    assert after is not None
    assert after.head.seq == -1
    assert after.life != before.life
    again.publish(HEADS[0])
    assert feeder.durable() == (after.life, HEADS[0])


@pytest.mark.parametrize("cut", range(8, 70, 7))
def test_a_value_that_is_half_written_is_the_one_before_it(
    tmp_path: Path, cut: int
) -> None:
    writer, feeder = both(tmp_path)
    writer.publish(HEADS[1])
    before = bytes(feeder._bytes[:256])
    writer.publish(HEADS[2])
    after = bytes(feeder._bytes[:256])
    # Which of the two places is being written.
    place = 0 if before[:128] != after[:128] else 128
    half = after[place : place + cut] + before[place + cut : place + 128]
    feeder._bytes[place : place + 128] = half
    durable = feeder.durable()
    assert durable is not None
    assert durable.head == HEADS[1]


def test_a_file_of_which_nothing_is_whole_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "progress").write_bytes(b"\xff" * 4096)
    feeder = Progress.find(tmp_path)
    assert feeder is not None
    assert feeder.durable() is None
    Progress.make(tmp_path).publish(HEADS[1])
    durable = feeder.durable()
    assert durable is not None
    assert durable.head == HEADS[1]


def test_a_feeder_that_reports_nothing_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, feeder = both(tmp_path)
    feeder.report(1)
    now = int(writer._words[66])
    for later, reason in ((10, ""), (11, "nothing for 11 s"), (-5, "nothing for 5 s")):
        monkeypatch.setattr("time.monotonic_ns", lambda: now + later * 10**9)  # noqa: B023
        assert reason in writer.reason()
        assert bool(writer.reason()) == bool(reason)


def test_a_file_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    writer, feeder = both(tmp_path)
    assert feeder.is_of(tmp_path)
    (tmp_path / "progress").unlink()
    assert not feeder.is_of(tmp_path)
    assert Progress.find(tmp_path) is None
    Progress.make(tmp_path)
    assert not feeder.is_of(tmp_path)
    writer.publish(HEADS[0])
    durable = feeder.durable()
    assert durable is not None
    assert durable.head == HEADS[0]


def test_after_the_end_the_values_stay_and_nothing_is_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    writer, feeder = both(tmp_path)
    feeder.report(7)
    writer.close()
    writer.close()
    feeder.close()
    assert writer.fed == 7
    writer.publish(HEADS[0])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "progress").mkdir()
    with pytest.raises(LedgerError, match="progress: the journal cannot be used"):
        Progress.make(tmp_path)
