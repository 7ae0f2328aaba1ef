"""The log: times in UTC, and from libraries only warnings and errors."""

import logging
import os
import time
import warnings

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TALKATIVE = ("alembic", "asyncio", "grpc", "watchfiles")
"""Libraries that log their ordinary work at INFO."""
_LONGEST = 600


class UTCFormatter(logging.Formatter):
    """Writes times as ISO 8601 does, in UTC: `2026-11-23T08:00:00.250Z`."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def set_up(level: str, *, who: str = "") -> None:
    """Write the log of this process to stderr.

    Args:
        level: Name of the lowest level that is written, such as `INFO`.
        who: The name of this worker, put before the name of each logger.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(UTCFormatter(_FORMAT.replace("%(name)s", f"{who}%(name)s")))
    logging.basicConfig(level=level, handlers=[handler])
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, _number(level)))
    silence_warnings()
    # grpc's C++ part logs in a format of its own, and about single peers.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def silence_warnings() -> None:
    """Keep what libraries warn programmers of away from stderr, in this process.

    What an operator should know, such as a negative serial number, the bridge tells.
    """
    warnings.simplefilter("ignore")


def on_one_line(text: str) -> str:
    """Return the start of `text` on one line, so that a peer cannot forge log lines.

    It has at most 600 bytes in UTF-8, and then three dots where it was cut.
    """
    shown = "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for char in text[: _LONGEST + 1]
    )
    found = shown.encode("utf-8", "replace")
    if len(found) <= _LONGEST:
        return shown
    return found[:_LONGEST].decode("utf-8", "ignore") + "..."


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]
