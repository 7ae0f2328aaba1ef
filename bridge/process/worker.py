"""One worker: `python -m bridge.process.worker`, told by its parent what to serve.

It pins itself to its core before anything is imported that starts threads, and goes
when the parent goes: the end of its standard input is the parent's end.
"""

import contextlib
import logging
import os
import signal
import threading
from pathlib import Path

from bridge.process.role import REFUSED, WorkerOrder
from bridge.system.child_process import follow_parent, read_order
from bridge.system.linux import harden, poll_without_hops, take_turns
from bridge.system.logs import set_up

_MARGIN_SECONDS = 5.0
"""Between the end of the drain and the end by force."""
_log = logging.getLogger(__name__)


def main() -> int:
    """Serve as the order on standard input says; return the exit status."""
    order = WorkerOrder.read(read_order())
    os.sched_setaffinity(0, {order.cpu})
    set_up(order.log_level, who=f"{order.writer} ")
    asked_to_stop, is_orphan = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.set())
    # Those are for the parent, which tells its workers what to do.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def leave_with_parent() -> None:
        if not asked_to_stop.is_set():
            _log.warning("the parent is gone")
            is_orphan.set()
        asked_to_stop.set()

    follow_parent(leave_with_parent)
    return _serve(order, asked_to_stop, is_orphan)


def _serve(
    order: WorkerOrder, asked_to_stop: threading.Event, is_orphan: threading.Event
) -> int:
    poll_without_hops()
    # On its core only now, and with the parent watched: these take their time.
    from bridge.admin.endpoints import UNIX  # noqa: PLC0415
    from bridge.config import parse  # noqa: PLC0415 - see above
    from bridge.errors import BridgeError, ConfigError, PluginError  # noqa: PLC0415
    from bridge.process.composition import Process  # noqa: PLC0415
    from bridge.process.role import ProcessRole  # noqa: PLC0415
    from bridge.process.standalone import await_signal, end_by_force  # noqa: PLC0415

    harden()
    take_turns()
    role = ProcessRole(
        writer=order.writer,
        settles_beside=order.settles_beside,
        shares_ports=True,
        admin=f"{UNIX}{order.socket}",
        shared=order.shared,
    )
    try:
        config = parse(order.text, Path(order.path))
        process = Process(config, role=role, warn=logging.getLogger("bridge").warning)
        process.start()
    except BridgeError as error:
        _log.error("%s", f"{error} {error.detail}".rstrip())
        # The disk may be full, which may be the reason: the log has it in any case.
        with contextlib.suppress(OSError):
            order.reason.write_text(f"{error}\n{error.detail}".strip())
        return REFUSED if isinstance(error, ConfigError | PluginError) else 1
    await_signal(asked_to_stop)
    end_by_force(config.limits.drain.total_seconds() + _MARGIN_SECONDS)
    process.stop()
    if is_orphan.is_set():
        # Nobody else is left to take it away; the last worker finds it empty.
        order.shared.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(order.folder).rmdir()
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Not by `sys.exit`: the interpreter would wait for threads that hang.
    os._exit(status)
