"""Fuzz target: reading and verifying a journal.

The input stands in place of the one segment of a journal whose head was published.
Whatever it is, reading ends with rows or a `LedgerError`, and `verify` with a report;
the report says *intact* only where the published rows stand unchanged.
"""

import atexit
import contextlib
import shutil
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.errors import LedgerError
from bridge.ledger.chain import GENESIS, Head, encode, link, parse
from bridge.ledger.events import Closed, Event, Opened
from bridge.ledger.heads import HeadKey
from bridge.ledger.journal.segments import segment_path
from bridge.ledger.verify import read_journal, verify
from tests.fuzz.engine import main
from tests.unit.ledger.support import append, make_ended, make_intent

WRITER = "bridge"
_AT = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp()) * 1_000_000


def run(data: bytes) -> None:
    """Read and verify a journal whose segment is `data`."""
    place = _place()
    segment_path(place / "journal" / WRITER, 1).write_bytes(data)
    with contextlib.suppress(LedgerError):
        for _ in read_journal(place / "journal"):
            pass
    report = verify(place / "journal", place / "heads.jsonl", place / "heads.pub")
    if report.intact and not data.startswith(good()):
        raise AssertionError("a changed journal passes for intact")
    if not report.intact and data == good():
        raise AssertionError("an unchanged journal does not verify")


@cache
def good() -> bytes:
    """Return the segment as it was written."""
    events: tuple[Event, ...] = (
        Opened(writer=WRITER, segment=1, version="1"),
        make_intent(1),
        make_ended(1),
        make_intent(2),
        make_ended(2, "failed", status="UNAVAILABLE", rule="backend.unavailable"),
        make_ended(
            3, "refused", attempt="", rule="csr.pem", detail='"\\ \u0000 \u2028'
        ),
        make_intent(4),
        Closed(reason="shutdown"),
    )
    lines, prev = list[bytes](), GENESIS
    for seq, event in enumerate(events):
        lines.append(link(encode(event, _AT + seq), prev, seq))
        prev = parse(lines[-1]).digest
    return b"".join(line + b"\n" for line in lines)


@cache
def _place() -> Path:
    place = Path(tempfile.mkdtemp(prefix="meshca-fuzz-"))
    atexit.register(shutil.rmtree, place)
    (place / "journal" / WRITER).mkdir(parents=True)
    key = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    public = key.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    (place / "heads.pub").write_bytes(public)
    last = parse(good().splitlines()[-1])
    head = Head(1, last.seq, last.digest)
    append(place / "heads.jsonl", HeadKey(key), WRITER, head, _AT)
    return place


if __name__ == "__main__":
    main(run)
