"""The rules of `meshca doctor`, from the code."""

from collections.abc import Iterator

from bridge.checks.doctor import RULES
from tests.support.documents.markdown import code, table


def lines() -> Iterator[str]:
    """Yield the document: each rule with what it means and what to do."""
    yield "`meshca doctor -c bridge.yaml` makes the checks of `meshca check`, also of a"
    yield "configuration that is refused. Each finding has a *rule*, a stable name for"
    yield "programs, and a severity: *error* (status 1), *warning* (status 3), *info*."
    yield "An alarm of `expiry.alarm` is *info* from 50 % of a life on, *warning*"
    yield "from 80 % and *error* from 95 %, as in `meshca_certificate_expiry_level`."
    yield ""
    yield from table(
        ("Rule", "What it means", "What to do"),
        ((code(one.name), one.meaning, one.remedy) for one in RULES),
    )
    yield ""
    yield "An alert of Prometheus for each certificate, anchors included:"
    yield ""
    yield "```yaml"
    yield "- alert: MeshcaCertificateEnds"
    yield "  expr: meshca_certificate_expiry_level >= 2"
    yield "  labels: {severity: warning}"
    yield "- alert: MeshcaCertificateEndsSoon"
    yield "  expr: meshca_certificate_expiry_level >= 3"
    yield "  labels: {severity: critical}"
    yield "```"
