"""Changes of the configuration file, and the results of reloads."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from bridge.config import ConfigText
from bridge.config.diagnostics import shown
from bridge.config.strict_yaml import parse_yaml
from bridge.errors import BridgeError
from bridge.system.files import PASSING_ERRORS

PART = "configuration"
"""The warning in readiness that has the last refusal."""
_HIDDEN = re.compile(r"ledger\.archive|issuing_cas\..*\.options\b.*")
"""Keys whose values may hold a password: only that they changed is told."""
_ABSENT = object()
_PASSING_TEXTS = frozenset(os.strerror(number) for number in PASSING_ERRORS)
"""Of a file that cannot be read for want of descriptors: that is no change."""
_log = logging.getLogger(__name__)


class ConfigFile:
    """Detects that the configuration file, or the trust anchors, have changed.

    The content decides, not the time or the inode: a symbolic link may be swapped, and
    a file may be written in place or touched without a change.

    Args:
        source: The configuration in service.
    """

    def __init__(self, source: ConfigText) -> None:
        self._source = source
        self._told = self._last = _contents(source)

    def changed(self) -> bool:
        """Read the files; return whether the same new content was read twice in a row.

        One read is not enough: a file may be half written.
        """
        paths = self._source.path, self._source.config.trust_anchors
        now = tuple(_read(path) for path in paths)
        if not _PASSING_TEXTS.isdisjoint(now):
            return False
        is_steady, self._last = now == self._last, now
        if now == self._told or not is_steady:
            return False
        self._told = now
        return True

    def told(self, source: ConfigText) -> None:
        """Note that `source` was read for another reason: it is no change any more."""
        self._source = source
        self._told = self._last = _contents(source)


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


def changes(before: str, after: str) -> list[str]:
    """Return what differs between two configurations, one key a text.

    Args:
        before: The text in service.
        after: The text that follows. Both were read before.

    Returns:
        Such as `limits.drain: '5s' becomes '10s'`, in the order of the keys. A list of
        values is one value; the items of other lists are counted from 0.
    """
    old, new = (dict(_leaves(parse_yaml(text), "")) for text in (before, after))
    return [
        _difference(key, old.get(key, _ABSENT), new.get(key, _ABSENT))
        for key in dict.fromkeys([*old, *new])
        if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ]


def _difference(key: str, old: object, new: object) -> str:
    is_hidden = _HIDDEN.fullmatch(key) is not None
    if old is _ABSENT:
        return f"{key} is added" if is_hidden else f"{key} is added: {shown(new)}"
    if new is _ABSENT:
        return f"{key} is removed" if is_hidden else f"{key} is removed: {shown(old)}"
    if is_hidden:
        return f"{key} is changed"
    return f"{key}: {shown(old)} becomes {shown(new)}"


def _leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
    # An empty mapping or list is a value: its key is written.
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{key}[{index}]")
    else:
        yield key, value


def _contents(source: ConfigText) -> tuple[bytes | str, ...]:
    # A file that could not be read is read again: the reason may be another one.
    trust_anchors = source.config.trust_anchors
    anchors = _read(trust_anchors) if source.anchors is None else source.anchors
    return source.text.encode(), anchors


def _read(path: Path) -> bytes | str:
    try:
        return path.read_bytes()
    except OSError as error:
        return str(error.strerror)
