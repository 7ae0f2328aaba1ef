"""The worker process: `python -m bridge.process.worker`, with an order from its parent.

The worker pins itself to its core before anything is imported that starts threads. It
drains and ends when the parent ends, which it sees at its standard input.
"""

import contextlib
import logging
import os
import signal
import threading
from pathlib import Path

from bridge.process.role import BROKEN, REFUSED, ProcessRole, WorkerOrder
from bridge.system.child_process import follow_parent, read_order
from bridge.system.linux import harden, keep_to_core, poll_without_hops, take_turns
from bridge.system.logs import set_up

_MARGIN_SECONDS = 5.0
"""Between the end of the drain and the end by force."""
_WAKE_SECONDS = 0.25
_BROKEN_RULES = frozenset({"ledger.chain", "ledger.cut"})
"""Of a journal that is not as it was written."""
_log = logging.getLogger(__name__)


def main() -> int:
    """Serve as the order on standard input says; return the exit status."""
    order = WorkerOrder.read(read_order())
    if order.cpu is not None:
        keep_to_core(order.cpu)
    set_up(order.log_level, who=f"{order.writer} ")
    asked_to_stop, is_orphan = threading.Event(), threading.Event()
    released = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.set())
    signal.signal(signal.SIGUSR1, lambda *_: released.set())
    # These two are for the parent, which tells its workers what to do.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def leave_with_parent() -> None:
        if not asked_to_stop.is_set():
            _log.warning("the parent is gone")
            is_orphan.set()
        asked_to_stop.set()

    try:
        follow_parent(leave_with_parent)
        return _serve(order, asked_to_stop, is_orphan, released)
    except (OSError, RuntimeError) as error:
        # In a start, the system gives no more threads or descriptors.
        _log.exception("unexpected error")
        _write_reason(order, f"the worker cannot start: {error}")
        return REFUSED


def _serve(
    order: WorkerOrder,
    asked_to_stop: threading.Event,
    is_orphan: threading.Event,
    released: threading.Event,
) -> int:
    poll_without_hops()
    # Imported only now, on its core and with the parent watched: it takes a second.
    from bridge.admin.endpoints import UNIX  # noqa: PLC0415
    from bridge.config import parse  # noqa: PLC0415 - see above
    from bridge.errors import BridgeError, OperatorError  # noqa: PLC0415
    from bridge.process.composition import Process  # noqa: PLC0415

    harden()
    take_turns()
    role = ProcessRole(
        writer=order.writer,
        shares_ports=True,
        admin=f"{UNIX}{order.socket}",
        shared=order.shared,
        watched=order.watched,
        anchors=None if order.anchors is None else order.anchors.encode("latin-1"),
        is_held=order.is_held,
    )
    try:
        config = parse(order.text, Path(order.path))
        process = Process(config, role=role, warn=logging.getLogger("bridge").warning)
        process.start()
    except BridgeError as error:
        _write_reason(order, f"{error}\n{error.detail}".strip())
        if error.rule in _BROKEN_RULES:
            return BROKEN
        # A worker of a parent that died may still have the journal: try again later.
        is_locked = error.rule == "ledger.locked"
        return REFUSED if isinstance(error, OperatorError) and not is_locked else 1
    _await_signal(asked_to_stop, released)
    if released.is_set() and not asked_to_stop.is_set():
        try:
            process.release()
        except OperatorError as error:
            _write_reason(order, f"{error}\n{error.detail}".strip())
            process.stop()
            return REFUSED
        _await_signal(asked_to_stop)
    _end_by_force(config.limits.drain.total_seconds() + _MARGIN_SECONDS)
    process.stop()
    if is_orphan.is_set():
        # No parent is left to remove the folder; the last worker finds it empty.
        order.shared.unlink(missing_ok=True)
        for one in order.watched.parent.glob(f"{order.watched.name}*"):
            one.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(order.folder).rmdir()
    return 0


def _write_reason(order: WorkerOrder, reason: str) -> None:
    try:
        order.reason.write_bytes(reason.encode("utf-8", "replace"))
    except OSError:  # the disk may be full, which may be the reason
        _log.error("%s", " ".join(reason.splitlines()))


def _await_signal(*one_of: threading.Event) -> None:
    # A signal that comes just before the wait begins does not end the wait: its handler
    # runs when the thread wakes next, so the thread wakes now and then.
    while not any(happened.is_set() for happened in one_of):
        one_of[0].wait(_WAKE_SECONDS)


def _end_by_force(seconds: float) -> None:
    # A call that hangs in a library cannot be stopped from inside.
    def end() -> None:
        _log.error("could not end in order within %.0f s", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Not by `sys.exit`: the interpreter would wait for threads that hang.
    os._exit(status)
