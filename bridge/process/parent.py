"""`meshca serve` with workers: signals, the file of the configuration, and the end."""

import logging
import os
import queue
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack

from prometheus_client import CollectorRegistry, disable_created_metrics

from bridge.admin.endpoints import Admin
from bridge.config import ConfigText
from bridge.errors import ConfigError
from bridge.process.merged_views import Pages
from bridge.process.reload import ConfigFile, Reloads
from bridge.process.supervisor import Supervisor, WorkerDefaults
from bridge.process.worker_process import Spawn, WorkerProcess

_BUSY_SECONDS = 0.03
_IDLE_SECONDS = 0.5
_log = logging.getLogger(__name__)


def supervise(
    source: ConfigText, *, log_level: str = "INFO", spawn: Spawn = WorkerProcess
) -> None:
    """Run workers until SIGTERM or SIGINT, and return when the last has gone.

    Args:
        source: The first configuration.
        log_level: Of the workers.
        spawn: Starts a worker.

    Raises:
        ConfigError: The configuration cannot be used; nothing is left running.
    """
    events: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda got, _frame: events.put(got))
    with ExitStack() as parts:
        folder = tempfile.mkdtemp(prefix="meshca-")
        parts.callback(shutil.rmtree, folder, ignore_errors=True)
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        reloads = Reloads(registry)
        surroundings = WorkerDefaults(
            folder=folder, cpus=sorted(os.sched_getaffinity(0)), log_level=log_level
        )
        supervisor = Supervisor(source, spawn, surroundings, reloads)
        pages = Pages(supervisor, reloads, registry)
        parts.callback(pages.close)
        # Before any worker: an address in use means that another bridge runs.
        admin = Admin(source.config.admin.listen, pages.views())
        parts.callback(admin.close)
        parts.callback(supervisor.kill)
        admin.start()
        _log.info("health and metrics on %s", admin.address)
        _Loop(source, supervisor, reloads, events.get).run()
    _log.info("stopped in order")


class _Loop:
    def __init__(
        self,
        source: ConfigText,
        supervisor: Supervisor,
        reloads: Reloads,
        wait: Callable[[bool, float], int],
    ) -> None:
        self._path = source.path
        self._file = ConfigFile(source.path, source.text)
        self._supervisor = supervisor
        self._reloads = reloads
        self._wait = wait
        self._look_at = time.monotonic() + _IDLE_SECONDS
        self._refusal: ConfigError | None = None

    def run(self) -> None:
        supervisor = self._supervisor
        while not supervisor.is_over:
            try:
                wait = _IDLE_SECONDS if supervisor.is_settled else _BUSY_SECONDS
                event = self._wait(True, wait)  # noqa: FBT003 - `SimpleQueue.get`
            except queue.Empty:
                event = 0
            now = time.monotonic()
            if event in {signal.SIGTERM, signal.SIGINT}:
                supervisor.stop(now)
            elif event == signal.SIGHUP or self._has_changed(now):
                self._reload(now)
            self._tick(now)
        if self._refusal is not None:
            raise self._refusal

    def _tick(self, now: float) -> None:
        try:
            self._supervisor.tick(now)
        except ConfigError as error:
            # The workers that run are ended in order: they have rows to write.
            self._refusal = error
            self._supervisor.stop(now)

    def _has_changed(self, now: float) -> bool:
        if now < self._look_at:
            return False
        self._look_at = now + _IDLE_SECONDS
        return self._file.changed()

    def _reload(self, now: float) -> None:
        try:
            source = ConfigText.read(self._path)
        except ConfigError as error:
            self._reloads.refused(error)
            return
        self._file.told(source.text)
        self._supervisor.reload(source, now)
