"""The expiry of the certificates that the bridge depends on, for Prometheus."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateExpiry:
    """The expiry of one certificate that the bridge depends on."""

    issuing_ca: str
    """The name in the configuration; empty for an anchor and the listener's own."""
    tier: str
    """`issuing`, `intermediate`, `anchor` or `serving`."""
    subject: str
    """RFC 4514."""
    serial: str
    """Lower-case hex."""
    not_after: datetime


class Expiries(Collector):
    """The expiry of all certificates, by owner.

    A gauge per label set would still show a certificate that was replaced.

    Args:
        now: Returns the time from which the remaining seconds are counted.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._by_owner: dict[str, tuple[CertificateExpiry, ...]] = {}

    def replace(self, owner: str, certificates: tuple[CertificateExpiry, ...]) -> None:
        """Set the certificates of `owner`, in place of earlier ones."""
        self._by_owner = {**self._by_owner, owner: certificates}

    def collect(self) -> Iterator[Metric]:
        """Yield each metric, under the bridge's name and under the meshes' names."""
        known = [item for items in self._by_owner.values() for item in items]
        family = GaugeMetricFamily(
            "meshca_certificate_expiry_timestamp_seconds",
            "Unix time at which a certificate that the bridge depends on expires.",
            labels=("issuing_ca", "tier", "subject", "serial"),
        )
        for item in known:
            family.add_metric(
                (item.issuing_ca, item.tier, item.subject, item.serial),
                item.not_after.timestamp(),
            )
        yield family
        yield from self._of_istio("root_cert", known, ("anchor",))
        yield from self._of_istio("cert_chain", known, ("issuing", "intermediate"))
        yield from self._of_linkerd("issuer", known, "issuing")
        yield from self._of_linkerd("anchor", known, "anchor")

    def _of_istio(
        self, name: str, known: Iterable[CertificateExpiry], tiers: tuple[str, ...]
    ) -> Iterator[Metric]:
        ends = [item.not_after.timestamp() for item in known if item.tier in tiers]
        if not ends:
            return
        prefix = f"citadel_server_{name}_expiry"
        what = "trust anchor" if "anchor" in tiers else "CA certificate of a chain"
        yield GaugeMetricFamily(
            f"{prefix}_timestamp",
            f"Unix time at which the first {what} expires.",
            value=min(ends),
        )
        yield GaugeMetricFamily(
            f"{prefix}_seconds",
            f"Seconds until the first {what} expires.",
            value=min(ends) - self._now().timestamp(),
        )

    def _of_linkerd(
        self, name: str, known: Iterable[CertificateExpiry], tier: str
    ) -> Iterator[Metric]:
        # The first is linkerd-identity's; it has none for the anchors.
        ends = [item.not_after.timestamp() for item in known if item.tier == tier]
        what = "trust anchor" if tier == "anchor" else "issuing CA"
        if ends:
            yield GaugeMetricFamily(
                f"{name}_cert_ttl_seconds",
                f"Seconds until the first {what} expires.",
                value=min(ends) - self._now().timestamp(),
            )
