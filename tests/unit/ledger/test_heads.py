"""Signed heads: made, published, and compared with the journal."""

import dataclasses
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bridge.errors import ConfigError, LedgerError
from bridge.ledger.chain import Head, canonical
from bridge.ledger.heads import (
    HeadKey,
    HeadPublisher,
    HeadSink,
    SignedHead,
    load_public_key,
    problem_of,
)
from bridge.ledger.journal.journal import Journal
from bridge.ledger.verify import verify
from tests.unit.ledger.support import SetClock, abandon, make_intent, open_journal

TIP = Head(1, 7, "ab" * 32)


@pytest.fixture
def key(tmp_path: Path) -> HeadKey:
    return HeadKey.load_or_make(tmp_path / "heads.key")


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path, key: HeadKey) -> None:
    path = tmp_path / "heads.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert HeadKey.load_or_make(path).key_id == key.key_id
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "heads.key",
        "heads.pub",
    ]


def test_a_head_verifies_with_the_public_key(tmp_path: Path, key: HeadKey) -> None:
    public = load_public_key(tmp_path / "heads.pub")
    assert problem_of(key.sign("w0", TIP, 5), public) == ""


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"writer": "w1"}, "signature of the head is wrong"),
        ({"segment": 2}, "signature of the head is wrong"),
        ({"seq": 8}, "signature of the head is wrong"),
        ({"head": "cd" * 32}, "signature of the head is wrong"),
        ({"at": 6}, "signature of the head is wrong"),
        ({"signature": "zz"}, "signature of the head is wrong"),
        ({"key_id": "00" * 32}, "key that is not this journal's"),
    ],
)
def test_a_changed_head_does_not_verify(
    key: HeadKey, changed: dict[str, str | int], reason: str
) -> None:
    head = dataclasses.replace(key.sign("w0", TIP, 5), **changed)  # type: ignore[arg-type]
    assert reason in problem_of(head, key.public_key())


def no_key(path: Path) -> None:
    path.write_text("nothing")


def other_kind(path: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(pem)
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_key, r"expected an Ed25519 key in PEM .*`openssl genpkey"),
        (other_kind, "expected an Ed25519 key"),
        (lambda path: path.chmod(0o640), "found 0640"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
@pytest.mark.usefixtures("key")
def test_a_key_file_that_cannot_be_used(
    tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    change(tmp_path / "heads.key")
    with pytest.raises(ConfigError, match=reason):
        HeadKey.load(tmp_path / "heads.key")


def test_a_head_is_published_when_there_are_new_rows(
    tmp_path: Path, key: HeadKey
) -> None:
    sink = HeadSink(tmp_path / "heads.jsonl")
    publisher = HeadPublisher("w0", key, sink, SetClock())
    for head in (TIP, TIP, TIP._replace(seq=8)):
        publisher.publish(head)
    assert [head.seq for _, head in sink.read()] == [7, 8]
    assert json.loads(sink.path.read_text().splitlines()[0]).keys() == {
        field.name for field in dataclasses.fields(SignedHead)
    } - {"accepted_by", "attested_by", "reason"}


def test_the_newest_head_of_a_writer_is_found_from_the_end(
    tmp_path: Path, key: HeadKey
) -> None:
    sink = HeadSink(tmp_path / "heads.jsonl")
    assert sink.newest("w0") is None
    sink.append(key.sign("w0", TIP, 5))
    line = canonical(key.sign("w1", TIP, 5).values()) + b"\n"
    with sink.path.open("ab") as file:
        # More than one block, and a torn line at the end.
        file.write(line * 400 + line[:50])
    sink.append(key.sign("w2", TIP, 6))
    newest = sink.newest("w0")
    assert newest is not None
    assert newest.tip == TIP
    assert sink.newest("w3") is None
    assert len(list(sink.read())) == 402


def test_a_sink_that_cannot_be_written(tmp_path: Path, key: HeadKey) -> None:
    sink = HeadSink(tmp_path / "absent" / "heads.jsonl")
    with pytest.raises(LedgerError, match="cannot be published"):
        sink.append(key.sign("w0", TIP, 5))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = open_journal(tmp_path)
    for number in range(4):
        journal.append_durable(make_intent(number))
    return journal


def cut(folder: Path, rows: int) -> None:
    path = folder / "w0" / "00000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:rows]))


def test_a_journal_that_was_replaced_is_refused(
    tmp_path: Path, journal: Journal
) -> None:
    published = journal.head._replace(digest="00" * 32, seq=2)
    abandon(journal)
    with pytest.raises(LedgerError, match="meshca ledger accept -c FILE --writer w0"):
        open_journal(tmp_path, published=published)


def test_a_journal_with_rows_after_its_published_head_is_opened(
    tmp_path: Path, journal: Journal
) -> None:
    published = journal.head
    journal.append_durable(make_intent(9))
    abandon(journal)
    open_journal(tmp_path, published=published).close()
    open_journal(tmp_path, published=published).close()


def test_verify_compares_the_journals_with_the_heads(
    tmp_path: Path, journal: Journal, key: HeadKey
) -> None:
    sink = HeadSink(tmp_path / "sink.jsonl")
    sink.append(key.sign("w0", journal.head, 5))
    abandon(journal)
    report = verify(tmp_path, sink.path)
    assert report.intact
    assert report.writers[0].heads == 1

    cut(tmp_path, 4)
    problems = verify(tmp_path, sink.path).writers[0].problems
    assert f"{sink.path}:1: row 4 of w0 was published" in problems[0]
    assert verify(tmp_path).intact, "without heads nobody can know"


def test_verify_finds_a_journal_that_was_replaced(
    tmp_path: Path, journal: Journal, key: HeadKey
) -> None:
    sink = HeadSink(tmp_path / "sink.jsonl")
    sink.append(key.sign("w0", journal.head._replace(digest="00" * 32), 5))
    abandon(journal)
    report = verify(tmp_path, sink.path)
    assert "not the row whose head is" in report.writers[0].problems[0]


def test_verify_names_a_head_that_is_not_genuine_or_has_no_journal(
    tmp_path: Path, journal: Journal, key: HeadKey
) -> None:
    sink = HeadSink(tmp_path / "sink.jsonl")
    forged = dataclasses.replace(key.sign("w0", journal.head, 5), at=6)
    sink.append(forged)
    sink.append(key.sign("w9", journal.head, 5))
    abandon(journal)
    problems = verify(tmp_path, sink.path).problems
    assert f"{sink.path}:1: the signature of the head is wrong" in problems
    assert any("w9" in problem for problem in problems)
    assert verify(tmp_path, tmp_path / "absent").problems
    assert verify(tmp_path, sink.path, tmp_path / "absent").problems
