"""Watches when the certificates in service end: for the log and for readiness."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime

from bridge.metrics.expiry import OTHER_ANCHOR, CertificateExpiry, ExpiryLevel
from bridge.snapshot.model import Issuer, Snapshot
from bridge.system.background import BackgroundLoop
from bridge.system.clock import Clock

PART = "expiry"
"""The warning in readiness."""
_LOOK_SECONDS = 60.0
_WORDS = {ExpiryLevel.WARNING: "warning", ExpiryLevel.ERROR: "error"}
_LOG_LEVELS = {
    ExpiryLevel.WARNING: logging.WARNING,
    ExpiryLevel.ERROR: logging.ERROR,
}
_log = logging.getLogger(__name__)


class ExpiryWatch:
    """Tells of certificates that end soon, in the log and in readiness.

    Args:
        known: Returns the expiry of every certificate that the bridge depends on.
        current: Returns the current snapshot.
        clock: The time.
    """

    def __init__(
        self,
        known: Callable[[], Iterable[CertificateExpiry]],
        current: Callable[[], Snapshot],
        clock: Clock,
    ) -> None:
        self._known = known
        self._current = current
        self._clock = clock
        self._told: frozenset[str] = frozenset()
        self._loop = BackgroundLoop(
            "expiry", self.look, _LOOK_SECONDS, is_immediate=True
        )

    def start(self) -> None:
        """Begin to look, once a minute."""
        self._loop.start()

    def close(self) -> None:
        """Look no more. May be called again."""
        self._loop.close()

    def look(self) -> None:
        """Log what was not logged before: each day anew, see `CertificateExpiry`."""
        found = dict(self._found())
        for text, level in found.items():
            if text not in self._told:
                _log.log(_LOG_LEVELS[level], "%s", text)
        self._told = frozenset(found)

    def warnings(self) -> dict[str, str]:
        """Return the warning of readiness, the errors first; empty without one."""
        found = sorted(self._found(), key=lambda each: -each[1])
        texts = [f"{_WORDS[level]}: {text}" for text, level in found]
        return {PART: "; ".join(texts)} if texts else {}

    def problem(self, unusable: Collection[str]) -> str:
        """Return which front can issue nothing any more, if its chains ended.

        A chain that is revoked is as one that has ended.

        Args:
            unusable: The names of issuing CAs that cannot sign for another reason.

        Returns:
            Empty while each front has a usable issuing CA whose chain lasts, or where
            none of a front's has ended or is revoked.
        """
        snapshot, now = self._current(), self._clock()
        ended = self.ended()
        revoked = {one.name for one in snapshot.issuers.values() if one.revoked}
        usable = {*snapshot.issuers} - {*unusable} - ended - revoked
        told: list[str] = []
        for front, names in snapshot.rules.routes.items():
            ends = [
                snapshot.issuers[name].revoked
                or _end_of(snapshot.issuers[name], snapshot, now)
                for name in names
                if name in ended | revoked
            ]
            if ends and usable.isdisjoint(names):
                told.append(f"front {front} can issue nothing: {', '.join(ends)}")
        return "; ".join(told)

    def ended(self) -> set[str]:
        """Return the names of the issuing CAs under which nothing can be issued now."""
        snapshot = self._current()
        # Just before its end, a chain permits no useful certificate either: see
        # `bridge.policy.issuance_policy.validity`.
        until = self._clock() + snapshot.rules.top.backdate
        return {
            issuer.name
            for issuer in snapshot.issuers.values()
            if issuer.chain.not_after <= until
        }

    def _found(self) -> Iterator[tuple[str, ExpiryLevel]]:
        # Chains share intermediates and anchors: each certificate is told once.
        now = self._clock()
        same: dict[tuple[str, str, str], list[CertificateExpiry]] = {}
        for one in self._known():
            same.setdefault((one.tier, one.subject, one.serial), []).append(one)
        for group in same.values():
            worst = max(group, key=lambda one: one.longest)
            level = worst.level(now)
            if level >= ExpiryLevel.WARNING and worst.tier != OTHER_ANCHOR:
                of = ", ".join(one.issuing_ca for one in group if one.issuing_ca)
                whose = f" of {of}" if of else ""
                yield f"the {worst.title}{whose} {worst.when(now)}", level


def _end_of(issuer: Issuer, snapshot: Snapshot, now: datetime) -> str:
    first = min(snapshot.expiries(issuer), key=lambda one: one.not_after)
    word = "ended" if first.not_after <= now else "ends"
    return (
        f"the {first.title} of {issuer.name} {word} "
        f"{first.not_after:%Y-%m-%dT%H:%M:%SZ}: replace it"
    )
