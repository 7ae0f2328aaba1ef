"""`meshca serve` without workers: one process, its signals and its end."""

import logging
import signal
import threading

from bridge.reload import Source
from bridge.server.process import Process, harden


def serve_alone(source: Source) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way.

    Raises:
        ConfigError: The configuration cannot be used.
        LedgerError: The ledger cannot be opened.
    """
    harden()
    asked_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_stop.set())
    process = Process(source.config, warn=logging.getLogger("bridge").warning)
    try:
        process.start()
        asked_to_stop.wait()
    finally:
        process.stop()
