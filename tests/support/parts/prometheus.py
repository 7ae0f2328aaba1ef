"""Samples of metrics in the text format of Prometheus.

Not read by the library's own parser: it would rename Istio's counters.
"""

import re
from collections.abc import Iterator

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def samples(text: str, name: str) -> Iterator[tuple[dict[str, str], float]]:
    """Yield labels and value of each sample with this name."""
    for found, shown, value in _SAMPLE.findall(text):
        if found == name:
            yield dict(_LABEL.findall(shown)), float(value)


def total(text: str, name: str, /, **labels: str) -> float:
    """Return the sum of the samples `name` that carry `labels`; 0 without any."""
    return sum(
        value for shown, value in samples(text, name) if labels.items() <= shown.items()
    )
