"""The metrics of the meshes' own CAs, under their names.

Dashboards and alarms for istiod or linkerd-identity keep working with this bridge.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import Metric, UnknownMetricFamily

from bridge.errors import (
    AuthenticationError,
    BackendError,
    CSRError,
    DeniedError,
    OverloadedError,
    ReviewError,
    TTLError,
)

CITADEL_SIGN_ERRORS = (
    "CSR_ERROR",
    "TTL_ERROR",
    "CERT_GEN_ERROR",
    "CA_NOT_READY",
    "UNKNOWN",
)
"""The values of `error` of Istio's `citadel_server_csr_sign_err_count`."""

_GO_BUCKETS = (0.1, 1.0, 300.0, 3600.0)


class CitadelMetrics:
    """The counters of Istio's own CA, under its names.

    Source:
        istio/istio, security/pkg/server/ca/monitoring.go.
    """

    def __init__(self) -> None:
        self.csr_count = _loose("csr_count", "CSRs received.")
        self.authentication_failure_count = _loose(
            "authentication_failure_count", "Calls whose credential was refused."
        )
        self.csr_parsing_err_count = _loose(
            "csr_parsing_err_count", "CSRs that could not be read."
        )
        self.id_extraction_err_count = _loose(
            "id_extraction_err_count", "Identities that could not be read."
        )
        self.success_cert_issuance_count = _loose(
            "success_cert_issuance_count", "Certificates issued."
        )
        self._sign_errors = Counter(
            "citadel_server_csr_sign_err_count",
            "CSRs that were not signed.",
            ["error"],
            registry=None,
        )
        self.csr_sign_err_count = {
            error: self._sign_errors.labels(error) for error in CITADEL_SIGN_ERRORS
        }

    def failed(self, error: BaseException) -> None:
        """Count a call that ended with `error`, as Istio's CA does."""
        # A review that could not be made is a failed authentication there.
        if isinstance(error, AuthenticationError | ReviewError):
            self.authentication_failure_count.inc()
        elif not isinstance(error, DeniedError | OverloadedError):
            kinds = ((CSRError, "CSR_ERROR"), (TTLError, "TTL_ERROR"))
            fitting = (name for kind, name in kinds if isinstance(error, kind))
            other = "CERT_GEN_ERROR" if isinstance(error, BackendError) else "UNKNOWN"
            self.csr_sign_err_count[next(fitting, other)].inc()

    def collect(self) -> Iterator[Metric]:
        """Yield the counters without the suffix that the library adds."""
        for counter in (
            self.csr_count,
            self.authentication_failure_count,
            self.csr_parsing_err_count,
            self.id_extraction_err_count,
            self.success_cert_issuance_count,
            self._sign_errors,
        ):
            for family in counter.collect():
                plain = UnknownMetricFamily(family.name, family.documentation)
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        plain.add_sample(family.name, sample.labels, sample.value)
                yield plain


class ServiceMetrics:
    """The counters of go-grpc-prometheus, which linkerd-identity has, of one method.

    Source:
        linkerd/linkerd2, pkg/prometheus/prometheus.go.
    """

    def __init__(self, registry: CollectorRegistry, method: str) -> None:
        _, service, name = method.split("/")
        values = ("unary", service, name)
        labels = ("grpc_type", "grpc_service", "grpc_method")
        self.started = Counter(
            "grpc_server_started", "Calls that began.", labels, registry=registry
        ).labels(*values)
        self._handled = Counter(
            "grpc_server_handled",
            "Calls that ended.",
            (*labels, "grpc_code"),
            registry=registry,
        )
        self.seconds = Histogram(
            "grpc_server_handling_seconds",
            "Seconds from arrival to answer.",
            labels,
            buckets=_GO_BUCKETS,
            registry=registry,
        ).labels(*values)
        self._values = values
        self._codes: dict[str, Counter] = {}

    def handled(self, code: str) -> None:
        """Count a call that ended with `code`, such as `FAILED_PRECONDITION`."""
        child = self._codes.get(code)
        if child is None:
            # As Go spells it.
            name = code if code == "OK" else code.title().replace("_", "")
            child = self._codes[code] = self._handled.labels(*self._values, name)
        child.inc()


def _loose(name: str, text: str) -> Counter:
    return Counter(f"citadel_server_{name}", text, registry=None)
