"""The signer process: `python -m bridge_pkcs11.worker`.

Holds the module, the PIN and the sessions of one issuing CA object. A call into a
module can hang, crash the process, or start threads. None of this reaches the process
that serves. This one ends with its parent, also while a call hangs, and dumps no core.
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from pkcs11.exceptions import PKCS11Error

from bridge.sdk import follow_parent, harden, read_order, set_up_log
from bridge.spi import BackendBrokenError, BackendError
from bridge_pkcs11.protocol import (
    LARGEST_MESSAGE,
    Operation,
    SignerOrder,
    failure,
    read_request,
    success,
)
from bridge_pkcs11.recovery import ExhaustedError, SessionPool, told
from bridge_pkcs11.token import HSMToken, TimeLimit

_WHERE_TO_LOOK = (
    ", when the token was opened; see whether the HSM is reachable, and look at the "
    "configuration and the log of the module itself"
)
_log = logging.getLogger(__name__)


def main() -> None:
    """Serve the channels in the order on standard input until they are closed."""
    order = SignerOrder.read(read_order())
    follow_parent(lambda: os._exit(1))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    harden()
    set_up_log(order.log_level, who=f"signer of {order.name} ")
    os.environ.update(order.environment)
    channels = [socket.socket(fileno=number) for number in order.channels]
    limit = TimeLimit(order.start_seconds)
    limit.resume()
    token = HSMToken(order, limit)
    pool = SessionPool(token, order.sessions)
    try:
        warning = _started(token, pool)
    except BackendError as error:
        _tell(channels, failure(error, is_last=True))
        os._exit(0)
    limit.close()
    _tell(channels, success(warning.encode()))
    threads = [
        threading.Thread(target=_serve, args=(channel, token, pool), daemon=True)
        for channel in channels
    ]
    for thread in threads:
        thread.start()
    _wait(threads, token, pool, order.keep_alive_seconds)
    pool.close()
    token.finish()
    # Not through the module's destructors, which crash in some versions.
    os._exit(0)


def _tell(channels: Sequence[socket.socket], message: bytes) -> None:
    with suppress(BrokenPipeError):  # the issuing CA was closed meanwhile
        for channel in channels:
            channel.send(message)


def _started(token: HSMToken, pool: SessionPool) -> str:
    try:
        warning = token.start()
        pool.start()
    except PKCS11Error as error:
        raise told(error, _WHERE_TO_LOOK) from error
    except BackendError:
        raise
    except Exception as error:
        _log.exception("the token cannot be opened")
        raise _unexpected(error) from error
    return warning


def _serve(channel: socket.socket, token: HSMToken, pool: SessionPool) -> None:
    # A closed channel reads as reset where an answer in it was not taken.
    with suppress(ConnectionError):
        while message := channel.recv(LARGEST_MESSAGE):
            channel.send(_answer(message, token, pool))


def _answer(message: bytes, token: HSMToken, pool: SessionPool) -> bytes:
    operation, deadline, data = read_request(message)
    try:
        if operation is Operation.SIGN:
            return success(pool.run(lambda one: token.sign(one, data), deadline))
        pool.run(token.look, deadline)
        return success()
    except ExhaustedError as error:
        return failure(error.error, is_last=True)
    except PKCS11Error as error:
        return failure(told(error), is_last=False)
    except BackendError as error:
        return failure(error, is_last=False)
    except Exception as error:  # noqa: BLE001 - the edge of a thread
        _log.exception("unexpected error")
        return failure(_unexpected(error), is_last=False)


def _wait(
    threads: Sequence[threading.Thread],
    token: HSMToken,
    pool: SessionPool,
    keep_alive_seconds: float,
) -> None:
    pause = keep_alive_seconds / 2 or None
    for thread in threads:
        while thread.is_alive():
            thread.join(pause)
            if pause is not None:
                pool.keep_alive(token.look, pause)


def _unexpected(error: Exception) -> BackendBrokenError:
    return BackendBrokenError(
        "the signer process met an unexpected error", detail=type(error).__name__
    )


if __name__ == "__main__":
    main()
    sys.exit()
