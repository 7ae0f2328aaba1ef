"""The methods by which the bridge gets a token of Vault."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hvac.api.auth_methods import Token

from bridge.sdk import read_public, read_secret, secret_line
from bridge.spi import (
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    ConfigError,
    PluginContext,
)
from bridge_vault.adapter import VaultAdapter
from bridge_vault.answers import DENIED, error_of
from bridge_vault.connection import VaultError
from bridge_vault.options import (
    AppRoleLogin,
    JWTLogin,
    KubernetesLogin,
    TLSLogin,
    TokenLogin,
    VaultOptions,
)

_NO_REASON = "permission denied"
_BAD_REQUEST = 400
_REFUSED = frozenset({400, 401, 403})

Adapt = Callable[[float, str], VaultAdapter]
"""Makes the adapter of a deadline and a token."""


@dataclass(frozen=True, slots=True)
class GrantedToken:
    """A token that works, and what Vault says of its life."""

    token: str = field(repr=False)
    seconds: float
    """Its life from the answer on; 0 for a life without end, such as a root token's."""
    is_renewable: bool
    uses: int | None
    """How many requests it is good for from now on; None for no limit."""


def uses_of(life: Mapping[str, Any]) -> int | None:
    """Return how many requests a token is good for, from an answer of Vault.

    Source:
        OpenBao, vault/token_store.go: 0 is no limit, below 0 is used up.
    """
    uses = life.get("num_uses")
    if not isinstance(uses, int) or uses == 0:
        return None
    return max(uses, 0)


def seconds_of(life: Mapping[str, Any], key: str) -> float:
    """Return a duration of an answer of Vault; 0 where there is none."""
    seconds = life.get(key)
    return float(seconds) if isinstance(seconds, int) and seconds > 0 else 0.0


class LoginMethod:
    """Logs in by the method that the options name.

    Args:
        options: Name the method.
        context: Returns the context whose latch is asked before a SecretID is tried.
        adapt: Makes the adapter of a call.
        clock: Of the deadlines.
    """

    def __init__(
        self,
        options: VaultOptions,
        context: Callable[[], PluginContext],
        adapt: Adapt,
        clock: Callable[[], float],
    ) -> None:
        self._options = options
        self._method = options.method
        self._context = context
        self._adapt = adapt
        self._clock = clock

    @property
    def name(self) -> str:
        """Of the method, as the options have it."""
        return type(self._method).__name__.removesuffix("Login").lower()

    @property
    def file(self) -> Path | None:
        """The file that another program writes a token to; None for a login."""
        return self._method.file if isinstance(self._method, TokenLogin) else None

    def log_in(self, deadline: float) -> GrantedToken:
        """Get a token, and have it look itself up: from then on it is known to work.

        Raises:
            BackendError: There is none in time, or it does not work.
        """
        if self.file is not None:
            return self._of_file(self.file, deadline)
        secret = self._secret()
        try:
            with self._attempt(secret, deadline):
                answer = self._send(secret, deadline)
        except VaultError as error:
            raise self._refusal(error) from error
        life = answer.get("auth")
        token = life.get("client_token") if isinstance(life, dict) else None
        if not isinstance(token, str) or not token:
            raise BackendBrokenError(
                "Vault's answer to the login has no token",
                rule="vault.login",
                detail="it is wrapped: expected a role without a wrapping TTL"
                if answer.get("wrap_info")
                else "expected auth.client_token",
            )
        return self._proven(token, cast("dict[str, Any]", life), deadline)

    def token_of_file(self, path: Path) -> str:
        """Return the token that is in the file now.

        Raises:
            BackendError: There is none.
        """
        text = self._read(path, "a token", is_secret=True)
        if text.startswith("{"):
            wraps = "; leave wrap_ttl out of the agent's sink" if "wrap" in text else ""
            raise BackendAuthError(
                "the file of the token holds JSON",
                rule="vault.token",
                detail=f"{path}: expected the token itself{wraps}",
            )
        return text

    def _of_file(self, path: Path, deadline: float) -> GrantedToken:
        token = self.token_of_file(path)
        # Another request with a wrapping token would use it up.
        if self._is_wrapping(token, deadline):
            raise BackendAuthError(
                "the file of the token holds a wrapping token",
                rule="vault.token",
                detail=f"{path}: expected the token that it wraps",
            )
        try:
            life = self._looked_up(token, deadline)
        except VaultError as error:
            if error.status not in DENIED:
                raise error_of(error, signs=False) from error
            raise BackendAuthError(
                "Vault does not know the token of the file",
                rule="vault.token",
                detail=f"{path}: it has ended, was revoked, or may not look itself up: "
                "expected a token that lives and has the policy `default`",
            ) from error
        seconds = seconds_of(life, "ttl")
        if not seconds and life.get("expire_time"):
            seconds = 1.0  # it ends within the second
        is_renewable = life.get("renewable") is True
        return GrantedToken(token, seconds, is_renewable, uses_of(life))

    def _proven(
        self, token: str, life: Mapping[str, Any], deadline: float
    ) -> GrantedToken:
        uses = uses_of(life)
        if uses is None:
            try:
                self._looked_up(token, deadline)
            except VaultError as error:
                if error.status not in DENIED:
                    raise error_of(error, signs=False) from error
                # A refused call would be taken for a dead token, and followed by a
                # login each time.
                raise BackendBrokenError(
                    "the token of the login may not look itself up",
                    rule="vault.denied",
                    detail="expected read on auth/token/lookup-self, which the policy "
                    "`default` permits",
                ) from error
        is_renewable = life.get("renewable") is True
        return GrantedToken(
            token, seconds_of(life, "lease_duration"), is_renewable, uses
        )

    def _looked_up(self, token: str, deadline: float) -> Mapping[str, Any]:
        answer = Token(self._adapt(deadline, token)).lookup_self()
        data = answer.get("data")
        return data if isinstance(data, dict) else {}

    def _is_wrapping(self, token: str, deadline: float) -> bool:
        try:
            self._adapt(deadline, "").post(
                "/v1/sys/wrapping/lookup", json={"token": token}
            )
        except VaultError as error:
            if error.status not in _REFUSED | {404}:
                raise error_of(error, signs=False) from error
            return False
        return True

    def _attempt(self, secret: str, deadline: float) -> AbstractContextManager[object]:
        # Each try may use up a SecretID, and some of them lock the role.
        method, options = self._method, self._options
        if not isinstance(method, AppRoleLogin):
            return nullcontext()
        server = f"{options.addresses[0]} {options.namespace or ''}".rstrip()
        scope = f"{server} auth/{method.mount} role_id {method.role_id}"
        left = max(0.0, deadline - self._clock())
        latch = self._context().latch
        return latch.attempt(scope, secret.encode(), wait_seconds=left)

    def _secret(self) -> str:
        method = self._method
        if isinstance(method, AppRoleLogin):
            return self._read(method.secret_id_file, "a SecretID", is_secret=True)
        if isinstance(method, KubernetesLogin | JWTLogin):
            return self._read(method.token_file, "a JWT", is_secret=False)
        return ""  # the connection has the certificate

    def _send(self, secret: str, deadline: float) -> Mapping[str, Any]:
        method = self._method
        body: dict[str, str] = {}
        if isinstance(method, AppRoleLogin):
            body = {"role_id": method.role_id, "secret_id": secret}
        elif isinstance(method, KubernetesLogin | JWTLogin):
            body = {"role": method.role, "jwt": secret}
        elif isinstance(method, TLSLogin) and method.role:
            body = {"name": method.role}
        path = f"/v1/auth/{getattr(method, 'mount', '')}/login"
        try:
            answer: Mapping[str, Any] = self._adapt(deadline, "").post(path, json=body)
        except VaultError as error:
            # A SecretID is refused with 400. With 403 it was not looked at: the role is
            # locked for a while after wrong ones, or the mount is not there.
            if not isinstance(method, AppRoleLogin) or error.status != _BAD_REQUEST:
                raise
            # Inside the latch's attempt: the kind of the error is what it keeps.
            raise BackendCredentialError(
                "Vault refuses the SecretID",
                rule="vault.secret-id",
                detail=f"{method.secret_id_file}: {error}: expected the RoleID and an "
                "unused SecretID of one role, not wrapped",
            ) from error
        return answer

    def _refusal(self, error: VaultError) -> BackendError:
        if error.status not in _REFUSED:
            return error_of(error, signs=False)
        hint = ""
        # A method that refuses a credential says why in words of its own.
        has_reason = any(_NO_REASON not in one for one in error.errors)
        if error.status in DENIED and not has_reason:
            hint = ": expected a mount that is there"
            if isinstance(self._method, AppRoleLogin):
                hint += ", and a role that is not locked"
        return BackendAuthError(
            "Vault refuses the login",
            rule="vault.login",
            detail=f"{error}{hint}",
        )

    def _read(self, path: Path, what: str, *, is_secret: bool) -> str:
        try:
            if is_secret:
                content = read_secret(
                    path,
                    allow_group_read=self._options.allow_group_read,
                    group_hint=", or set allow_group_read: true for a Secret's fsGroup",
                )
            else:  # a projected token is readable, and short-lived
                content = read_public(path)
            return secret_text(content, path, what)
        except ConfigError as error:
            raise BackendAuthError(
                "the credential for Vault cannot be read",
                rule="vault.credential-file",
                detail=str(error),
            ) from error


def secret_text(content: bytes, source: Path, what: str) -> str:
    """Return a token or another credential, which becomes a header or a field.

    Args:
        content: Of a file or a variable. A newline at its end is left out.
        source: Its name, for the message.
        what: What it holds, with its article.

    Raises:
        ConfigError: It is empty, or not one line of printable ASCII.
    """
    text = secret_line(content, source, what).decode("ascii", errors="replace")
    # The error of `http.client` shows what cannot be a header's value.
    if not text.isascii() or not text.isprintable():
        raise ConfigError(f"{source}: expected {what} in one line of printable ASCII")
    return text
