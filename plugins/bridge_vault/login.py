"""The bridge's token of Vault: how it is had, kept alive, and replaced."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvac.api.auth_methods import AppRole, Kubernetes, Token

from bridge.sdk import BackgroundLoop, read_public, read_secret, secret_line
from bridge.spi import (
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    ConfigError,
    PluginContext,
)
from bridge_vault.adapter import VaultAdapter, VaultError
from bridge_vault.answers import DENIED, error_of
from bridge_vault.options import (
    AppRoleLogin,
    KubernetesLogin,
    TLSLogin,
    TokenLogin,
    VaultOptions,
)

_RENEWED_AT = 2 / 3
"""A token is renewed when this part of its life has passed."""
_SHRUNK = 1 / 2
"""A renewal that grants less than this part of the first life nears the token's
explicit end: another login is better."""
_LOOK_SECONDS = 5.0
"""How often the token's age and a token file are looked at."""
_LOGIN_SECONDS = 5.0
"""For a login or a renewal in the background."""
_COOL_DOWN_SECONDS = 1.0
"""After a login that failed, calls get its error and try none of their own."""
_REFUSED = frozenset({400, 401, 403})
_log = logging.getLogger(__name__)

Adapt = Callable[[float, str], VaultAdapter]
"""Makes the adapter of a deadline and a token."""


@dataclass(slots=True)
class _Lease:
    # A token and what is known of its life, in seconds of `time.monotonic()`.
    token: str
    is_renewable: bool
    first_seconds: float
    due: float
    expires: float
    uses: int | None

    @classmethod
    def of(cls, token: str, life: Mapping[str, Any], seconds: object) -> "_Lease":
        granted = float(seconds) if isinstance(seconds, int) else 0.0
        uses = life.get("num_uses")
        lease = cls(
            token=token,
            is_renewable=life.get("renewable") is True,
            first_seconds=granted,
            due=0.0,
            expires=0.0,
            uses=uses if isinstance(uses, int) and uses > 0 else None,
        )
        lease.extend(granted)
        return lease

    def extend(self, seconds: float) -> None:
        # 0 seconds are a life without end, such as that of a root token.
        now = time.monotonic()
        self.due = now + seconds * _RENEWED_AT if seconds else float("inf")
        self.expires = now + seconds if seconds else float("inf")


class VaultLogin:
    """The one token of a session. Safe between threads.

    A thread renews it. The old token is in use until the new one works.

    Args:
        options: Say how to log in.
        context: Has the latch, for a secret that must not be tried twice.
        adapt: Makes the adapter of a call.
    """

    def __init__(
        self, options: VaultOptions, context: PluginContext, adapt: Adapt
    ) -> None:
        self._options = options
        self._method = options.method
        self._context = context
        self._adapt = adapt
        self._lock = threading.Lock()
        self._lease: _Lease | None = None
        self._failure: BackendError | None = None
        self._failed_at = float("-inf")
        self._loop = BackgroundLoop("vault-login", self._keep, _LOOK_SECONDS)
        self._is_running = False

    def token(self, deadline: float) -> str:
        """Return the token. Logs in where there is none.

        Raises:
            BackendError: There is no token in time.
        """
        lease = self._lease
        if lease is None or lease.uses is not None or time.monotonic() > lease.expires:
            with self._turn(deadline):
                lease = self._usable(deadline)
        return lease.token

    def refused(self, token: str, denial: VaultError, deadline: float) -> None:
        """Find out why a token was refused. Returns if the call may be repeated.

        Args:
            token: As the call had it.
            denial: The refusal.
            deadline: Of the call.

        Raises:
            BackendBrokenError: The token lives: it is a policy that denies the call.
            BackendError: The token is dead, and there is no other in time.
        """
        with self._turn(deadline):
            if self._lease is not None and self._lease.token != token:
                return  # another call has logged in meanwhile
            try:
                Token(self._adapt(deadline, token)).lookup_self()
            except VaultError as error:
                if error.status not in DENIED:
                    raise error_of(error, signs=False) from error
            else:
                raise error_of(denial, signs=False) from denial
            _log.warning("Vault does not know the bridge's token any more")
            self._context.metrics.count("vault_tokens_lost")
            self._lease = None
            self._usable(deadline)

    def close(self) -> None:
        """End the renewals. The token is left to its end."""
        self._loop.stop()

    def _turn(self, deadline: float) -> AbstractContextManager[object]:
        left = max(0.0, deadline - time.monotonic())
        if not self._lock.acquire(timeout=left):
            raise BackendAuthError("another call logs in at Vault", rule="vault.login")
        return _Held(self._lock)

    def _usable(self, deadline: float) -> _Lease:
        # In turn. Takes one use of a token with a limit.
        lease, now = self._lease, time.monotonic()
        if lease is not None and now <= lease.expires and lease.uses != 0:
            if lease.uses is not None:
                lease.uses -= 1
            return lease
        if self._failure is not None and now < self._failed_at + _COOL_DOWN_SECONDS:
            failure = self._failure
            raise type(failure)(
                str(failure), rule=failure.rule, detail=failure.detail
            ) from failure
        lease = self._lease = self._logged_in(deadline)
        if not self._is_running:
            self._is_running = True
            self._loop.start()
        if lease.uses is not None:
            lease.uses -= 1
        return lease

    def _logged_in(self, deadline: float) -> _Lease:
        try:
            lease = self._log_in(deadline)
        except BackendError as error:
            self._failure, self._failed_at = error, time.monotonic()
            raise
        self._failure = None
        self._context.metrics.count("vault_logins")
        _log.info("logged in at Vault by %s", _name_of(self._method))
        return lease

    def _log_in(self, deadline: float) -> _Lease:
        if isinstance(self._method, TokenLogin):
            return self._of_file(deadline)
        secret = self._secret()
        try:
            with self._attempt(secret, deadline):
                answer = self._send(secret, deadline)
        except VaultError as error:
            raise self._refusal(error) from error
        life = answer.get("auth")
        if not isinstance(life, dict) or not isinstance(life.get("client_token"), str):
            raise BackendBrokenError(
                "Vault's answer to the login has no token",
                rule="vault.login",
                detail="a wrapped one is not taken" if answer.get("wrap_info") else "",
            )
        return _Lease.of(life["client_token"], life, life.get("lease_duration"))

    def _attempt(
        self, secret: bytes, deadline: float
    ) -> AbstractContextManager[object]:
        # Each try may use up a SecretID, and some of them lock the role.
        method = self._method
        if not isinstance(method, AppRoleLogin):
            return nullcontext()
        server = self._options.addresses[0]
        scope = f"{server} auth/{method.mount} role_id {method.role_id}"
        left = max(0.0, deadline - time.monotonic())
        return self._context.latch.attempt(scope, secret, wait_seconds=left)

    def _secret(self) -> bytes:
        method = self._method
        if isinstance(method, AppRoleLogin):
            return self._read(method.secret_id_file, "a SecretID", is_secret=True)
        if isinstance(method, TLSLogin):
            return b""
        assert not isinstance(method, TokenLogin)  # noqa: S101 - for mypy
        return self._read(method.token_file, "a JWT", is_secret=False)

    def _send(self, secret: bytes, deadline: float) -> dict[str, Any]:
        method, adapter = self._method, self._adapt(deadline, "")
        assert not isinstance(method, TokenLogin)  # noqa: S101 - for mypy
        text = secret.decode("ascii", errors="replace")
        try:
            if isinstance(method, AppRoleLogin):
                return dict(
                    AppRole(adapter).login(
                        method.role_id, text, mount_point=method.mount
                    )
                )
            if isinstance(method, KubernetesLogin):
                return dict(
                    Kubernetes(adapter).login(
                        method.role, text, mount_point=method.mount
                    )
                )
            path = f"/v1/auth/{method.mount}/login"
            if isinstance(method, TLSLogin):
                body = {"name": method.role} if method.role else {}
            else:
                body = {"role": method.role, "jwt": text}
            return dict(adapter.post(path, json=body))
        except VaultError as error:
            # Inside the latch's attempt: the kind of the error is what it keeps.
            if isinstance(method, AppRoleLogin) and error.status in _REFUSED:
                raise BackendCredentialError(
                    "Vault refuses the SecretID",
                    rule="vault.secret-id",
                    detail=f"{method.secret_id_file}: {error}",
                ) from error
            raise

    def _refusal(self, error: VaultError) -> BackendError:
        if error.status in _REFUSED | {404}:
            return BackendAuthError(
                "Vault refuses the login",
                rule="vault.login",
                detail=f"{_name_of(self._method)}: {error}",
            )
        return error_of(error, signs=False)

    def _of_file(self, deadline: float) -> _Lease:
        method = self._method
        assert isinstance(method, TokenLogin)  # noqa: S101 - for mypy
        token = self._token_of(method.file)
        adapter = self._adapt(deadline, token)
        try:
            life = Token(adapter).lookup_self()["data"]
        except VaultError as error:
            if error.status not in DENIED:
                raise error_of(error, signs=False) from error
            why = "it has ended or was revoked; expected a token that lives"
            if self._is_wrapping(token, deadline):
                why = "it is a wrapping token: expected the token that it wraps"
            raise BackendAuthError(
                "Vault does not know the token of the file",
                rule="vault.token",
                detail=f"{method.file}: {why}",
            ) from error
        return _Lease.of(token, life, life.get("ttl"))

    def _is_wrapping(self, token: str, deadline: float) -> bool:
        try:
            self._adapt(deadline, "").post(
                "/v1/sys/wrapping/lookup", json={"token": token}
            )
        except VaultError:
            return False
        return True

    def _token_of(self, path: Path) -> str:
        content = self._read(path, "a token", is_secret=True)
        if content.startswith(b"{"):
            raise BackendBrokenError(
                "the file of the token holds JSON",
                rule="vault.token",
                detail=f"{path}: expected the token itself; leave wrap_ttl out of the "
                "agent's sink"
                if b"wrap" in content
                else f"{path}: expected the token itself",
            )
        return content.decode("ascii", errors="replace")

    def _read(self, path: Path, what: str, *, is_secret: bool) -> bytes:
        try:
            if not is_secret:  # a projected token is readable, and short-lived
                return secret_line(read_public(path), path, what)
            content = read_secret(
                path,
                allow_group_read=self._options.allow_group_read,
                group_hint=", or set allow_group_read: true for a Secret's fsGroup",
            )
            return secret_line(content, path, what)
        except ConfigError as error:
            raise BackendAuthError(
                "the credential for Vault cannot be read",
                rule="vault.credential-file",
                detail=str(error),
            ) from error

    def _keep(self) -> None:
        """Renew the token, or replace it, before it ends."""
        lease = self._lease
        if lease is None:
            return
        if lease.expires != float("inf"):
            left = lease.expires - time.monotonic()
            self._context.metrics.set("vault_token_seconds", max(left, 0.0))
        deadline = time.monotonic() + _LOGIN_SECONDS
        try:
            if isinstance(self._method, TokenLogin):
                self._look_at_file(lease, self._method.file, deadline)
            if self._lease is lease and time.monotonic() >= lease.due:
                self._renew(lease, deadline)
        except BackendError as error:
            _log.warning("Vault's token is not renewed: %s %s", error, error.detail)

    def _look_at_file(self, lease: _Lease, path: Path, deadline: float) -> None:
        if self._token_of(path) != lease.token:
            self._replace(lease, deadline)

    def _renew(self, lease: _Lease, deadline: float) -> None:
        if lease.is_renewable:
            try:
                adapter = self._adapt(deadline, lease.token)
                life = Token(adapter).renew_self()["auth"]
            except VaultError as error:
                if error.status not in DENIED | {400}:
                    raise error_of(error, signs=False) from error
            else:
                granted = float(life.get("lease_duration") or 0)
                lease.extend(granted)
                is_file = isinstance(self._method, TokenLogin)
                if is_file or granted >= lease.first_seconds * _SHRUNK:
                    return
        self._replace(lease, deadline)

    def _replace(self, lease: _Lease, deadline: float) -> None:
        with self._turn(deadline):
            if self._lease is lease:
                self._lease = self._logged_in(deadline)


class _Held(AbstractContextManager[object]):
    # A lock that is held already.
    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _name_of(method: object) -> str:
    return type(method).__name__.removesuffix("Login").lower()
