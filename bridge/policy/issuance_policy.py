"""The issuance policy: lifetimes, issuing CAs and signers that a caller may have."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from bridge.config import IssuanceConfig, RuleConfig
from bridge.errors import DeniedError, RequestError, TTLError


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """A lifetime within the limits."""

    ttl: timedelta
    clamped: bool
    """The requested lifetime was outside the limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuancePolicy:
    """The limits of `issuance` in the configuration. No request can exceed them."""

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
        """Build the policy of a configuration."""
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
        """Decide the lifetime of a certificate, from now.

        Args:
            wanted_seconds: The requested lifetime, any 64-bit integer; 0 or less
                requests the default.

        Raises:
            TTLError: It is outside the limits, and the policy does not clamp.

        Source:
            Istio's own CA: the default for 0 or less; above the maximum, an error.
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
                f"the requested lifetime is {what} of {bound.total_seconds():.0f} s",
                rule=rule,
            )
        return Lifetime(ttl=bound, clamped=True)

    def route(self, cert_signer: str) -> tuple[str, ...]:
        """Return the issuing CAs for Istio's `CertSigner` value, in order.

        Raises:
            RequestError: The value is not empty and not configured.
            DeniedError: The signer is configured, and the caller may use none of its
                issuing CAs.
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
        """Return the policy of the callers that a rule matches.

        Args:
            rule: A rule that was checked against this policy at load.
        """
        low, high = rule.min_ttl or self.min_ttl, rule.max_ttl or self.max_ttl
        wanted = rule.default_ttl or self.default_ttl
        allowed = rule.issuing_cas
        signers = self.cert_signers
        if allowed is not None:
            # A signer leads to no issuing CA that the rule does not list.
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


def validity(
    now: datetime, lifetime: timedelta, backdate: timedelta, latest: datetime
) -> tuple[datetime, datetime] | None:
    """Return notBefore and notAfter in whole seconds, or None.

    None means that the chain expires so soon that half of the validity would already be
    over: proxies would ask again at once, without a pause.

    Args:
        now: UTC.
        lifetime: From now to notAfter.
        backdate: From notBefore to now.
        latest: The first notAfter of the chain.
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

    Linkerd's proxies renew after 70 % of the time until then, and add no randomness:
    without the draw, proxies that start together would always renew together.

    Args:
        now: UTC.
        not_after: The first notAfter of all certificates on the path; after `now`.
        draw: A random number from 0 to 1.
    """
    share = LEAST_SHARE + (MOST_SHARE - LEAST_SHARE) * draw
    return now + (not_after - now) * (1 - share)
