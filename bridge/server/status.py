"""Maps the bridge's errors to gRPC status codes: one table for each front.

After UNAVAILABLE, RESOURCE_EXHAUSTED, ABORTED and INTERNAL, Istio's client tries again,
up to four times. An error that another try cannot cure has another code. The bridge
never sends DEADLINE_EXCEEDED or CANCELLED: Istio's client does not try again after
these, although the failure may pass.
"""

import grpc

from bridge.errors import (
    AuthenticationError,
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
    BarredError,
    BridgeError,
    CallerError,
    DeniedError,
    LedgerError,
    MisissuedError,
    MismatchError,
    OperatorError,
    OverloadedError,
    ReviewError,
    SubjectError,
)

STATUS: dict[type[BridgeError], grpc.StatusCode] = {
    CallerError: grpc.StatusCode.INVALID_ARGUMENT,
    AuthenticationError: grpc.StatusCode.UNAUTHENTICATED,
    DeniedError: grpc.StatusCode.PERMISSION_DENIED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ReviewError: grpc.StatusCode.UNAVAILABLE,
    BackendError: grpc.StatusCode.FAILED_PRECONDITION,
    BackendThrottledError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BackendUnavailableError: grpc.StatusCode.UNAVAILABLE,
    BackendAuthError: grpc.StatusCode.UNAVAILABLE,
    BackendCredentialError: grpc.StatusCode.FAILED_PRECONDITION,
    BackendTimeoutError: grpc.StatusCode.UNAVAILABLE,
    BackendRefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    BackendBrokenError: grpc.StatusCode.FAILED_PRECONDITION,
    MisissuedError: grpc.StatusCode.FAILED_PRECONDITION,
    LedgerError: grpc.StatusCode.UNAVAILABLE,
}
"""An error has the code of its nearest class. An error without a code is a bug."""

LINKERD: dict[type[BridgeError], grpc.StatusCode] = STATUS | {
    AuthenticationError: grpc.StatusCode.FAILED_PRECONDITION,
    SubjectError: grpc.StatusCode.INVALID_ARGUMENT,
    DeniedError: grpc.StatusCode.FAILED_PRECONDITION,
    BarredError: grpc.StatusCode.PERMISSION_DENIED,
    MismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    ReviewError: grpc.StatusCode.INTERNAL,
    OverloadedError: grpc.StatusCode.UNAVAILABLE,
    BackendThrottledError: grpc.StatusCode.UNAVAILABLE,
}
"""The table of Linkerd's front, as linkerd-identity has it. Proxies ignore the code."""

_COLUMNS = {"istio": STATUS, "linkerd": LINKERD}

BUG = (grpc.StatusCode.INTERNAL, "internal error; the log of the CA has the details")
"""The answer to a peer after an unexpected error."""

_LEDGER_TEXT = "ledger: the CA cannot put issuances on record now"
_LONGEST_TEXT = 500
_LONGEST_NAMES = 1000
"""The longest text for Linkerd: it holds two names."""
_LINKERD_WORDS = "linkerd."
_LINKERD_UNKNOWN = "authentication token could not be authenticated"


def status_of(error: BridgeError, front: str = "istio") -> tuple[grpc.StatusCode, str]:
    """Return the status code of `error`, and the text for the peer.

    The text begins with the rule, except where linkerd-identity has a text of its own.
    The message of an `OperatorError` names files and addresses, and is not sent to the
    peer.
    """
    column = _COLUMNS.get(front, STATUS)
    for kind in type(error).__mro__:
        code = column.get(kind)
        if code is not None:
            # A token's JSON may hold characters that UTF-8 cannot encode. grpc would
            # fail.
            said = _text(error, front).encode("utf-8", "replace").decode("utf-8")
            return code, said
    return BUG


def status_name(error: BridgeError, front: str = "istio") -> str:
    """Return the name of the status code of `error`, such as `UNAVAILABLE`."""
    code, _ = status_of(error, front)
    return str(code.name)


def _text(error: BridgeError, front: str) -> str:
    if isinstance(error, OperatorError):
        return _LEDGER_TEXT
    if front == "linkerd":
        if error.rule.startswith(_LINKERD_WORDS):
            return str(error)[:_LONGEST_NAMES]
        if isinstance(error, AuthenticationError):
            return _LINKERD_UNKNOWN
    return f"{error.rule}: {error}"[:_LONGEST_TEXT]
