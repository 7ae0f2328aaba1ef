"""Signed heads: made, published, and compared with the journal."""

import dataclasses
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bridge.errors import ConfigError, LedgerError
from bridge.ledger.chain import Head
from bridge.ledger.heads import HeadKey, load_public_key, problem_of
from bridge.ledger.journal.journal import Journal
from bridge.ledger.verify import verify
from tests.unit.ledger.support import abandon, append, make_intent, open_journal

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
    assert problem_of(key.sign("w0", TIP, 5, line=1, before="00"), public) == ""


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"writer": "w1"}, "signature of the head is wrong"),
        ({"segment": 2}, "signature of the head is wrong"),
        ({"seq": 8}, "signature of the head is wrong"),
        ({"head": "cd" * 32}, "signature of the head is wrong"),
        ({"at": 6}, "signature of the head is wrong"),
        ({"line": 2}, "signature of the head is wrong"),
        ({"before": "cd" * 32}, "signature of the head is wrong"),
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
    sink = tmp_path / "sink.jsonl"
    append(sink, key, "w0", journal.head)
    abandon(journal)
    report = verify(tmp_path, sink)
    assert report.intact
    assert (report.writers[0].heads, report.writers[0].vouched) == (1, 4)

    cut(tmp_path, 4)
    problems = verify(tmp_path, sink).writers[0].problems
    assert f"{sink}:1: row 4 of w0 was published" in problems[0]
    blind = verify(tmp_path)
    assert blind.intact, "without heads nobody can know"
    assert not blind.writers[0].is_vouched


def test_verify_finds_a_journal_that_was_replaced(
    tmp_path: Path, journal: Journal, key: HeadKey
) -> None:
    sink = tmp_path / "sink.jsonl"
    append(sink, key, "w0", journal.head._replace(digest="00" * 32))
    abandon(journal)
    report = verify(tmp_path, sink)
    assert "not the row whose head is" in report.writers[0].problems[0]


def test_verify_names_a_head_that_is_not_genuine_or_has_no_journal(
    tmp_path: Path, journal: Journal, key: HeadKey
) -> None:
    sink = tmp_path / "sink.jsonl"
    append(sink, key, "w0", journal.head)
    append(sink, key, "w9", journal.head)
    sink.write_bytes(sink.read_bytes().replace(b'"at":5', b'"at":6', 1))
    abandon(journal)
    problems = verify(tmp_path, sink).problems
    assert f"{sink}:1: the signature of the head is wrong" in problems
    assert any("w9" in problem for problem in problems)
    assert verify(tmp_path, tmp_path / "absent").problems
    assert verify(tmp_path, sink, tmp_path / "absent").problems
