"""Two hosts with one archive: what one has latched or cleared holds on the other.

The archive is a file of SQLite here. A bridge takes such a file for its own alone.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from bridge.errors import BackendCredentialError, BackendError, BackendTimeoutError
from bridge.ledger.archive.archive import Archive
from bridge.ledger.archive.latches import ArchiveLatches
from bridge.ledger.archive.schema import LATCH_ROWS, entries
from bridge.ledger.events import Latched
from bridge.ledger.journal.journal import Journal
from bridge.ledger.latch_rows import LatchRecorder, begin
from bridge.resilience.latch import Latch
from bridge.resilience.latch_file import LatchFile
from bridge.resilience.quarantine import StoppedCAs
from tests.support.harness.archive import feed
from tests.unit.ledger.support import SetClock, make_intent

PIN = b"hunter-2-31337"


class Host:
    """A host with a journal and a latch of its own."""

    def __init__(self, folder: Path, archive: str) -> None:
        self.clock = SetClock()
        self.url = archive
        self.path = folder / "state/latch.json"
        self.journal = Journal.open(folder, writer=folder.name, clock=self.clock)
        self.recorder = LatchRecorder(self.path, self.journal.append_durable)
        self.latches = ArchiveLatches(self.path, self.clock)
        self.file = LatchFile(self.path)

    def login(self, error: BackendError | None = None) -> str:
        """Log in as a process of its own; return the rule of what came of it."""
        latch = Latch(self.path, clock=self.clock, pause=self.clock.forward)
        try:
            with latch.attempt("token 0042", PIN):
                if error is not None:
                    raise error
        except BackendError as raised:
            return raised.rule
        return "ok"

    def tell(self) -> None:
        """Write the rows that are due, and feed the archive."""
        self.recorder.run()
        feed(self.journal.folder.parent, self.url)

    def hear(self) -> None:
        archive = Archive.open(self.url)
        self.latches.take_over(archive)
        archive.close()

    def clear(self, name: str) -> None:
        with self.file.change() as content:
            assert content.clear(name, by="alice", reason="it was right")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    url = f"sqlite:///{tmp_path}/archive.db"
    one, other = (Host(tmp_path / name, url) for name in ("one", "other"))
    yield one, other
    one.journal.close()
    other.journal.close()


REFUSED = BackendCredentialError("the PIN is wrong")


def test_a_credential_that_one_host_saw_refused_is_not_tried_on_another(
    hosts: tuple[Host, Host],
) -> None:
    one, other = hosts
    assert one.login(REFUSED) == "backend.credential"
    one.tell()
    other.hear()
    assert other.login() == "latch.refused"
    # It is told once, by the host that saw it.
    other.tell()
    archive = Archive.open(one.url)
    assert len(archive.latch_rows()) == 1
    archive.close()


def test_a_ca_that_one_host_stopped_is_stopped_on_another(
    hosts: tuple[Host, Host],
) -> None:
    one, other = hosts
    there = StoppedCAs(other.path)
    StoppedCAs(one.path).add("hsm", "0a", "another name")
    one.tell()
    assert not there
    other.hear()
    assert there.reason("0a") == "another name"


def test_a_clearance_on_one_host_holds_on_all(hosts: tuple[Host, Host]) -> None:
    one, other = hosts
    one.login(REFUSED)
    StoppedCAs(one.path).add("hsm", "0a", "another name")
    one.tell()
    other.hear()
    other.clear("token 0042")
    other.clear("hsm")
    other.tell()
    one.hear()
    assert not StoppedCAs(one.path)
    assert one.login() == "ok"
    # Nor do the rows that were cleared come back.
    for host in hosts:
        host.hear()
        assert host.login() == "ok"


def test_a_clearance_holds_before_the_archive_knows_of_it(
    hosts: tuple[Host, Host],
) -> None:
    one, _ = hosts
    one.login(REFUSED)
    one.tell()
    one.clear("token 0042")
    one.hear()
    assert one.login() == "ok"


def test_what_a_host_has_lost_comes_back_from_the_archive(
    hosts: tuple[Host, Host],
) -> None:
    one, _ = hosts
    one.login(REFUSED)
    one.tell()
    one.path.unlink()
    one.hear()
    assert one.login() == "latch.refused"


def test_a_first_login_has_waited_for_the_first_reading(
    hosts: tuple[Host, Host],
) -> None:
    one, other = hosts
    one.login(REFUSED)
    one.tell()
    begin(other.path, other.clock().timestamp(), is_shared=True)
    assert other.file.read().awaits_archive
    other.hear()
    assert not other.file.read().awaits_archive
    assert other.login() == "latch.refused"


def test_a_reading_that_began_before_the_start_does_not_count(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = hosts
    read = Archive.latch_rows

    def slow(archive: Archive) -> list[str]:
        found = read(archive)
        one.clock.forward(1)
        begin(one.path, one.clock().timestamp(), is_shared=True)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Archive, "latch_rows", slow)
        one.hear()
    assert one.file.read().awaits_archive
    one.hear()
    assert not one.file.read().awaits_archive


def test_the_file_says_to_the_minute_when_the_archive_was_read(
    hosts: tuple[Host, Host],
) -> None:
    one, _ = hosts
    one.hear()
    first = one.file.read().read_at
    one.clock.forward(59)
    one.hear()
    assert one.file.read().read_at == first
    one.clock.forward(1)
    one.hear()
    assert one.file.read().read_at == first + 60


def test_while_the_archive_is_away_each_host_makes_one_attempt(
    hosts: tuple[Host, Host],
) -> None:
    for host in hosts:
        assert host.login(BackendTimeoutError("no answer")) == "backend.timeout"
        assert host.login() == "latch.refused"


def test_an_archive_that_does_not_answer_is_told_once(
    hosts: tuple[Host, Host], caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = hosts
    archive = Archive.open(one.url)
    with archive._engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE entries RENAME TO gone")
    for _ in range(2):
        one.latches.take_over(archive)
    archive.close()
    assert caplog.text.count("what other hosts have latched is not known") == 1


def test_a_row_of_another_version_spoils_nothing(
    hosts: tuple[Host, Host], caplog: pytest.LogCaptureFixture
) -> None:
    one, other = hosts
    values = dict.fromkeys(("issuing_ca", "scope", "digest", "detail"), "")
    strange = Latched(latch="0a", state="bewitched", since=1, salt="", **values)
    one.journal.append_durable(strange)
    one.login(REFUSED)
    one.tell()
    other.hear()
    assert "tells of no latch" in caplog.text
    assert other.login() == "latch.refused"


def test_the_rows_are_found_by_an_index(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts
    one.journal.append_durable(make_intent(1))
    archive = Archive.open(one.url)
    with archive._engine.connect() as connection:
        wanted = sa.select(entries.c.body).where(LATCH_ROWS).order_by(entries.c.at)
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {wanted}").all()
    archive.close()
    assert [step[3] for step in plan] == ["SCAN entries USING INDEX entries_latches"]
