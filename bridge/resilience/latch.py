"""The latch: what must not be tried again until an operator acts, on this host.

A credential that a backend refused is not shown to it again: an HSM locks after a few
wrong PINs, and a fleet that restarts has many tries. An issuing CA that signed
something else than what was asked stays stopped. Both outlive the process: they stand
in a file that all processes of this host share. See `bridge.resilience.latch_file`.
"""

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from bridge.errors import (
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendTimeoutError,
    LedgerError,
)
from bridge.resilience.latch_file import (
    Content,
    Entry,
    Kind,
    LatchFile,
    State,
    new_id,
)
from bridge.system.clock import Clock, system_clock

TURN_SECONDS = 5.0
"""How long an attempt waits for the attempt of another process."""
COOL_DOWN_SECONDS = 3.0
"""Between two logins with a proven credential, where the first had no result. The right
credential locks nothing. A backend that is well again is used within 5 s."""
ARCHIVE_SECONDS = 3.0
"""How long after a start a first login waits for what other hosts have latched."""
_MOST_LATCHED = 16
"""So many credentials of a scope may be refused before no other is tried."""
_REASON_CHARACTERS = 600
_POLL_SECONDS = 0.05
_PRIORITY = (State.REFUSED, State.PROVEN, State.UNANSWERED, State.TRYING)
"""Where several hosts know a credential: a refusal counts, and silence elsewhere does
not stop a credential that is proven here."""
_CLEAR = "`meshca ledger latch clear NAME --reason TEXT`"
_log = logging.getLogger(__name__)


class Latch:
    """The latch of one host. Every process of the host may have an object of its own.

    Args:
        path: The file; None where nothing outlives the object.
        issuing_ca: Whose credentials they are, for operators; "" shows the scope.
        clock: The time.
        pause: Waits for a number of seconds.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        issuing_ca: str = "",
        clock: Clock = system_clock,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.path = path
        """The file: another process makes its own object of it."""
        self.issuing_ca = issuing_ca
        """See the class."""
        self._clock = clock
        self._pause = pause
        self._file = LatchFile(path)

    def __repr__(self) -> str:
        return f"Latch({self.path!r}, issuing_ca={self.issuing_ca!r})"

    @contextmanager
    def attempt(
        self, scope: str, secret: bytes, *, wait_seconds: float = TURN_SECONDS
    ) -> Iterator[None]:
        """Hold the one login that may be tried with a credential.

        Processes log in one after the other. The attempt is on disk before the block
        begins. A block that ends without an error proves the credential. A
        `BackendCredentialError` latches it, and so does the death of the process inside
        the block, and a `BackendTimeoutError`, unless the credential was proven before:
        then it may be tried again after 3 s. After any other error the attempt counts
        as not made.

        Args:
            scope: What locks after too many attempts, such as a token's serial number.
            secret: The PIN, password or secret. It is kept as scrypt.
            wait_seconds: How long to wait for the login of another process.

        Raises:
            BackendCredentialError: The credential was refused before, or its first
                login had no answer. The detail names the way out.
            BackendAuthError: Another process logs in, and has no result yet; or a
                proven credential has just had no answer. May be repeated.
            BackendBrokenError: The file cannot be used. Nothing may be tried.
        """
        with self._turn(scope, wait_seconds):
            entry = self._begin(scope, secret)
            try:
                yield
            except BackendCredentialError as error:
                reason = f"{error}: {error.detail}" if error.detail else str(error)
                self._end(self._latched(entry, State.REFUSED, reason))
                raise
            except BackendTimeoutError:
                if not entry.tried_at:
                    reason = "the first login with it had no answer in time"
                    self._end(self._latched(entry, State.UNANSWERED, reason))
                raise
            except Exception:
                self._take_back(entry)
                raise
            now = self._now()
            self._end(replace(entry, state=State.PROVEN.value, at=now, tried_at=0.0))

    def is_proven(self, scope: str, secret: bytes) -> bool:
        """Return whether a login with this credential has succeeded before."""
        try:
            found = _match(self._file.read(), scope, secret)
        except LedgerError:
            return False
        return found is not None and found.state == State.PROVEN

    def knows_refusal(self, scope: str) -> bool:
        """Return whether a credential of the scope is latched on this host.

        The backend's counter of wrong attempts then has a cause that is known, and
        another credential is one that an operator has put in its place.
        """
        try:
            return _latched_count(self._file.read(), scope) > 0
        except LedgerError:
            return False

    @contextmanager
    def _turn(self, scope: str, wait_seconds: float) -> Iterator[None]:
        with ExitStack() as held:
            try:
                held.enter_context(self._file.turn(f"login {scope}", wait_seconds))
            except TimeoutError as error:
                raise BackendAuthError(
                    "another process logs in, and has no result yet", rule="latch.busy"
                ) from error
            except LedgerError as error:
                raise _unusable(error) from error
            yield

    def _begin(self, scope: str, secret: bytes) -> Entry:
        # Puts the attempt on disk, or raises.
        try:
            self._await_archive(scope, secret)
            with self._file.change() as content:
                self._note_deaths(content, scope)
                entry = _match(content, scope, secret)
                may_try = True
                if entry is None:
                    may_try = _latched_count(content, scope) < _MOST_LATCHED
                    entry = self._first(scope, secret)
                elif entry.state == State.PROVEN:
                    may_try = not self._is_cooling(entry)
                    entry = replace(entry, tried_at=self._now()) if may_try else entry
                else:
                    may_try = False
                if may_try:
                    content.put(entry)
        except LedgerError as error:
            raise _unusable(error) from error
        if not may_try:
            raise _refusal(entry)
        return entry

    def _first(self, scope: str, secret: bytes) -> Entry:
        salt = secrets.token_bytes(16)
        return Entry(
            id=new_id(),
            kind=Kind.CREDENTIAL.value,
            scope=scope,
            state=State.TRYING.value,
            at=self._now(),
            issuing_ca=self.issuing_ca,
            salt=salt.hex(),
            digest=_scrypt(secret, salt).hex(),
        )

    def _note_deaths(self, content: Content, scope: str) -> None:
        # This process has the turn: nobody else is inside a first login.
        for entry in content.credentials(scope):
            if entry.state == State.TRYING:
                reason = (
                    "the process died during the first login with it, or was ended as "
                    "the login took too long"
                )
                content.put(self._latched(entry, State.UNANSWERED, reason))

    def _await_archive(self, scope: str, secret: bytes) -> None:
        # Another host may know the credential. The wait counts from the start of the
        # worker, so a caller that gives up earlier does not begin it again.
        content = self._file.read()
        if not content.awaits_archive or _match(content, scope, secret):
            return
        while content.awaits_archive:
            if not 0 <= self._now() - content.begun_at < ARCHIVE_SECONDS:
                return
            self._pause(_POLL_SECONDS)
            content = self._file.read()

    def _is_cooling(self, entry: Entry) -> bool:
        # A clock that was set back ends the pause.
        return 0 <= self._now() - entry.tried_at < COOL_DOWN_SECONDS

    def _latched(self, entry: Entry, state: State, reason: str) -> Entry:
        return replace(
            entry,
            state=state.value,
            at=self._now(),
            tried_at=0.0,
            reason=reason[:_REASON_CHARACTERS],
        )

    def _take_back(self, entry: Entry) -> None:
        if entry.tried_at:
            self._end(replace(entry, tried_at=0.0))
            return
        self._end(entry, is_gone=True)

    def _end(self, entry: Entry, *, is_gone: bool = False) -> None:
        # What cannot be written leaves the attempt: a first one counts as unanswered.
        try:
            with self._file.change() as content:
                if is_gone:
                    content.entries.pop(entry.id, None)
                else:
                    content.put(entry)
        except LedgerError as error:
            _log.error(
                "the result of a login at %s is not on disk, and the login counts as "
                "unanswered: %s",
                entry.name,
                error.detail,
            )

    def _now(self) -> float:
        return self._clock().timestamp()


def _scrypt(secret: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(secret, salt=salt, n=2**14, r=8, p=1, dklen=32)


def _match(content: Content, scope: str, secret: bytes) -> Entry | None:
    # Each comparison takes some 40 ms, on purpose: a PIN is short.
    entries = content.credentials(scope)
    for entry in sorted(entries, key=lambda each: _PRIORITY.index(State(each.state))):
        digest = _scrypt(secret, bytes.fromhex(entry.salt))
        if hmac.compare_digest(digest, bytes.fromhex(entry.digest)):
            return entry
    return None


def _latched_count(content: Content, scope: str) -> int:
    return sum(entry.is_latched for entry in content.credentials(scope))


def _refusal(entry: Entry) -> BackendAuthError | BackendCredentialError:
    if entry.state == State.PROVEN:
        return BackendAuthError(
            "the last login had no answer; the next one waits for some seconds",
            rule="latch.cool-down",
        )
    if entry.state == State.TRYING:
        return BackendCredentialError(
            "too many credentials were refused, and no other one is tried",
            rule="latch.full",
            detail=f"{entry.name}: after a look at the backend's counter, {_CLEAR}",
        )
    return BackendCredentialError(
        "the credential was refused before, or had no answer, and is not tried again",
        rule="latch.refused",
        detail=f"{entry.name}: {entry.reason}. Give another credential, or, if this "
        f"one is right, {_CLEAR}",
    )


def _unusable(error: LedgerError) -> BackendBrokenError:
    return BackendBrokenError(
        "the latch cannot be used, so no login is tried",
        rule="latch.file",
        detail=error.detail,
    )
