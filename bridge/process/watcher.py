"""The process that watches the clusters' objects: `python -m bridge.process.watcher`.

A bridge has one, which the parent process starts and restarts, so that the API server
of a cluster has one watch a replica, however many workers there are. What it sees goes
into the index, in which every worker looks up. It ends at once when its parent ends, or
when it is asked to: it has nothing to finish.
"""

import sys
from pathlib import Path

from bridge.process import helper_process
from bridge.process.role import WatcherOrder
from bridge.system.linux import bound_malloc


def main() -> int:
    """Watch as the order on standard input says; return the exit status."""
    return helper_process.main(WatcherOrder, "watcher", _run)


def _run(order: WatcherOrder) -> None:
    bound_malloc()
    from bridge.config import parse  # noqa: PLC0415 - slow
    from bridge.kubernetes.cluster_watch import watch  # noqa: PLC0415 - see above

    watch(parse(order.text, Path(order.path)), Path(order.index))


if __name__ == "__main__":
    sys.exit(main())
