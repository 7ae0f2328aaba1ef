"""The metrics, from the registries of a process and of its parent."""

import ast
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge.metrics.expiry import CertificateExpiry, CRLUpdate
from bridge.metrics.instruments import Metrics
from tests.support.documents.markdown import code, one_line, table

_BRIDGE = Path(__file__).parents[3] / "bridge"
_METHOD = "/io.linkerd.proxy.identity.Identity/Certify"
_ENDINGS = {"counter": "_total", "info": "_info"}
_KINDS = re.compile(r"(Counter|Gauge|Histogram)(?:MetricFamily)?")


def lines() -> Iterator[str]:
    """Yield the document: a table of all metrics, by name."""
    yield "`GET /metrics` on `admin.listen` has these. The parent adds up what its"
    yield "workers count. Names that begin with `meshca_` are the bridge's own; the"
    yield "others are those of Istio's CA, of linkerd-identity and of the Prometheus"
    yield "library, so that dashboards written for these keep working."
    yield ""
    rows = ((code(name), *rest) for name, rest in sorted(found().items()))
    yield from table(("Name", "Type", "Labels", "Meaning"), rows)


def found() -> dict[str, tuple[str, str, str]]:
    """Return type, labels and help of each metric, by the name of a scrape."""
    metrics = _metrics()
    # A family without a sample does not say which labels it has; its maker does.
    makers = metrics.registry._names_to_collectors
    return dict(_elsewhere()) | {
        _name(family): (
            "counter" if family.type == "unknown" else family.type,
            ", ".join(map(code, _labels(family, makers.get(family.name)))),
            one_line(family.documentation),
        )
        for family in metrics.registry.collect()
    }


class _Views:
    # See `TokenViews`: a sample of each family, which shows its labels.
    def modes(self) -> Iterator[tuple[str, str]]:
        yield "one", "bound"

    def watch_ages(self) -> Iterator[tuple[str, float]]:
        yield "one", 1.0

    def key_ages(self) -> Iterator[tuple[str, float]]:
        yield "one", 1.0

    def refused_keys(self) -> Mapping[str, int]:
        return {"one": 1}

    def watched_objects(self) -> Iterator[tuple[str, str, int]]:
        yield "one", "pods", 1


def _metrics() -> Metrics:
    made = Metrics()
    made.service(_METHOD)
    made.backend("one")
    made.watch_latch(lambda: [("one", "credential")])
    made.watch_tokens(_Views())
    ends = datetime.now(UTC) + timedelta(days=1)
    made.expiries.replace_crls([CRLUpdate("", "", ends)])
    made.expiries.replace(
        "one",
        tuple(
            CertificateExpiry(
                issuing_ca="",
                tier=tier,
                subject="",
                serial="",
                not_before=ends,
                not_after=ends,
            )
            for tier in ("issuing", "intermediate", "anchor", "serving")
        ),
    )
    return made


def _labels(family: Metric, maker: Collector | None) -> tuple[str, ...]:
    if isinstance(maker, MetricWrapperBase) and maker._labelnames:
        return tuple(maker._labelnames)
    plain = [each for each in family.samples if not each.name.endswith("_bucket")]
    return tuple(plain[0].labels) if plain else ()


def _name(family: Metric) -> str:
    return family.name + _ENDINGS.get(family.type, "")


def _elsewhere() -> Iterator[tuple[str, tuple[str, str, str]]]:
    # What a process measures of itself and of its workers, beside `Metrics`.
    for path in sorted((_BRIDGE / "process").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                kind = _KINDS.fullmatch(node.func.id)
                if kind and len(node.args) > 1:
                    yield _literal(kind[1].lower(), node)


def _literal(kind: str, node: ast.Call) -> tuple[str, tuple[str, str, str]]:
    named = {each.arg: each.value for each in node.keywords}
    name, text, *others = node.args
    if "labels" in named:
        others = [named["labels"]]
    labels = ast.literal_eval(others[0]) if others else []
    name_of_scrape = ast.literal_eval(name) + _ENDINGS.get(kind, "")
    return name_of_scrape, (kind, ", ".join(map(code, labels)), ast.literal_eval(text))
