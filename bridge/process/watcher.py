"""The process that watches the clusters' objects: `python -m bridge.process.watcher`.

A bridge has one, which the parent process starts and restarts, so that the API server
of a cluster has one watch a replica, however many workers there are. What it sees goes
into the index, in which every worker looks up. It ends at once when its parent ends, or
when it is asked to: it has nothing to finish.
"""

import logging
import os
import resource
import signal
import sys
from pathlib import Path

from bridge.process.role import WatcherOrder
from bridge.system.child_process import follow_parent, read_order
from bridge.system.linux import bound_malloc, take_turns
from bridge.system.logs import set_up

_log = logging.getLogger(__name__)


def main() -> int:
    """Watch as the order on standard input says; return the exit status."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    order = WatcherOrder.read(read_order())
    follow_parent(lambda: os._exit(1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    take_turns()
    bound_malloc()
    set_up(order.log_level, who="watcher ")
    try:
        _run(order)
    except Exception as error:  # noqa: BLE001 - the parent starts another process
        # Not its text: values of the configuration may be in it.
        _log.error("unexpected error: %s", type(error).__name__)
    return 1


def _run(order: WatcherOrder) -> None:
    from bridge.config import parse  # noqa: PLC0415 - slow
    from bridge.kubernetes.cluster_watch import watch  # noqa: PLC0415 - see above

    watch(parse(order.text, Path(order.path)), Path(order.index))


if __name__ == "__main__":
    sys.exit(main())
