"""The boundary to a plugin: whatever a plugin raises or returns, the core can go on.

A plugin may raise only a `BackendError`, and is not trusted to. An error of another
kind would be answered with INTERNAL, after which Istio's client tries four times more,
or would end a start.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from bridge.errors import BackendBrokenError, BackendError, BridgeError

Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)


def from_plugin(
    method: Callable[..., object],
    kind: type[Answer],
    *arguments: Any,
    may_sign: bool = False,
    allowed: tuple[type[BridgeError], ...] = (BackendError,),
    **named: Any,
) -> Answer:
    """Call a method of a plugin.

    Args:
        method: Of the plugin's issuing CA.
        kind: The type of its answer.
        arguments: Handed on.
        may_sign: After an error that is no `BackendError`, or an answer of another
            type, a certificate may exist.
        allowed: The errors that the method may raise.
        named: Handed on.

    Raises:
        BridgeError: One that is allowed.
        BackendBrokenError: In place of anything else, whose type it names.
    """
    try:
        answer = method(*arguments, **named)
    except BaseException as error:
        # Every kind: a panic in Rust and a plugin's `sys.exit()` are no `Exception`.
        if isinstance(error, (*allowed, KeyboardInterrupt)):
            raise
        _log.exception("a plugin raised what it may not")
        raise _broken(
            f"the plugin failed: {type(error).__name__}", may_sign=may_sign
        ) from error
    if not isinstance(answer, kind):
        raise _broken(
            f"the plugin answered with the wrong type: {type(answer).__name__}",
            may_sign=may_sign,
        )
    return answer


def _broken(text: str, *, may_sign: bool) -> BackendBrokenError:
    return BackendBrokenError(
        text, rule="backend.plugin", certificate_may_exist=may_sign
    )


def close_plugin(close: Callable[[], object]) -> None:
    """Close an issuing CA. An error is logged: the others have to be closed as well."""
    try:
        close()
    except Exception:  # noqa: BLE001 - a plugin may raise anything
        _log.exception("a plugin could not be closed")
