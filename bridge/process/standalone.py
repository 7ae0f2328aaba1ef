"""`meshca serve` without workers: one process, its signals, its reloads and its end."""

import logging
import os
import queue
import signal
import threading

from bridge.config import ConfigText
from bridge.errors import BridgeError, ConfigError
from bridge.process.composition import Process
from bridge.process.reload import ConfigFile, Reloads
from bridge.system.linux import harden, take_turns

_LOOK_SECONDS = 0.5
_WAKE_SECONDS = 0.25
_MARGIN_SECONDS = 10.0
_RELOAD = "reload"
_STOP = "stop"
_log = logging.getLogger(__name__)


def serve_alone(source: ConfigText) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way.

    SIGHUP and a change of the file take the configuration anew.

    Raises:
        ConfigError: The configuration cannot be used.
        LedgerError: The ledger cannot be opened.
    """
    harden()
    take_turns()
    asked_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_stop.set())
    process = Process(source.config, warn=logging.getLogger("bridge").warning)
    reloader = Reloader(process, source)
    signal.signal(signal.SIGHUP, lambda *_: reloader.ask())
    process.warnings = reloader.reloads.warnings
    try:
        process.start()
        reloader.start()
        await_signal(asked_to_stop)
        drain = reloader.source.config.limits.drain.total_seconds()
        end_by_force(drain + _MARGIN_SECONDS)
    finally:
        reloader.stop()
        process.stop()


class Reloader:
    """Takes the configuration anew when asked, and when its file has changed.

    Args:
        process: Serves.
        source: What it serves now.
    """

    def __init__(self, process: Process, source: ConfigText) -> None:
        self.source = source
        """What is in service."""
        self.reloads = Reloads(process.metrics.registry)
        """What became of each change."""
        self._process = process
        self._file = ConfigFile(source.path, source.text)
        self._asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        # A daemon: an issuing CA that hangs in its proof holds up no end.
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def ask(self) -> None:
        """Reload, even if nothing seems to have changed. Safe in a signal handler."""
        self._asked.put(_RELOAD)

    def stop(self) -> None:
        """Begin no other reload."""
        self._asked.put(_STOP)

    def reload(self) -> None:
        """Reload now; what becomes of it is in `reloads`."""
        try:
            source = ConfigText.read(self.source.path)
            self._file.told(source.text)
            self._process.reload(source.config)
        except BridgeError as error:
            self.reloads.refused(error)
        else:
            self.source = source
            self.reloads.done()

    def _run(self) -> None:
        while True:
            try:
                if self._asked.get(timeout=_LOOK_SECONDS) == _STOP:
                    return
            except queue.Empty:
                if not self._file.changed():
                    continue
            try:
                self.reload()
            except Exception:  # noqa: BLE001 - the edge of a thread that must not end
                _log.exception("a reload broke off")
                self.reloads.refused(ConfigError("it could not be taken over"))


def await_signal(happened: threading.Event) -> None:
    """Wait in the main thread for what a signal handler sets.

    A signal that comes just before the wait begins does not end the wait: its handler
    runs when the thread wakes next, so it wakes now and then.
    """
    while not happened.wait(_WAKE_SECONDS):
        pass


def end_by_force(seconds: float) -> None:
    """End this process in `seconds`, if it still runs then.

    A call that hangs in a library cannot be stopped from inside.
    """

    def end() -> None:
        _log.error("could not end in order within %.0f s", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
