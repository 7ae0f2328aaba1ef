"""Merges the metrics of several processes into those of one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]

_LOOSE = re.compile(r"^# TYPE (\S+)(?<!_total) counter$", re.MULTILINE)
_CUMULATIVE = frozenset({"counter", "histogram", "unknown"})
_SMALLEST = re.compile(
    r"_expiry_|_cert_ttl_|_next_update_|^process_(start_time_seconds|max_fds)$"
)
"""Metrics that all processes share, or whose smallest value counts."""
_LARGEST = re.compile(
    r"^meshca_(archive_lag_seconds|breaker_open|build_info|certificate_expiry_level"
    r"|latched|token_key_age_seconds|token_keys_refused|watch_age_seconds"
    r"|watched_objects)$"
)


@dataclass(slots=True)
class Family:
    """One metric with its samples."""

    kind: str
    text: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)
    """Values by name and labels, in the order of the scrape."""


Page = dict[str, Family]
"""Metrics by name."""


def parse(text: str) -> Page:
    """Read the answer of a process to a scrape.

    Raises:
        ValueError: The answer is not in the text format.
    """
    # The parser would rename a counter whose name does not end in `_total`.
    page: Page = {}
    for found in text_string_to_metric_families(_LOOSE.sub(r"# TYPE \1 untyped", text)):
        family = Family(found.type, found.documentation)
        for sample in found.samples:
            family.samples[sample.name, tuple(sample.labels.items())] = sample.value
        page[found.name] = family
    return page


class Totals:
    """Sums of metrics over processes that start and end.

    The counters of a process stay in the sums when it has ended. A counter that goes
    back looks like a restart of everything, and every rate over it is wrong.
    """

    def __init__(self) -> None:
        self._last: dict[int, Page] = {}
        self._gone: Page = {}

    def merge(self, pages: Mapping[int, Page | None]) -> Iterator[Metric]:
        """Yield the metrics of all processes.

        Args:
            pages: Metrics by process ID, for every process that runs. None stands for
                one that does not answer: its counters keep their last values.
        """
        for pid in self._last.keys() - pages.keys():
            ended = _cumulative(self._last.pop(pid))
            self._gone = _sum([self._gone, ended])
        silent = [pid for pid, page in pages.items() if page is None]
        self._last |= {pid: page for pid, page in pages.items() if page is not None}
        parts = [
            _cumulative(page) if pid in silent else page
            for pid, page in self._last.items()
        ]
        for name, family in _sum([self._gone, *parts]).items():
            metric = Metric(name, family.text, family.kind)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def _cumulative(page: Page) -> Page:
    return {name: each for name, each in page.items() if each.kind in _CUMULATIVE}


def _sum(pages: Iterable[Page]) -> Page:
    total: Page = {}
    for page in pages:
        for name, family in page.items():
            into = total.setdefault(name, Family(family.kind, family.text)).samples
            for key, value in family.samples.items():
                into[key] = _joined(name, into[key], value) if key in into else value
    return total


def _joined(name: str, one: float, other: float) -> float:
    if _LARGEST.search(name):
        return max(one, other)
    if _SMALLEST.search(name):
        return min(one, other)
    return one + other
