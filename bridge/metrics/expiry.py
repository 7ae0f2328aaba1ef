"""The expiry of the certificates that the bridge depends on: its level, and metrics.

`meshca check`, `/readyz`, the log and the metrics all show the level that is decided
here.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Self

from cryptography import x509
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

OTHER_ANCHOR = "other-anchor"
"""The tier of a trust anchor that no chain of the bridge leads to."""
_HOURS_UNTIL = 48
"""A shorter time is told in hours."""
_TITLES = {
    "issuing": "issuing CA",
    "anchor": "trust anchor",
    OTHER_ANCHOR: "trust anchor of no chain here",
    "serving": "serving certificate",
}


class ExpiryLevel(IntEnum):
    """How urgent it is to replace a certificate. See `ALARMS`."""

    OK = 0
    NOTE = 1
    """Half of its life is over: its replacement should be planned."""
    WARNING = 2
    """80 % of its life is over."""
    ERROR = 3
    """95 % of its life is over, or it ends within the longest lifetime that may be
    issued, or has ended."""


ALARMS = (
    (ExpiryLevel.ERROR, 95, "95 % of its life is over: replace it now"),
    (ExpiryLevel.WARNING, 80, "80 % of its life is over: replace it before"),
    (ExpiryLevel.NOTE, 50, "half of its life is over: plan its replacement"),
)
"""Each level with the percentage of a certificate's life at which it begins, and its
words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateExpiry:
    """The expiry of one certificate that the bridge depends on."""

    issuing_ca: str
    """The name in the configuration; empty for an anchor and the listener's own."""
    tier: str
    """`issuing`, `intermediate`, `anchor`, `serving` or `OTHER_ANCHOR`."""
    subject: str
    """RFC 4514."""
    serial: str
    """Lower-case hex."""
    not_before: datetime
    not_after: datetime
    longest: timedelta = timedelta()
    """The longest lifetime that may be issued under it."""

    @classmethod
    def of(
        cls,
        certificate: x509.Certificate,
        tier: str,
        issuing_ca: str = "",
        longest: timedelta = timedelta(),
    ) -> Self:
        """Read the expiry of a certificate. See the attributes."""
        return cls(
            issuing_ca=issuing_ca,
            tier=tier,
            subject=certificate.subject.rfc4514_string(),
            serial=f"{certificate.serial_number:x}",
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            longest=longest,
        )

    @property
    def title(self) -> str:
        """What the certificate is, with its subject, for people."""
        title = _TITLES.get(self.tier, self.tier)
        return f"{title} ({self.subject})" if self.subject else title

    def level(self, now: datetime) -> ExpiryLevel:
        """Return the level at `now`, aware, in UTC.

        That of an anchor of no chain is at most WARNING: nothing here ends with it.
        """
        if self.not_after - now <= self.longest:
            found = ExpiryLevel.ERROR
        else:
            found, _ = self._alarm(now)
        return min(found, ExpiryLevel.WARNING) if self.tier == OTHER_ANCHOR else found

    def when(self, now: datetime) -> str:
        """Say when it ends and, unless the level is OK, what that means and asks for.

        The text changes once a day, and once an hour in the last two days.
        """
        left, ends = self.not_after - now, f"{self.not_after:%Y-%m-%dT%H:%M:%SZ}"
        if left <= timedelta():
            return f"ended {ends}: replace it"
        text = f"ends {ends}, in {_span(left)}"
        if left <= self.longest:
            return (
                f"{text}, within the longest lifetime that may be issued "
                f"({_span(self.longest)}): certificates get shorter lifetimes; replace "
                "it now"
            )
        _, words = self._alarm(now)
        return f"{text}; {words}" if words else text

    def _alarm(self, now: datetime) -> tuple[ExpiryLevel, str]:
        used, life = now - self.not_before, self.not_after - self.not_before
        for level, percent, words in ALARMS:
            if used * 100 >= life * percent:
                return level, words
        return ExpiryLevel.OK, ""


@dataclass(frozen=True, slots=True)
class CRLUpdate:
    """When the next list of a CA is due."""

    issuer: str
    """RFC 4514."""
    number: str
    """Of the list that is in force; empty without one."""
    next_update: datetime


class Expiries(Collector):
    """The expiry of all certificates, by owner, and the next updates of all CRLs.

    A gauge per label set would still show a certificate that was replaced.

    Args:
        now: Returns the time from which the remaining seconds are counted.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._by_owner: dict[str, tuple[CertificateExpiry, ...]] = {}
        self._crls: tuple[CRLUpdate, ...] = ()

    def replace_crls(self, crls: Iterable[CRLUpdate]) -> None:
        """Set the lists that are in force, in place of earlier ones."""
        self._crls = tuple(crls)

    def replace(self, owner: str, certificates: Iterable[CertificateExpiry]) -> None:
        """Set the certificates of an owner, in place of earlier ones.

        Args:
            owner: The name of an issuing CA, `anchors` or `serving`.
            certificates: All that the owner has now.
        """
        self._by_owner = {**self._by_owner, owner: tuple(certificates)}

    def known(self) -> list[CertificateExpiry]:
        """Return the certificates of all owners."""
        return [item for items in self._by_owner.values() for item in items]

    def collect(self) -> Iterator[Metric]:
        """Yield each metric, under the bridge's name and under the meshes' names."""
        known = self.known()
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
        yield self._levels(known)
        yield self._next_updates()
        yield from self._of_istio("root_cert", known, ("anchor",))
        yield from self._of_istio("cert_chain", known, ("issuing", "intermediate"))
        yield from self._of_linkerd("issuer", known, "issuing")
        yield from self._of_linkerd("anchor", known, "anchor")

    def _levels(self, known: Iterable[CertificateExpiry]) -> Metric:
        family = GaugeMetricFamily(
            "meshca_certificate_expiry_level",
            "How soon a certificate has to be replaced, by the share of its life that "
            "is over: 0 ok, 1 from 50 %, 2 from 80 %, 3 from 95 % or within the "
            "longest lifetime that may be issued.",
            labels=("issuing_ca", "tier", "subject", "serial"),
        )
        now = self._now()
        for item in known:
            labels = (item.issuing_ca, item.tier, item.subject, item.serial)
            family.add_metric(labels, item.level(now))
        return family

    def _next_updates(self) -> Metric:
        family = GaugeMetricFamily(
            "meshca_crl_next_update_timestamp_seconds",
            "Unix time at which the next revocation list of a CA is due.",
            labels=("issuer", "number"),
        )
        for one in self._crls:
            labels = (one.issuer, one.number)
            family.add_metric(labels, one.next_update.timestamp())
        return family

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


def _span(time: timedelta) -> str:
    hours = int(time.total_seconds() // 3600)
    if hours < 1:
        return "less than 1 hour"
    if hours >= _HOURS_UNTIL:
        return f"{hours // 24} days"
    return "1 hour" if hours == 1 else f"{hours} hours"
