"""The sessions of a signer process, and the way back after one of them fails.

After any error a session is thrown away, since its operation stays active. A lost
login, dead handles and a token that is gone look alike (CKR_OBJECT_HANDLE_INVALID, no
key found, CKR_GENERAL_ERROR). So nobody guesses which it is: a new session is tried,
then a new login, then the process ends and another one starts.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from pkcs11 import exceptions
from pkcs11.exceptions import PKCS11Error

from bridge.spi import (
    BackendBrokenError,
    BackendError,
    BackendThrottledError,
    BackendUnavailableError,
)
from bridge_pkcs11.cryptoki import words
from bridge_pkcs11.token import KeySession

T = TypeVar("T")

_LOGIN_COOL_DOWN_SECONDS = 1.0
_LIMIT_SECONDS = 10.0
"""After the token refused another session, for so long no other is asked for."""
_PERMANENT = (
    exceptions.ArgumentsBad,
    exceptions.DataInvalid,
    exceptions.DataLenRange,
    exceptions.FunctionNotSupported,
    exceptions.FunctionRejected,
    exceptions.KeySizeRange,
    exceptions.KeyTypeInconsistent,
    exceptions.MechanismInvalid,
    exceptions.MechanismParamInvalid,
)
_NOT_PERMITTED = "CKR_KEY_FUNCTION_NOT_PERMITTED"
_ABSENT = (
    exceptions.NoSuchToken,
    exceptions.TokenNotPresent,
    exceptions.TokenNotRecognised,
    exceptions.DeviceRemoved,
)


class ExhaustedError(Exception):
    """Neither a new session nor a new login helped: the process is of no more use.

    Args:
        error: What to tell the caller. Nothing was signed.
    """

    def __init__(self, error: BackendError) -> None:
        super().__init__(str(error))
        self.error = error


class SessionSource(Protocol):
    """What opens sessions: the token, or a test's stand-in."""

    def open_session(self) -> KeySession:
        """Open a session, find the key in it, and have it sign a challenge."""

    def log_in(self) -> None:
        """Log in where nobody is."""

    def discard(self, opened: KeySession) -> None:
        """Close a session that may be dead."""


def is_permanent(error: PKCS11Error) -> bool:
    """Return whether no new session, login or process can help."""
    return isinstance(error, _PERMANENT) or words(error).startswith(_NOT_PERMITTED)


def told(error: PKCS11Error, hint: str = "") -> BackendError:
    """Return the error for the caller of a call that failed. Nothing was signed.

    Args:
        error: What the call raised.
        hint: Where to look, if the error says nothing of it.
    """
    detail = words(error)
    if isinstance(error, exceptions.NoSuchKey):
        return BackendBrokenError(
            "the key is not in the token", rule="pkcs11.key", detail=detail
        )
    if isinstance(error, _ABSENT):
        return BackendUnavailableError(
            "the token is not there", rule="pkcs11.token", detail=detail
        )
    if is_permanent(error):
        return BackendBrokenError(
            "the token cannot sign with the key", rule="pkcs11.refused", detail=detail
        )
    return BackendUnavailableError(
        "the token returned an error", rule="pkcs11.error", detail=f"{detail}{hint}"
    )


def _exhausted(error: PKCS11Error) -> ExhaustedError:
    if not isinstance(error, exceptions.NoSuchKey):
        return ExhaustedError(told(error))
    # This process has found the key before: a logout or a token that is away looks
    # like this. The next process tells whether the key itself is gone.
    lost = BackendUnavailableError(
        "the key is not found any more", rule="pkcs11.error", detail=words(error)
    )
    return ExhaustedError(lost)


class SessionPool:
    """A number of sessions, each used by one call at a time.

    They are opened when they are needed, one after the other: some services refuse
    several at once. Where the token allows fewer, calls share what there is.

    Args:
        source: Opens and closes sessions.
        limit: How many there are at most.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        source: SessionSource,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._limit = limit
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._idle: list[KeySession] = []
        self._count = 0
        self._is_opening = False
        self._full_until = float("-inf")
        self._generation = 0
        self._login = threading.Lock()
        self._logged_in = float("-inf")

    def start(self) -> None:
        """Open the first session.

        Raises:
            BackendError: See `SessionSource`.
            PKCS11Error: A call failed.
        """
        self._use(lambda _: None, self._clock())

    def run(self, work: Callable[[KeySession], T], deadline: float) -> T:
        """Run `work` with a session, and once more on each step of the way back.

        Raises:
            BackendError: Time is up, or the key or the credential is at fault.
            PKCS11Error: The call can never succeed.
            ExhaustedError: See there.
        """
        generation = self._generation
        try:
            return self._use(work, deadline)
        except PKCS11Error as error:
            if is_permanent(error):
                raise
        try:
            return self._use(work, deadline, is_new=True)
        except PKCS11Error as error:
            if is_permanent(error):
                raise
            last = error
        try:
            self._log_in_again(generation, deadline, last)
        finally:
            del last  # whose traceback holds this frame
        try:
            return self._use(work, deadline, is_new=True)
        except PKCS11Error as error:
            raise _exhausted(error) from error

    def keep_alive(
        self, work: Callable[[KeySession], object], idle_seconds: float
    ) -> None:
        """Run `work` with each session that was idle for so long.

        One that fails is thrown away.
        """
        due = self._clock() - idle_seconds
        with self._changed:
            old = [one for one in self._idle if one.used <= due]
            self._idle = [one for one in self._idle if one.used > due]
        for one in old:
            with suppress(PKCS11Error, BackendError):
                self._run_in(one, work)

    def close(self) -> None:
        """Close every session that is not in use."""
        self._drop_idle()

    def _use(
        self,
        work: Callable[[KeySession], T],
        deadline: float,
        *,
        is_new: bool = False,
    ) -> T:
        if is_new:
            self._drop_idle()
        return self._run_in(self._taken(deadline), work)

    def _run_in(self, opened: KeySession, work: Callable[[KeySession], T]) -> T:
        is_well = False
        try:
            result = work(opened)
            is_well = True
        finally:
            self._give_back(opened, is_well=is_well)
        return result

    def _taken(self, deadline: float) -> KeySession:
        while True:
            with self._changed:
                if self._idle:
                    return self._idle.pop()
                may_open = self._clock() >= self._full_until or not self._count
                if self._is_opening or self._count >= self._limit or not may_open:
                    self._wait(deadline)
                    continue
                self._is_opening = True
                self._count += 1
            opened = self._opened()
            if opened is not None:
                return opened

    def _wait(self, deadline: float) -> None:
        left = deadline - self._clock()
        if left <= 0 or not self._changed.wait(left):
            raise BackendThrottledError(
                "every session of the token is in use", rule="pkcs11.sessions"
            )

    def _opened(self) -> KeySession | None:
        # None where the token allows no more, and there are others to wait for.
        generation = self._generation
        opened = None
        try:
            opened = self._source.open_session()
            opened.generation = generation
        except exceptions.SessionCount:
            if self._count == 1:
                raise
            self._full_until = self._clock() + _LIMIT_SECONDS
        finally:
            with self._changed:
                self._is_opening = False
                self._count -= opened is None
                self._changed.notify_all()
        return opened

    def _give_back(self, opened: KeySession, *, is_well: bool) -> None:
        with self._changed:
            if is_well and opened.generation == self._generation:
                opened.used = self._clock()
                self._idle.append(opened)
                self._changed.notify()
                return
            self._count -= 1
            self._changed.notify()
        self._source.discard(opened)

    def _drop_idle(self) -> None:
        with self._changed:
            dropped, self._idle = self._idle, []
            self._count -= len(dropped)
            self._changed.notify_all()
        for one in dropped:
            self._source.discard(one)

    def _log_in_again(
        self, generation: int, deadline: float, last: PKCS11Error
    ) -> None:
        left = deadline - self._clock()
        if left <= 0 or not self._login.acquire(timeout=left):
            raise BackendUnavailableError(
                "the login to the token is being renewed", rule="pkcs11.login"
            )
        try:
            if self._generation != generation:
                return  # another call has done it since this one began
            if self._clock() < self._logged_in + _LOGIN_COOL_DOWN_SECONDS:
                raise _exhausted(last)
            try:
                self._source.log_in()
            except PKCS11Error as error:
                raise _exhausted(error) from error
            except BackendError as error:
                raise ExhaustedError(error) from error
            self._generation += 1
            self._logged_in = self._clock()
        finally:
            self._login.release()
