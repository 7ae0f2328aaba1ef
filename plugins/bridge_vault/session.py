"""A session with Vault: its addresses, and one token for all CAs that log in alike."""

import threading
import time
from collections.abc import Callable
from typing import Any

from bridge.sdk import digest_of
from bridge.spi import BackendAuthError, PluginContext
from bridge_vault.adapter import Servers, VaultAdapter
from bridge_vault.answers import DENIED, error_of
from bridge_vault.connection import Connections, VaultError
from bridge_vault.options import VaultOptions, files_of, tls_of
from bridge_vault.token import VaultToken

ASK_SECONDS = 3.0
"""How long Vault is waited for while an issuing CA is being loaded."""

Ask = Callable[[VaultAdapter], Any]


class _Session:
    # What those CAs have together that log in alike.
    def __init__(self, options: VaultOptions, context: PluginContext) -> None:
        tls = tls_of(options, context)
        self.servers = Servers(
            [Connections(address, tls) for address in options.addresses]
        )
        self._namespace = options.namespace or ""
        self.users = [context]
        """The contexts of the CAs that use it. The oldest one has latch and metrics."""
        self.token = VaultToken(options, lambda: self.users[0], self.adapter)

    def adapter(self, deadline: float, token: str, attempt: str = "") -> VaultAdapter:
        return VaultAdapter(
            self.servers,
            deadline,
            token=token,
            namespace=self._namespace,
            attempt=attempt,
        )


_open: dict[tuple[object, ...], _Session] = {}
_lock = threading.Lock()


class SharedSession:
    """A CA's share in the session of its process.

    CAs with the same servers and login have one session, and so have a CA and its
    successor after a reload: each login may use up a secret. Safe between threads.

    Args:
        options: Of the CA.
        context: Of the CA.

    Raises:
        ConfigError: A file of the connection cannot be used.
    """

    def __init__(self, options: VaultOptions, context: PluginContext) -> None:
        # The digest comes first: a file that changes after it makes another session.
        self._key = (
            options.addresses,
            options.namespace,
            options.method,
            options.allow_group_read,
            digest_of(files_of(options)),
        )
        self._context = context
        with _lock:
            session = _open.get(self._key)
            if session is None:
                session = _Session(options, context)
                _open[self._key] = session
            else:
                session.users.append(context)
        self._session = session
        self._is_closed = False

    @property
    def skew_seconds(self) -> float:
        """How far Vault's clock is ahead of ours; 0 before the first answer."""
        return self._session.servers.skew_seconds or 0.0

    def call(
        self, ask: Ask, timeout: float, *, attempt: str = "", signs: bool = False
    ) -> Any:
        """Make a call with the session's token, and log in where the token is dead.

        Args:
            ask: Makes the call with an adapter, and may be run twice.
            timeout: In seconds.
            attempt: The ID of the attempt in the ledger.
            signs: See `error_of`.

        Raises:
            BackendError: The call did not succeed.
        """
        session, deadline = self._session, time.monotonic() + timeout
        for _ in range(2):
            token = session.token.get(deadline)
            try:
                return ask(session.adapter(deadline, token, attempt))
            except VaultError as error:
                if error.status not in DENIED:
                    raise error_of(error, signs=signs) from error
                # Nothing was signed.
                session.token.refused(token, error, deadline)
        raise BackendAuthError(
            "Vault refuses the token of a new login as well", rule="vault.login"
        )

    def close(self) -> None:
        """Give the share back. The last one closes the session."""
        with _lock:
            if self._is_closed:
                return
            self._is_closed = True
            users = self._session.users
            is_last = len(users) == 1
            if is_last:
                del _open[self._key]
            else:
                users.remove(self._context)
        if is_last:
            self._session.token.close()
            self._session.servers.close()
