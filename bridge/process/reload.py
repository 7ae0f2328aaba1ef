"""The configuration file, looked at again and again, and what became of its changes."""

import hashlib
import logging
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from bridge.errors import BridgeError

PART = "configuration"
"""What readiness calls it."""
_log = logging.getLogger(__name__)


class ConfigFile:
    """Says when the content of the file has become another, and is so for good.

    By content and not by time or inode: a symbolic link may be swapped, a file may be
    written over, or touched without a change.

    Args:
        path: The file.
        text: What is in service.
    """

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._told = self._last = _digest(text.encode())

    def changed(self) -> bool:
        """Look once; True when a content was seen twice that was not told of before.

        Twice, because whoever writes the file may be in the middle of it.
        """
        try:
            now = _digest(self._path.read_bytes())
        except OSError as error:
            now = str(error.strerror)
        is_steady, self._last = now == self._last, now
        if now == self._told or not is_steady:
            return False
        self._told = now
        return True

    def told(self, text: str) -> None:
        """Take `text` as known: it was read for another reason."""
        self._told = self._last = _digest(text.encode())


class Reloads:
    """What became of the changes, for readiness, metrics and log."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refusal = ""
        self._results = Counter(
            "meshca_reloads",
            "Reloads of the configuration, by result.",
            ["result"],
            registry=registry,
        )
        for result in ("ok", "refused"):
            self._results.labels(result)
        self._successful = Gauge(
            "meshca_config_last_reload_successful",
            "1 unless the newest configuration was refused.",
            registry=registry,
        )
        self._generation = Gauge(
            "meshca_config_generation",
            "Configurations that have taken effect, this one included.",
            registry=registry,
        )
        self._successful.set(1)
        self._generation.set(1)

    def done(self) -> None:
        """Tell that a new configuration serves."""
        self._refusal = ""
        self._results.labels("ok").inc()
        self._successful.set(1)
        self._generation.inc()
        _log.info("the new configuration serves")

    def refused(self, error: BridgeError) -> None:
        """Tell that a new configuration cannot serve; the old one does."""
        self._refusal = f"a change is refused, the old one serves: {error}"
        self._results.labels("refused").inc()
        self._successful.set(0)
        _log.error(
            "the new configuration is refused, the old one serves: %s",
            f"{error} {error.detail}".rstrip(),
        )

    def warnings(self) -> dict[str, str]:
        """Return the refusal of the newest configuration, by part of readiness."""
        return {PART: self._refusal} if self._refusal else {}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
