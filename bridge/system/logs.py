"""How the log is written: times in UTC, and of libraries only what asks for action."""

import logging
import os
import time

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TALKATIVE = ("alembic", "asyncio", "grpc", "watchfiles")
"""Libraries that tell at INFO what they do."""
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
        who: Stands before the name of each logger: which worker this is.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(UTCFormatter(_FORMAT.replace("%(name)s", f"{who}%(name)s")))
    logging.basicConfig(level=level, handlers=[handler])
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, _number(level)))
    # Lines of grpc's C++ part have a form of their own, and are about single peers.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def on_one_line(text: str) -> str:
    """Return the beginning of `text`, so that no peer writes lines of its own."""
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cut
    )


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level]
