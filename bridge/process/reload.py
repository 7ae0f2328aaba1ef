"""Changes of the configuration file, and the results of reloads."""

import hashlib
import logging
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from bridge.errors import BridgeError

PART = "configuration"
"""The warning in readiness that has the last refusal."""
_log = logging.getLogger(__name__)


class ConfigFile:
    """Detects that the content of the file has changed and is complete.

    The content decides, not the time or the inode: a symbolic link may be swapped, and
    a file may be written in place or touched without a change.

    Args:
        path: The file.
        text: The content in service.
    """

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._told = self._last = _digest(text.encode())

    def changed(self) -> bool:
        """Read the file; return whether the same new content was read twice in a row.

        One read is not enough: the file may be half written.
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
        """Note that `text` was read for another reason: it is no change any more."""
        self._told = self._last = _digest(text.encode())


class Reloads:
    """The results of reloads, for readiness, metrics and log."""

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
        """Count a reload that took effect."""
        self._refusal = ""
        self._results.labels("ok").inc()
        self._successful.set(1)
        self._generation.inc()
        _log.info("the new configuration serves")

    def refused(self, error: BridgeError) -> None:
        """Count a reload that was refused, and keep the reason."""
        self._refusal = f"a change is refused, the old one serves: {error}"
        self._results.labels("refused").inc()
        self._successful.set(0)
        _log.error(
            "the new configuration is refused, the old one serves: %s",
            f"{error} {error.detail}".rstrip(),
        )

    def warnings(self) -> dict[str, str]:
        """Return the refusal of the newest configuration, as a warning."""
        return {PART: self._refusal} if self._refusal else {}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
