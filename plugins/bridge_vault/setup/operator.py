"""Calls to Vault with an operator's token."""

import ssl
import time
from collections.abc import Mapping
from typing import Any

from bridge_vault.adapter import Servers, VaultAdapter
from bridge_vault.answers import error_of
from bridge_vault.connection import Connections, VaultError
from bridge_vault.options import VaultOptions

_CALL_SECONDS = 30.0
_ABSENT = 404
_PATCH = {"Content-Type": "application/merge-patch+json"}


class OperatorSession:
    """Reads and writes in Vault. The bridge's own login has no part in it.

    Args:
        options: Addresses and namespace.
        tls: How the server is verified.
        token: The operator's.
    """

    def __init__(
        self, options: VaultOptions, tls: ssl.SSLContext | None, token: str
    ) -> None:
        self._servers = Servers(
            [Connections(address, tls) for address in options.addresses]
        )
        self._namespace = options.namespace or ""
        self._token = token

    def read(self, path: str, *, of_server: bool = False) -> Mapping[str, Any] | None:
        """Return the data of a path; None if there is nothing.

        Args:
            path: After `/v1/`.
            of_server: Ask the root namespace, which alone has what is the whole
                server's.
        """
        return self._call("GET", path, of_server=of_server)

    def list(self, path: str) -> Mapping[str, Any]:
        """Return the data of a list; empty if there is nothing."""
        return self._call("LIST", path) or {}

    def write(
        self, path: str, fields: Mapping[str, object], *, of_server: bool = False
    ) -> Mapping[str, Any]:
        """Write; return the data of the answer. Fields that are left out get defaults.

        Args:
            path: After `/v1/`.
            fields: The body.
            of_server: See `read`.

        Raises:
            BackendError: As all calls: Vault refuses or cannot be asked. The detail has
                the path.
        """
        return self._call("POST", path, fields, of_server=of_server) or {}

    def change(self, path: str, fields: Mapping[str, object]) -> None:
        """Change some fields; the others stay."""
        self._call("PATCH", path, fields)

    def close(self) -> None:
        """Close the connections."""
        self._servers.close()

    def _call(
        self,
        method: str,
        path: str,
        fields: Mapping[str, object] | None = None,
        *,
        of_server: bool = False,
    ) -> Mapping[str, Any] | None:
        adapter = VaultAdapter(
            self._servers,
            time.monotonic() + _CALL_SECONDS,
            token=self._token,
            namespace="" if of_server else self._namespace,
        )
        headers = _PATCH if method == "PATCH" else None
        try:
            answer = adapter.request(method, f"/v1/{path}", headers, json=fields)
        except VaultError as error:
            if fields is None and error.status == _ABSENT:
                return None
            told = error_of(error, signs=False)
            detail = f"{method} {path}: {told.detail}"
            raise type(told)(str(told), rule=told.rule, detail=detail) from error
        data = answer.get("data")
        return data if isinstance(data, dict) else {}
