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
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import ConfigError, ReviewError
from bridge.process.role import WatcherOrder
from bridge.system.child_process import follow_parent, read_order
from bridge.system.linux import bound_malloc, take_turns
from bridge.system.logs import set_up

if TYPE_CHECKING:
    from bridge.config import BoundConfig
    from bridge.kubernetes.informer import Informer
    from bridge.kubernetes.objects import ClusterObject, ObjectIndex

_CALLS = 4
_AGAIN_SECONDS = 15.0
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
    from bridge.config import BoundConfig, parse  # noqa: PLC0415 - slow
    from bridge.kubernetes.clients import watch_source  # noqa: PLC0415 - see above
    from bridge.kubernetes.objects import ObjectIndex  # noqa: PLC0415 - see above

    config = parse(order.text, Path(order.path))
    watched = {
        watch_source(one.name, one.tokens): one.tokens
        for one in config.clusters
        if isinstance(one.tokens, BoundConfig)
    }
    index = ObjectIndex(Path(order.index))
    index.create(watched)
    waiting = [_Cluster(index, *one) for one in watched.items()]
    while waiting := [one for one in waiting if not one.begins()]:
        time.sleep(_AGAIN_SECONDS)
    threading.Event().wait()


class _Cluster:
    # Its watches begin when its credentials can be read, and hold up no others.
    def __init__(
        self, index: "ObjectIndex", source: str, tokens: "BoundConfig"
    ) -> None:
        self._index = index
        self._source = source
        self._tokens = tokens
        self._trouble = ""

    def begins(self) -> bool:
        """Start the watches; False, and told why, if they have to be tried again."""
        from bridge.system.background import BackgroundLoop  # noqa: PLC0415 - see `_run`

        try:
            informers = _informers(self._index, self._source, self._tokens)
        except (ConfigError, ReviewError, OSError) as error:
            self._tell(str(error))
            return False
        for one in informers:
            BackgroundLoop("watch", one.follow, one.pause, is_immediate=True).start()
        return True

    def _tell(self, trouble: str) -> None:
        from bridge.kubernetes.objects import PODS  # noqa: PLC0415 - see `_run`

        if trouble != self._trouble:
            self._trouble = trouble
            name, _, _ = self._source.rpartition(" ")
            _log.error("cluster %s: not watched so far: %s", name, trouble)
        with suppress(ReviewError):  # those of others may be written
            self._index.trouble(self._source, PODS, trouble)


def _informers(
    index: "ObjectIndex", source: str, tokens: "BoundConfig"
) -> list["Informer"]:
    from bridge.kubernetes.clients import api_server_of  # noqa: PLC0415 - see `_run`
    from bridge.kubernetes.informer import RESOURCES, Informer  # noqa: PLC0415

    server = api_server_of(tokens, _CALLS)
    return [
        Informer(server, resource_, _IntoIndex(index, source, resource_.kind))
        for resource_ in RESOURCES.values()
    ]


class _IntoIndex:
    # The sink of one informer: see `Sink`.
    def __init__(self, index: "ObjectIndex", source: str, kind: str) -> None:
        self._index = index
        self._source = source
        self._kind = kind

    def publish(self, objects: "Iterable[ClusterObject]") -> None:
        self._index.publish(self._source, self._kind, objects, time.monotonic())

    def put(self, found: "ClusterObject") -> None:
        self._index.put(self._source, self._kind, found, time.monotonic())

    def remove(self, gone: "ClusterObject") -> None:
        self._index.remove(self._source, self._kind, gone, time.monotonic())

    def confirm(self) -> None:
        self._index.confirm(self._source, self._kind, time.monotonic())

    def trouble(self, text: str) -> None:
        self._index.trouble(self._source, self._kind, text)


if __name__ == "__main__":
    sys.exit(main())
