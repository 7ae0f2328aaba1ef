"""What an error means for the record: how the attempt ended, and in which words."""

from bridge.errors import BackendBrokenError, BridgeError, CallerError, OverloadedError
from bridge.ledger.events import Outcome

_LONGEST_DETAIL = 500


def stopped_error() -> BackendBrokenError:
    """Return what is said of an issuing CA that was stopped."""
    return BackendBrokenError(
        "the issuing CA is stopped after a mis-issuance", rule="issuer.stopped"
    )


def describe(error: BaseException) -> str:
    """Return what operators are told of an error, at most 500 characters."""
    if not isinstance(error, BridgeError):
        return type(error).__name__
    text = f"{error}: {error.detail}" if error.detail else str(error)
    return text[:_LONGEST_DETAIL]


def outcome_of(error: BaseException) -> Outcome:
    """Return how an attempt ended that raised `error` before an answer came."""
    if isinstance(error, CallerError):
        return Outcome.REFUSED
    if isinstance(error, OverloadedError):
        return Outcome.FAILED
    if isinstance(error, BridgeError) and not error.certificate_may_exist:
        return Outcome.FAILED
    return Outcome.UNKNOWN
