"""From the bridge's errors to gRPC status codes: one table, for every front.

Istio's client calls up to five times on UNAVAILABLE, RESOURCE_EXHAUSTED, ABORTED and
INTERNAL, so what asking again cannot mend gets another code. DEADLINE_EXCEEDED and
CANCELLED are never sent: Istio's client does not try again after those, although the
failure may pass.
"""

import grpc

from bridge.errors import (
    AuthenticationError,
    BackendAuthError,
    BackendBrokenError,
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
    BridgeError,
    CallerError,
    DeniedError,
    LedgerError,
    MisissuedError,
    OperatorError,
    OverloadedError,
)

STATUS: dict[type[BridgeError], grpc.StatusCode] = {
    CallerError: grpc.StatusCode.INVALID_ARGUMENT,
    AuthenticationError: grpc.StatusCode.UNAUTHENTICATED,
    DeniedError: grpc.StatusCode.PERMISSION_DENIED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BackendError: grpc.StatusCode.FAILED_PRECONDITION,
    BackendThrottledError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BackendUnavailableError: grpc.StatusCode.UNAVAILABLE,
    BackendAuthError: grpc.StatusCode.UNAVAILABLE,
    BackendTimeoutError: grpc.StatusCode.UNAVAILABLE,
    BackendRefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    BackendBrokenError: grpc.StatusCode.FAILED_PRECONDITION,
    MisissuedError: grpc.StatusCode.FAILED_PRECONDITION,
    LedgerError: grpc.StatusCode.UNAVAILABLE,
}
"""An error takes the code of the nearest of its classes; one without is a bug."""

BUG = (grpc.StatusCode.INTERNAL, "internal error; the log of the CA has the details")
"""What a peer is told of anything that nobody foresaw."""

_LEDGER_TEXT = "ledger: the CA cannot put issuances on record now"
_LONGEST_TEXT = 500


def status_of(error: BridgeError) -> tuple[grpc.StatusCode, str]:
    """Return the status code of `error`, and what the peer is told.

    The text names the rule first. Of an error that an operator has to mend it says
    nothing else: its message is about our files and addresses.
    """
    for kind in type(error).__mro__:
        code = STATUS.get(kind)
        if code is not None:
            return code, _text(error)
    return BUG


def status_name(error: BridgeError) -> str:
    """Return the name of the status code of `error`, such as `UNAVAILABLE`."""
    code, _ = status_of(error)
    return str(code.name)


def _text(error: BridgeError) -> str:
    if isinstance(error, OperatorError):
        return _LEDGER_TEXT
    return f"{error.rule}: {error}"[:_LONGEST_TEXT]
