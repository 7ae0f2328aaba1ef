"""The bridge's one token of a session: kept alive, replaced, and known to live."""

import copy
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from hvac.api.auth_methods import Token

from bridge.sdk import BackgroundLoop
from bridge.spi import (
    BackendAuthError,
    BackendBrokenError,
    BackendError,
    BackendUnavailableError,
    PluginContext,
)
from bridge_vault.answers import DENIED, error_of
from bridge_vault.connection import VaultError
from bridge_vault.login import Adapt, GrantedToken, LoginMethod, seconds_of, uses_of
from bridge_vault.options import VaultOptions

_RENEWED_AT = 2 / 3
"""A token is renewed when this part of its life has passed, or up to a tenth before:
bridges that began together do not stay together."""
_SHRUNK = 1 / 2
"""A renewal that grants less than this part of the first life nears the token's
explicit end: another login is better."""
_LOOK_SECONDS = 0.5
"""How often the token's age is looked at."""
_AGAIN_SECONDS = 5.0
"""How often a token file is looked at, and a renewal that failed is tried again."""
_LOGIN_SECONDS = 3.0
"""For a login or a renewal, whatever the callers have. With the cool-down, a Vault that
is well again is used within 5 s, also after a call that hung."""
_COOL_DOWN_SECONDS = 1.0
"""After a login that failed, calls get its error for half to the whole of it, and none
is tried."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Lease:
    # A token and its life, in seconds of the clock.
    token: str = field(repr=False)
    is_renewable: bool
    first_seconds: float
    uses: int | None
    due: float = float("inf")
    expires: float = float("inf")
    lived_at: float = float("-inf")

    @classmethod
    def of(cls, grant: GrantedToken, now: float) -> "_Lease":
        lease = cls(grant.token, grant.is_renewable, grant.seconds, grant.uses)
        lease.extend(grant.seconds, now)
        return lease

    def extend(self, seconds: float, now: float) -> None:
        part = _RENEWED_AT - random.uniform(0.0, 0.1)  # noqa: S311 - no secret
        self.due = now + seconds * part if seconds else float("inf")
        self.expires = now + seconds if seconds else float("inf")


class VaultToken:
    """The one token of a session. Safe between threads.

    A thread renews it, and each login has a thread: a caller waits for it as long as
    it has time, and the login goes on for the others. The old token is in use until the
    new one works.

    Args:
        options: Say how to log in.
        context: Returns the context of a CA that is in use: its latch and metrics.
        adapt: Makes the adapter of a call.
        clock: Of the token's life and the deadlines, in seconds.
    """

    def __init__(
        self,
        options: VaultOptions,
        context: Callable[[], PluginContext],
        adapt: Adapt,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._method = LoginMethod(options, context, adapt, clock)
        self._context = context
        self._adapt = adapt
        self._clock = clock
        self._lock = threading.Lock()
        """Of what follows; nobody asks Vault with it."""
        self._lease: _Lease | None = None
        self._login: Future[None] | None = None
        """The one that is under way."""
        self._failure: BackendError | None = None
        self._again_at = float("-inf")
        self._is_running = False
        self._file_at = float("-inf")
        """When the token file is looked at next."""
        self._lookup = threading.Lock()
        """Of the one who asks whether the token lives."""
        self._loop = BackgroundLoop("vault-token", self.keep, _LOOK_SECONDS)

    def get(self, deadline: float) -> str:
        """Return the token. Logs in where there is none.

        Raises:
            BackendError: There is no token in time.
        """
        while True:
            with self._lock:
                lease = self._lease
                if lease is not None and self._take(lease):
                    return lease.token
                login = self._begun()
            self._wait(login, deadline)

    def refused(self, token: str, denial: VaultError, deadline: float) -> None:
        """Find out why a token was refused. Returns if it is dead.

        Args:
            token: As the call had it.
            denial: The refusal.
            deadline: Of the call.

        Raises:
            BackendBrokenError: The token lives: it is a policy that denies the call.
            BackendError: It is not known.
        """
        refused_at = self._clock()
        if not self._lookup.acquire(timeout=max(0.0, deadline - refused_at)):
            raise BackendAuthError(
                "Vault does not say in time whether the token lives", rule="vault.login"
            )
        try:
            lease = self._lease
            if lease is None or lease.token != token:
                return  # another call has found out
            if lease.lived_at < refused_at:
                self._look_up(lease, deadline)
            if self._lease is lease:
                raise error_of(denial, signs=False) from denial
        finally:
            self._lookup.release()

    def keep(self) -> None:
        """Renew the token, or replace it, before it ends."""
        lease = self._lease
        if lease is None:
            return
        now = self._clock()
        if lease.expires != float("inf"):
            seconds = max(0.0, lease.expires - now)
            self._context().metrics.set("vault_token_seconds", seconds)
        if now >= self._file_at:
            self._file_at = now + _AGAIN_SECONDS
            self._look_at_file(lease)
        if self._lease is not lease or now < lease.due:
            return
        try:
            self._renew(lease, now)
        except BackendError as error:
            lease.due = now + _AGAIN_SECONDS
            _log.warning("Vault's token is not renewed: %s: %s", error, error.detail)

    def close(self) -> None:
        """End the renewals. The token is left to its end, to calls under way."""
        with self._lock:
            self._loop.stop()

    def _take(self, lease: _Lease) -> bool:
        # With the lock.
        if self._clock() >= lease.expires or lease.uses == 0:
            return False
        if lease.uses is not None:
            lease.uses -= 1
        return True

    def _begun(self) -> Future[None]:
        # With the lock. Begins a login where none is under way.
        if self._login is not None:
            return self._login
        if self._loop.is_closing:
            raise BackendUnavailableError("the session with Vault is closed")
        if self._failure is not None and self._clock() < self._again_at:
            raise copy.copy(self._failure) from self._failure
        login: Future[None] = Future()
        thread = threading.Thread(
            target=self._log_in, args=(login,), name="vault-login", daemon=True
        )
        try:
            thread.start()
            self._login = login
            if not self._is_running:
                self._loop.start()
                self._is_running = True
        except RuntimeError as error:
            raise BackendUnavailableError(
                "no thread is left for a login", detail=str(error)
            ) from error
        return login

    def _wait(self, login: Future[None], deadline: float) -> None:
        try:
            login.result(max(0.0, deadline - self._clock()))
        except TimeoutError as error:
            raise BackendAuthError(
                "the login at Vault has no answer in time", rule="vault.login"
            ) from error
        except BackendError as error:
            raise copy.copy(error) from error  # each caller has its own

    def _log_in(self, login: Future[None]) -> None:
        # In a thread of its own.
        now = self._clock()
        lease: _Lease | None = None
        failure: BackendError = BackendBrokenError("the login at Vault broke off")
        try:
            lease = _Lease.of(self._method.log_in(now + _LOGIN_SECONDS), now)
        except BackendError as error:
            failure = error
        finally:
            self._end(login, lease, failure)

    def _end(
        self, login: Future[None], lease: _Lease | None, failure: BackendError
    ) -> None:
        pause = _COOL_DOWN_SECONDS * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        with self._lock:
            self._login = None
            if lease is None:
                self._failure, self._again_at = failure, self._clock() + pause
            else:
                self._failure, self._lease = None, lease
        if lease is None:
            login.set_exception(failure)
            return
        login.set_result(None)
        self._context().metrics.count("vault_logins")
        _log.info("logged in at Vault by %s", self._method.name)

    def _look_up(self, lease: _Lease, deadline: float) -> None:
        asked_at = self._clock()
        try:
            answer = Token(self._adapt(deadline, lease.token)).lookup_self()
        except VaultError as error:
            if error.status not in DENIED:
                raise error_of(error, signs=False) from error
            self._drop(lease)
            return
        lease.lived_at = asked_at
        life = answer.get("data")
        if lease.uses is not None and isinstance(life, dict):
            # The answer took a use, and others may have the token as well.
            lease.uses = uses_of(life)
            if lease.uses == 0:
                self._drop(lease)

    def _drop(self, lease: _Lease) -> None:
        with self._lock:
            if self._lease is not lease:
                return
            self._lease = None
        _log.warning("Vault does not know the bridge's token any more")
        self._context().metrics.count("vault_tokens_lost")

    def _look_at_file(self, lease: _Lease) -> None:
        file = self._method.file
        if file is None:
            return
        try:
            if self._method.token_of_file(file) != lease.token:
                self._replace(lease)
        except BackendError as error:
            _log.warning("the token's file is not used: %s: %s", error, error.detail)

    def _renew(self, lease: _Lease, now: float) -> None:
        if lease.is_renewable and self._is_extended(lease, now):
            return
        if self._method.file is None:
            self._replace(lease)
            return
        lease.due = float("inf")
        _log.warning(
            "the token of %s ends in %.0f s and cannot be renewed: another one must be "
            "in the file by then",
            self._method.file,
            lease.expires - now,
        )

    def _is_extended(self, lease: _Lease, now: float) -> bool:
        with self._lock:
            if lease.uses is not None:
                if lease.uses < 2:  # noqa: PLR2004 - the last one is a call's
                    return False
                lease.uses -= 1
        try:
            adapter = self._adapt(now + _LOGIN_SECONDS, lease.token)
            answer = Token(adapter).renew_self()
        except VaultError as error:
            if error.status not in DENIED | {400}:
                raise error_of(error, signs=False) from error
            return False
        life: Any = answer.get("auth")
        granted = seconds_of(life, "lease_duration") if isinstance(life, dict) else 0.0
        if not granted:
            return False
        lease.extend(granted, now)
        is_file = self._method.file is not None
        return is_file or granted >= lease.first_seconds * _SHRUNK

    def _replace(self, lease: _Lease) -> None:
        with self._lock:
            if self._lease is not lease:
                return
            login = self._begun()
        self._wait(login, self._clock() + _LOGIN_SECONDS)
