"""What a caller may have: lifetime, names, issuing CA. Decided before anything else."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from bridge.config import IssuanceConfig, RuleConfig
from bridge.errors import DeniedError, RequestError, TTLError


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """A lifetime inside the bounds."""

    ttl: timedelta
    clamped: bool
    """The caller asked for another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuancePolicy:
    """The limits of `issuance` in the configuration; nobody can widen them."""

    default_ttl: timedelta
    min_ttl: timedelta
    max_ttl: timedelta
    on_excess_ttl: Literal["refuse", "clamp"]
    backdate: timedelta
    issuing_cas: tuple[str, ...]
    cert_signers: Mapping[str, tuple[str, ...]]
    strict_csr_names: bool

    @classmethod
    def of(cls, config: IssuanceConfig) -> "IssuancePolicy":
        """Take the policy out of the configuration."""
        return cls(
            default_ttl=config.default_ttl,
            min_ttl=config.min_ttl,
            max_ttl=config.max_ttl,
            on_excess_ttl=config.on_excess_ttl,
            backdate=config.backdate,
            issuing_cas=config.issuing_cas,
            cert_signers=config.cert_signers,
            strict_csr_names=config.csr_names == "strict",
        )

    def lifetime(self, wanted_seconds: int) -> Lifetime:
        """Decide how long a certificate lives from now.

        Args:
            wanted_seconds: As the caller wrote it, any 64-bit integer; 0 or less asks
                for the default.

        Raises:
            TTLError: It is outside the bounds and the policy does not clamp.

        Source:
            Istio's own CA: default for 0 or less, above the maximum refused.
        """
        if wanted_seconds <= 0:
            return Lifetime(ttl=self.default_ttl, clamped=False)
        # Compared as integers: a timedelta overflows long before 2**62 seconds do.
        if wanted_seconds > self.max_ttl.total_seconds():
            return self._bounded(self.max_ttl, "above the maximum", "ttl.maximum")
        if wanted_seconds < self.min_ttl.total_seconds():
            return self._bounded(self.min_ttl, "below the minimum", "ttl.minimum")
        return Lifetime(ttl=timedelta(seconds=wanted_seconds), clamped=False)

    def _bounded(self, bound: timedelta, what: str, rule: str) -> Lifetime:
        if self.on_excess_ttl == "refuse":
            raise TTLError(
                f"the wanted lifetime is {what} of {bound.total_seconds():.0f} s",
                rule=rule,
            )
        return Lifetime(ttl=bound, clamped=True)

    def route(self, cert_signer: str) -> tuple[str, ...]:
        """Return the issuing CAs for Istio's `CertSigner` value, in order.

        Raises:
            RequestError: The value is not empty and not configured.
            DeniedError: It is, and this caller may have none of its issuing CAs.
        """
        if not cert_signer:
            return self.issuing_cas
        try:
            found = self.cert_signers[cert_signer]
        except KeyError:
            raise RequestError(
                "CertSigner names no signer that is configured here",
                rule="signer.unknown",
                detail=repr(cert_signer)[:200],
            ) from None
        if not found:
            raise DeniedError(
                "the caller may not have certificates of this signer",
                rule="signer.denied",
                detail=repr(cert_signer)[:200],
            )
        return found

    def under(self, rule: RuleConfig) -> "IssuancePolicy":
        """Return the policy of those whom a rule matches.

        Args:
            rule: One that was held against this policy when the file was read.
        """
        low, high = rule.min_ttl or self.min_ttl, rule.max_ttl or self.max_ttl
        wanted = rule.default_ttl or self.default_ttl
        allowed = rule.issuing_cas
        signers = self.cert_signers
        if allowed is not None:
            # Whoever asks for a signer gets no issuing CA that the rule does not list.
            signers = {
                signer: tuple(name for name in names if name in allowed)
                for signer, names in signers.items()
            }
        return replace(
            self,
            default_ttl=min(max(wanted, low), high),
            min_ttl=low,
            max_ttl=high,
            on_excess_ttl=rule.on_excess_ttl or self.on_excess_ttl,
            issuing_cas=allowed or self.issuing_cas,
            cert_signers=signers,
        )


def require_no_impersonation(impersonated: str | None) -> None:
    """Refuse a call on behalf of another workload.

    Whether a node proxy may act for a pod is decided by asking the Kubernetes API which
    pods run on its node. Without that, nobody may.

    Raises:
        DeniedError: The caller asked for another identity than its own.
    """
    if impersonated is not None:
        raise DeniedError(
            "acting for another workload is not allowed here",
            rule="impersonation",
            detail=repr(impersonated)[:300],
        )


def validity(
    now: datetime, lifetime: timedelta, backdate: timedelta, latest: datetime
) -> tuple[datetime, datetime] | None:
    """Return notBefore and notAfter in whole seconds, or None.

    None means that the chain ends so soon that half of the validity would already be
    past: proxies would ask again at once and without a pause.

    Args:
        now: UTC.
        lifetime: From now to notAfter.
        backdate: From notBefore to now.
        latest: The earliest notAfter of the chain.
    """
    start = now.replace(microsecond=0)
    not_before, not_after = start - backdate, min(start + lifetime, latest)
    if not_after - now <= now - not_before:
        return None
    return not_before, not_after


LEAST_SHARE = 0.01
MOST_SHARE = 0.05


def valid_until(now: datetime, not_after: datetime, draw: float) -> datetime:
    """Return a time a few percent before `not_after`, and later than `now`.

    Linkerd's proxies come back after 70 % of the time until then, without any
    randomness of their own: those of one restart would come together for ever.

    Args:
        now: UTC.
        not_after: The earliest end of all certificates on the path; after `now`.
        draw: From 0 to 1, at random.
    """
    share = LEAST_SHARE + (MOST_SHARE - LEAST_SHARE) * draw
    return now + (not_after - now) * (1 - share)
