"""The rules of the latch: which login may be tried, and what each result leaves."""

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge.errors import (
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
)
from bridge.resilience.latch import ARCHIVE_SECONDS, COOL_DOWN_SECONDS, Latch
from bridge.resilience.latch_file import Entry, LatchFile, new_id
from bridge.system import files
from tests.support.harness.clock import SetClock

TOKEN = "token 0042"  # noqa: S105 - a name
PIN = b"hunter-2-31337"
OTHER = b"hunter-3-31337"
REFUSED = BackendCredentialError("the PIN is wrong")
TIMEOUT = BackendTimeoutError("no answer")
AWAY = BackendUnavailableError("no token")


@pytest.fixture
def clock() -> SetClock:
    return SetClock(datetime(2026, 11, 28, 12, tzinfo=UTC))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal/state/latch.json"


@pytest.fixture
def latch(path: Path, clock: SetClock) -> Latch:
    return Latch(path, clock=clock, pause=clock.forward)


def login(latch: Latch, secret: bytes = PIN, error: Exception | None = None) -> None:
    with latch.attempt(TOKEN, secret):
        if error is not None:
            raise error


def outcome(
    latch: Latch, secret: bytes = PIN, error: BackendError | None = None
) -> str:
    """Try a login that would end with `error`; return the rule of what came of it."""
    try:
        login(latch, secret, error)
    except BackendError as raised:
        return raised.rule
    return "ok"


def restarted(latch: Latch, clock: SetClock) -> Latch:
    return Latch(latch.path, clock=clock, pause=clock.forward)


# What came before, with which credential, and what the next login with `PIN` gets.
HISTORIES = {
    "nothing": ([], "ok"),
    "success": ([(PIN, None)], "ok"),
    "a refusal": ([(PIN, REFUSED)], "latch.refused"),
    "a first login without an answer": ([(PIN, TIMEOUT)], "latch.refused"),
    "a first login that was not sent": ([(PIN, AWAY)], "ok"),
    "a bug of the plugin": ([(PIN, ZeroDivisionError())], "ok"),
    "success, then a login that was not sent": ([(PIN, None), (PIN, AWAY)], "ok"),
    "success, then no answer": ([(PIN, None), (PIN, TIMEOUT)], "latch.cool-down"),
    "success, then a refusal": ([(PIN, None), (PIN, REFUSED)], "latch.refused"),
    "a refusal of another credential": ([(OTHER, REFUSED)], "ok"),
    "a refusal, then success of another one": (
        [(PIN, REFUSED), (OTHER, None)],
        "latch.refused",
    ),
}


@pytest.mark.parametrize(("before", "expected"), HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_next_login_depends_on_what_came_before(
    before: list[tuple[bytes, Exception | None]],
    expected: str,
    *,
    is_restarted: bool,
    latch: Latch,
    clock: SetClock,
) -> None:
    for secret, error in before:
        if error is None:
            login(latch, secret)
            continue
        with pytest.raises(type(error)):
            login(latch, secret, error)
    if is_restarted:
        latch = restarted(latch, clock)
    assert outcome(latch) == expected


def test_without_a_file_the_state_is_of_the_object() -> None:
    latch = Latch()
    assert outcome(latch, error=REFUSED) == "backend.credential"
    assert outcome(latch) == "latch.refused"
    assert outcome(Latch()) == "ok"


def test_a_refused_credential_is_refused_in_words_that_name_the_way_out(
    latch: Latch,
) -> None:
    outcome(latch, error=REFUSED)
    with pytest.raises(BackendCredentialError, match="not tried again") as refused:
        login(latch)
    assert refused.value.detail.startswith(f"{TOKEN}: the PIN is wrong.")
    assert "meshca ledger latch clear" in refused.value.detail


def test_another_scope_has_entries_of_its_own(latch: Latch) -> None:
    outcome(latch, error=REFUSED)
    with latch.attempt("token 0043", PIN):
        pass
    assert outcome(latch) == "latch.refused"


def test_a_proven_credential_is_tried_again_after_the_cool_down(
    latch: Latch, clock: SetClock
) -> None:
    login(latch)
    for _ in range(3):
        assert outcome(latch, error=TIMEOUT) == "backend.timeout"
        clock.forward(COOL_DOWN_SECONDS - 0.01)
        assert outcome(latch) == "latch.cool-down"
        clock.forward(0.01)
    assert outcome(latch) == "ok"
    assert outcome(latch) == "ok"


def test_a_clock_that_was_set_back_ends_the_cool_down(
    latch: Latch, clock: SetClock
) -> None:
    login(latch)
    outcome(latch, error=TIMEOUT)
    clock.forward(-3600)
    assert outcome(latch) == "ok"


@pytest.mark.parametrize(
    ("error", "expected"),
    [(None, True), (REFUSED, False), (TIMEOUT, False), (AWAY, False)],
)
def test_only_a_success_proves(
    latch: Latch, error: BackendError | None, *, expected: bool
) -> None:
    assert not latch.is_proven(TOKEN, PIN)
    outcome(latch, error=error)
    assert latch.is_proven(TOKEN, PIN) is expected
    assert not latch.is_proven(TOKEN, OTHER)
    assert not latch.is_proven("token 0043", PIN)


def test_a_refusal_ends_the_proof(latch: Latch) -> None:
    login(latch)
    outcome(latch, error=REFUSED)
    assert not latch.is_proven(TOKEN, PIN)


def test_the_attempt_is_on_disk_before_the_login(
    latch: Latch, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with latch.attempt(TOKEN, PIN):
        # The file, and the name in its folder.
        assert len(synced) == 2
        (entry,) = LatchFile(path).read().entries.values()
        assert (entry.scope, entry.state) == (TOKEN, "trying")


def test_the_file_is_the_owners_and_has_no_secret(
    latch: Latch, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for error in (None, TIMEOUT, REFUSED):
        outcome(latch, error=error)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        told = path.read_text() + caplog.text + repr(latch)
        for spelling in (PIN.decode(), PIN.hex()):
            assert spelling not in told


def test_equal_credentials_have_different_digests(latch: Latch, path: Path) -> None:
    for scope in ("a", "b"):
        with latch.attempt(scope, PIN):
            pass
    one, other = LatchFile(path).read().entries.values()
    assert one.digest != other.digest
    assert one.salt != other.salt


def refused(scope: str) -> Entry:
    return Entry(
        id=new_id(),
        kind="credential",
        scope=scope,
        state="refused",
        at=1.0,
        digest="00" * 32,
    )


def test_after_many_refusals_no_other_credential_is_tried(
    latch: Latch, path: Path
) -> None:
    with LatchFile(path).change() as content:
        for _ in range(16):
            content.put(refused(TOKEN))
    assert outcome(latch) == "latch.full"
    with latch.attempt("token 0043", PIN):
        pass


DAMAGES = {
    "empty": b"",
    "half": b'{"format": 1, "entries": [{"id"',
    "no object": b"[]",
    "another format": b'{"format": 2}',
    "an entry of other fields": b'{"format": 1, "begun_at": 0, "read_at": 0, '
    b'"entries": [{"id": "a"}], "cleared": [], "notes": []}',
    "not text": b"\xff\xfe",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_with_a_damaged_file_no_login_is_tried(
    damage: bytes, latch: Latch, path: Path
) -> None:
    login(latch)
    path.write_bytes(damage)
    with pytest.raises(BackendBrokenError, match="no login is tried") as broken:
        login(latch)
    assert str(path) in broken.value.detail
    assert "move it away" in broken.value.detail
    assert str(path) not in str(broken.value)
    assert not latch.is_proven(TOKEN, PIN)
    assert path.read_bytes() == damage


def test_on_a_full_disk_no_login_is_tried(
    latch: Latch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(files, "replace", full)
        with pytest.raises(BackendBrokenError, match="no login is tried") as broken:
            login(latch)
        assert "No space left on device" in broken.value.detail
    assert outcome(latch) == "ok"


def test_a_folder_that_cannot_be_made_stops_the_login(tmp_path: Path) -> None:
    tmp_path.joinpath("state").write_text("a file")
    assert outcome(Latch(tmp_path / "state/latch.json")) == "latch.file"


def test_a_result_that_cannot_be_written_leaves_the_attempt(
    latch: Latch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched, latch.attempt(TOKEN, PIN):
        patched.setattr(files, "replace", lambda path, _: path.rmdir())
    assert "the login counts as unanswered" in caplog.text
    assert outcome(latch) == "latch.refused"


def waiting(path: Path, clock: SetClock) -> None:
    """Say that the archive is shared, and that nothing was read from it yet."""
    with LatchFile(path).change() as content:
        content.begun_at = clock.now.timestamp()


def test_a_first_login_waits_for_what_other_hosts_know(
    path: Path, clock: SetClock
) -> None:
    there = Latch(path.with_name("other.json"), clock=clock)
    outcome(there, error=REFUSED)
    (known,) = LatchFile(there.path).read().entries.values()
    waiting(path, clock)

    def pause(seconds: float) -> None:
        clock.forward(seconds)
        with LatchFile(path).change() as content:
            content.merge([known], [])
            content.read_at = clock.now.timestamp()

    assert outcome(Latch(path, clock=clock, pause=pause)) == "latch.refused"


def test_where_the_archive_is_away_one_attempt_is_made(
    latch: Latch, path: Path, clock: SetClock
) -> None:
    waiting(path, clock)
    began = clock.now
    assert outcome(latch, error=REFUSED) == "backend.credential"
    waited = (clock.now - began).total_seconds()
    assert waited == pytest.approx(ARCHIVE_SECONDS, abs=0.1)
    assert outcome(latch) == "latch.refused"
    # The wait counts from the start: nobody waits a second time.
    began = clock.now
    assert outcome(latch, OTHER) == "ok"
    assert clock.now == began


def test_a_credential_that_is_known_here_does_not_wait(
    latch: Latch, path: Path, clock: SetClock
) -> None:
    login(latch)
    waiting(path, clock)
    began = clock.now
    assert outcome(latch) == "ok"
    assert clock.now == began


@pytest.mark.parametrize(
    ("state", "expected"), [("refused", "latch.refused"), ("unanswered", "ok")]
)
def test_silence_on_another_host_does_not_stop_what_is_proven_here(
    state: str, expected: str, latch: Latch, path: Path, clock: SetClock
) -> None:
    there = Latch(path.with_name("other.json"), clock=clock)
    outcome(there, error=REFUSED if state == "refused" else TIMEOUT)
    login(latch)
    with LatchFile(path).change() as content:
        content.merge(LatchFile(there.path).read().entries.values(), [])
    assert outcome(latch) == expected


def test_threads_take_turns(latch: Latch) -> None:
    is_inside, is_over, outcomes = threading.Event(), threading.Event(), []

    def try_as_well() -> None:
        assert is_inside.wait(20)
        outcomes.append(outcome(latch))
        is_over.set()

    second = threading.Thread(target=try_as_well)
    second.start()
    with latch.attempt(TOKEN, PIN):
        is_inside.set()
        assert not is_over.wait(0.2)
        outcomes.append("first")
    second.join(20)
    assert outcomes == ["first", "ok"]


@pytest.mark.parametrize("is_kept", [True, False])
def test_who_waits_too_long_is_told_to_come_again(
    latch: Latch, *, is_kept: bool
) -> None:
    one = latch if is_kept else Latch()
    with (
        one.attempt(TOKEN, PIN),
        pytest.raises(BackendAuthError, match="another process logs in"),
        one.attempt(TOKEN, PIN, wait_seconds=0.05),
    ):
        pytest.fail("two logins at once")


# Processes. Each counts a login by a line of its own in a file.
TRY = """
import os, sys
from pathlib import Path
from bridge.errors import BackendError, BackendCredentialError
from bridge.resilience.latch import Latch
folder, result = Path(sys.argv[1]), sys.argv[2]
print("up", flush=True)
sys.stdin.readline()
try:
    with Latch(folder / "latch.json").attempt("token", b"1234", wait_seconds=60):
        with (folder / "logins").open("ab", buffering=0) as file:
            file.write(b"login\\n")
        if result == "refused":
            raise BackendCredentialError("wrong")
        if result == "hang":
            sys.stdin.readline()
except BackendError as error:
    print(error.rule, flush=True)
else:
    print("ok", flush=True)
"""


class Fleet:
    """Processes that try one credential."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, result: str, number: int = 1) -> list[subprocess.Popen[bytes]]:
        """Start processes, each up to just before its attempt."""
        new = [
            subprocess.Popen(
                [sys.executable, "-c", TRY, str(self.folder), result],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(number)
        ]
        self.processes += new
        for each in new:
            assert line(each) == "up"
        return new

    def run(self, result: str, number: int = 1) -> list[str]:
        """Start processes that try at once; return what came of each, sorted."""
        new = self.start(result, number)
        for each in new:
            go_on(each)
        return sorted(line(each) for each in new)

    @property
    def logins(self) -> int:
        """How many logins the backend saw."""
        try:
            return len((self.folder / "logins").read_bytes().splitlines())
        except FileNotFoundError:
            return 0


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def go_on(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    for each in fleet.processes:
        each.kill()
        each.communicate()


def test_of_twenty_processes_one_tries_a_wrong_credential(fleet: Fleet) -> None:
    outcomes = fleet.run("refused", 20)
    assert fleet.logins == 1
    assert outcomes == ["backend.credential"] + ["latch.refused"] * 19
    # Nor does a process that starts later.
    assert fleet.run("refused") == ["latch.refused"]
    assert fleet.logins == 1


def test_a_process_that_is_killed_in_its_first_login_latches(fleet: Fleet) -> None:
    (killed,) = fleet.start("hang")
    go_on(killed)
    while not fleet.logins:
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait(20)
    assert fleet.run("ok") == ["latch.refused"]
    assert fleet.logins == 1


def test_those_who_wait_take_the_result_of_the_first(fleet: Fleet) -> None:
    (first,) = fleet.start("hang")
    go_on(first)
    while not fleet.logins:
        assert first.poll() is None
    others = fleet.start("ok", 3)
    for each in others:
        go_on(each)
    assert fleet.logins == 1
    go_on(first)
    assert line(first) == "ok"
    assert [line(each) for each in others] == ["ok"] * 3


def test_a_proven_credential_survives_a_death_in_a_login(fleet: Fleet) -> None:
    assert fleet.run("ok") == ["ok"]
    (killed,) = fleet.start("hang")
    go_on(killed)
    while fleet.logins < 2:
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait(20)
    assert fleet.run("ok") == ["latch.cool-down"]
    later = LatchFile(fleet.folder / "latch.json")
    with later.change() as content:
        for entry in list(content.entries.values()):
            content.put(_before(entry, COOL_DOWN_SECONDS))
    assert fleet.run("ok") == ["ok"]


def _before(entry: Entry, seconds: float) -> Entry:
    return replace(entry, tried_at=entry.tried_at - seconds)
