"""What a failed call of Vault means to the bridge: one error of the plugin contract.

Source:
    OpenBao, internal/http/util.go and sdk/logical/response_util.go.
"""

from bridge.spi import (
    BackendBrokenError,
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
)
from bridge_vault.connection import NoAnswerError, VaultError

DENIED = frozenset({401, 403})
"""The token is dead, or no policy of it permits the call: `login.py` finds out."""
_ABSENT = frozenset({404, 405, 413})
_AWAY = frozenset({412, 472, 473, 474, 501, 503, 530})
_PERMANENT = (
    "unable to find pki issuer",
    "unable to fetch corresponding key",
    "requested usage",
    "unknown role",
    "signing key not found",
    "requested version for signing",
    "no such key version",
    "does not support signing",
)
"""Texts of Vault that a repeat cannot cure, whatever the status. Nothing was signed.
What stands before them ("could not fetch the CA certificate") may pass."""
_NAME_REFUSED = "not authorized to sign for this name"
"""Vault holds a leaf to the constraints of its own chain, and answers with status 500
in place of the leaf."""
_THROTTLED = 429
_BAD_REQUEST = 400
_REQUEST_TIMEOUT = 408
_SERVER_ERROR = 500
_NOT_OK = 300


def error_of(error: VaultError, *, signs: bool) -> BackendError:
    """Return the error of the contract for a failed call.

    Args:
        error: Neither 401 nor 403 of a token that may be dead.
        signs: The call signs: unless the server says no, a certificate may exist.
    """
    if isinstance(error, NoAnswerError):
        return _without_answer(error, signs=signs)
    detail = f"{error}{f' (request {error.request_id})' if error.request_id else ''}"
    if error.http_status == _THROTTLED:
        return BackendThrottledError(
            "Vault asks for fewer requests",
            detail=detail,
            retry_after_seconds=error.retry_after,
        )
    if error.status:
        kind, text, rule, may_exist = _meaning(error)
    else:
        kind, text, rule, may_exist = _foreign(error.http_status)
    return kind(
        text, rule=rule, detail=detail, certificate_may_exist=signs and may_exist
    )


def _meaning(error: VaultError) -> tuple[type[BackendError], str, str, bool]:
    # The last: whether a call that signs may have signed.
    status, told = error.status, " ".join(error.errors).lower()
    if status in DENIED:
        text = "Vault's policies do not permit the call"
        return BackendBrokenError, text, "vault.denied", False
    if status in _AWAY:
        return BackendUnavailableError, "Vault cannot serve now", "vault.away", False
    if status in _ABSENT or any(known in told for known in _PERMANENT):
        text = "Vault does not have what the configuration names"
        return BackendBrokenError, text, "vault.absent", False
    if status == _BAD_REQUEST or _NAME_REFUSED in told:
        return BackendRefusedError, "Vault refuses the request", "vault.refused", False
    if status >= _SERVER_ERROR:
        # The audit device may have failed after the certificate was signed.
        return BackendUnavailableError, "Vault failed", "vault.failed", True
    return _foreign(status)


def _foreign(status: int) -> tuple[type[BackendError], str, str, bool]:
    # A proxy may answer for a server that goes on.
    if status >= _SERVER_ERROR or status == _REQUEST_TIMEOUT:
        text = "something before Vault failed"
        return BackendUnavailableError, text, "vault.failed", True
    text = "the answer is none of Vault's API"
    return BackendBrokenError, text, "vault.answer", status < _NOT_OK


def _without_answer(error: NoAnswerError, *, signs: bool) -> BackendError:
    if not error.is_sent:
        return BackendUnavailableError(
            "Vault cannot be reached", rule="vault.unreachable", detail=str(error)
        )
    if error.is_late:
        return BackendTimeoutError(
            "Vault did not answer in time",
            rule="vault.timeout",
            detail=str(error),
            certificate_may_exist=signs,
        )
    return BackendUnavailableError(
        "the connection to Vault was cut",
        rule="vault.cut",
        detail=str(error),
        certificate_may_exist=signs,
    )
