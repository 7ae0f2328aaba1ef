"""Verify tokens offline, and by a watch of what they are bound to: `verify: bound`.

The signature and the claims are verified by the cluster's keys. Whether the pod and the
account of a token are still there, the watch has seen: no request asks the API server,
but for an object that the watch has not seen. Where the watch is too old, or there are
no keys, the API server reviews each token.

Source:
    k8s.io/kubernetes, pkg/serviceaccount/claims.go (Validate).
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal

from bridge.errors import AuthenticationError, ReviewError
from bridge.identity.caller import Pod, ServiceAccount
from bridge.identity.offline_verifier import OfflineVerifier
from bridge.identity.service_account_token import LEEWAY_SECONDS
from bridge.identity.token_review import ReviewVerifier
from bridge.kubernetes.api import METADATA, APIServer, unreadable
from bridge.kubernetes.objects import ACCOUNTS, PODS, ClusterObject, ObjectIndex
from bridge.resilience.budget import Budget

_JWKS = "/openid/v1/jwks"
_JWKS_TYPE = "application/jwk-set+json"
_FETCH_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_MISS_SECONDS = 1.0
_MOST_MISSES = 1024
_WHAT = {PODS: "pod", ACCOUNTS: "service account"}
_log = logging.getLogger(__name__)


class APIServerKeys:
    """The keys of a cluster, from its API server. See KeySource.

    Args:
        server: Is asked with the cluster's own credentials.
        origin: Returns what the cluster is called in the index: another name once a
            remote secret has another API server.
    """

    is_local = False

    def __init__(self, server: APIServer, origin: Callable[[], str]) -> None:
        self._server = server
        self._origin = origin

    def changed(self) -> bool:
        """See KeySource.changed: only a fetch can tell."""
        return True

    def origin(self) -> str:
        """See KeySource.origin."""
        return self._origin()

    def read(self) -> bytes:
        """See KeySource.read."""
        budget = Budget.of_seconds(_FETCH_SECONDS)
        found = self._server.get(_JWKS, {}, budget, accept=_JWKS_TYPE)
        if found is None:
            raise ReviewError(
                "the keys of this cluster cannot be fetched",
                rule="cluster.keys",
                detail=f"the API server has no {_JWKS}",
            )
        return json.dumps(found).encode()


class WatchedObjects:
    """What is known of the objects of one cluster, and how up to date that is.

    Args:
        index: What the watcher has seen; None where no watcher runs.
        source: Returns what the cluster is called in the index; empty where nobody
            watches it now.
        server: Is asked for what the watcher has not seen.
        monotonic: The clock of the watches.
    """

    def __init__(
        self,
        index: ObjectIndex | None,
        source: Callable[[], str],
        server: APIServer,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._source = source
        self._live = _LiveLookups(server, monotonic)
        self._monotonic = monotonic
        self._unread: tuple[str, str, str] | None = None

    @property
    def is_watched(self) -> bool:
        """Whether a process watches them for this one."""
        return self._index is not None

    @property
    def has_failed(self) -> bool:
        """Whether an object could not be looked up, and still cannot."""
        return self._unread is not None

    def age(self) -> tuple[float | None, str]:
        """Return the seconds since the watch heard of its API server, and its trouble.

        The seconds are None where the watch has not listed everything yet, and where
        what it has seen cannot be read.
        """
        if self._index is None:
            return None, "no process watches it here"
        if self._unread is not None:
            try:
                self._index.find(self._source(), *self._unread)
            except ReviewError as error:
                return None, error.detail
            self._unread = None
        state = self._index.state(self._source(), (PODS, ACCOUNTS))
        if state.seen_at is None:
            return None, state.trouble
        return self._monotonic() - state.seen_at, state.trouble

    def counts(self) -> dict[str, int]:
        """Return how many there are of each kind; empty if that is not known."""
        return {} if self._index is None else self._index.counts(self._source())

    def require(
        self,
        kind: str,
        namespace: str,
        name: str,
        uid: str,
        *,
        now: float,
        until: Budget,
    ) -> None:
        """Refuse a token whose object is gone, or is another one of the same name.

        Args:
            kind: `PODS` or `ACCOUNTS`.
            namespace: Of the object.
            name: Of the object.
            uid: Of the object, as the token has it.
            now: The time, in seconds since 1970.
            until: What is left of the call's time.

        Raises:
            AuthenticationError: The token is refused.
            ReviewError: The watch has not seen the object, and the API server does not
                answer.
        """
        found = self._seen(kind, namespace, name)
        if found is None or found.uid != uid:
            found = self._live.find(kind, namespace, name, uid, until)
        if found is not None and not _is_gone(found, now):
            return
        state = "is not there" if found is None else "is deleted"
        raise AuthenticationError(
            "what the token is bound to is gone",
            rule="token.gone",
            detail=f"{_WHAT[kind]} {namespace}/{name} with UID {uid} {state}",
        )

    def _seen(self, kind: str, namespace: str, name: str) -> ClusterObject | None:
        if self._index is None:
            return None
        try:
            return self._index.find(self._source(), kind, namespace, name)
        except ReviewError:
            self._unread = kind, namespace, name
            return None

    def close(self) -> None:
        """Close the index."""
        if self._index is not None:
            self._index.close()


def _is_gone(found: ClusterObject, now: float) -> bool:
    # Not from its deletion on: a pod that ends in order may need a certificate.
    return found.deleted_at is not None and found.deleted_at < now - LEEWAY_SECONDS


class BoundVerifier:
    """Verifies the tokens of one cluster that are bound to pods. See TokenVerifier.

    Args:
        cluster: Its name.
        offline: Verifies signatures and claims.
        review: Reviews tokens while the watch is too old.
        objects: What is known of pods and accounts.
        max_age: How old the watch may be.
        monotonic: Tells when to look at the watch again.
    """

    def __init__(
        self,
        cluster: str,
        offline: OfflineVerifier,
        review: ReviewVerifier,
        objects: WatchedObjects,
        *,
        max_age: timedelta,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._offline = offline
        self.keyring = offline.keyring
        """The keys of the cluster."""
        self._review = review
        self.objects = objects
        """What is known of pods and accounts."""
        self._max_age = max_age.total_seconds()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._doubt = "not looked at so far"
        self._is_told = False

    @property
    def verified_by(self) -> Literal["bound", "token_review"]:
        """See TokenVerifier.verified_by: as it would verify a token now."""
        return "token_review" if self._doubt else "bound"

    def verify(
        self, token: str, *, audiences: frozenset[str], now: datetime, budget: Budget
    ) -> ServiceAccount:
        """See TokenVerifier.verify."""
        if not self.look(now):
            try:
                return self._watched(token, audiences, now, budget)
            except ReviewError:
                # The keys may have gone after that look. With keys, an API server that
                # does not answer is asked nothing more.
                if self._offline.can_verify(now):
                    raise
        account = self._review.verify(
            token, audiences=audiences, now=now, budget=budget
        )
        _bound_pod(account)
        return replace(account, verified_by="token_review")

    def _watched(
        self, token: str, audiences: frozenset[str], now: datetime, budget: Budget
    ) -> ServiceAccount:
        account = self._offline.verify(
            token, audiences=audiences, now=now, budget=budget
        )
        pod = _bound_pod(account)
        for kind, name, uid in (
            (ACCOUNTS, account.name, account.uid),
            (PODS, pod.name, pod.uid),
        ):
            self.objects.require(
                kind, account.namespace, name, uid, now=now.timestamp(), until=budget
            )
        return replace(account, verified_by="bound")

    def problems(self, now: datetime) -> list[str]:
        """See TokenVerifier.problems."""
        if not self.objects.is_watched:  # `meshca check` has no watcher
            return self._review.problems(now)
        if doubt := self.look(now):
            told = f"the API server reviews each token: {doubt}"
            return [told, *self._review.problems(now)]
        return self._offline.problems(now)

    def look(self, now: datetime) -> str:
        """Look at the watch, and tell a change of mode.

        Returns:
            Why a token is not verified by it now; empty if it is.
        """
        at = self._monotonic()
        if self._is_fresh(at):
            return self._doubt
        with self._lock:
            if self._is_fresh(at):  # another thread has looked in the meantime
                return self._doubt
            doubt = self._found(now)
            if bool(doubt) != bool(self._doubt) or not self._is_told:
                self._tell(doubt)
            self._doubt, self._looked_at = doubt, self._monotonic()
            self._is_told = True
        return doubt

    def _is_fresh(self, at: float) -> bool:
        if self.objects.has_failed and not self._doubt:
            return False
        return at - self._looked_at < _LOOK_SECONDS and self._is_told

    def can_verify(self, now: datetime) -> bool:
        """See TokenVerifier.can_verify: a review can always be tried."""
        return True

    def start(self) -> None:
        """Start the background refresh of keys."""
        self._offline.start()

    def close(self) -> None:
        """Stop that, and let connections go."""
        self._offline.close()
        self._review.close()
        self.objects.close()

    def _found(self, now: datetime) -> str:
        age, trouble = self.objects.age()
        if age is None:
            why = "the watch of pods has not begun"
        elif age > self._max_age:
            why = f"the watch of pods last heard of the API server {age:.0f} s ago"
        elif not self._offline.can_verify(now):
            return "; ".join(self._offline.problems(now)) or "there are no keys"
        else:
            return ""
        return f"{why}: {trouble}" if trouble else why

    def _tell(self, doubt: str) -> None:
        if doubt:
            _log.warning(
                "cluster %s: the API server reviews each token: %s",
                self._cluster,
                doubt,
            )
        else:
            _log.info("cluster %s: tokens are verified by the watch", self._cluster)


def _bound_pod(account: ServiceAccount) -> Pod:
    # One of the old kind, or bound to a Secret or a node, is worth something for as
    # long as that is there: more than one workload may have it.
    if not account.pod.name:
        raise AuthenticationError(
            "the token is bound to no pod",
            rule="token.unbound",
            detail=f"of {account.namespace}/{account.name}",
        )
    return account.pod


class _LiveLookups:
    # Asks for an object by name: one question a name at a time, and a miss is
    # remembered for a second. A hit is not: it may be deleted the next moment.
    def __init__(self, server: APIServer, monotonic: Callable[[], float]) -> None:
        self._server = server
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._flights: dict[tuple[str, ...], _Flight] = {}
        self._misses: dict[tuple[str, ...], float] = {}

    def find(
        self, kind: str, namespace: str, name: str, uid: str, budget: Budget
    ) -> ClusterObject | None:
        """Return the object with this UID; None if there is none."""
        key = (kind, namespace, name, uid)
        with self._lock:
            if self._misses.get(key, float("-inf")) > self._monotonic():
                return None
            flight = self._flights.get(key)
            is_first = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
        if not is_first:
            self._server.awaits(flight.is_over, budget)
            return flight.result()
        try:
            flight.found = found = self._asked(key, budget)
        except ReviewError as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                del self._flights[key]
                if flight.found is None and flight.error is None:
                    self._missed(key)
            flight.is_over.set()
        return found

    def _asked(self, key: tuple[str, ...], budget: Budget) -> ClusterObject | None:
        kind, namespace, name, uid = key
        answer: Mapping[str, object] | None = self._server.get(
            f"/api/v1/namespaces/{namespace}/{kind}/{name}", {}, budget, accept=METADATA
        )
        try:
            found = None if answer is None else ClusterObject.of(answer)
        except ValueError as error:
            raise unreadable(str(error)) from error
        return found if found is not None and found.uid == uid else None

    def _missed(self, key: tuple[str, ...]) -> None:
        now = self._monotonic()
        if len(self._misses) >= _MOST_MISSES:
            self._misses = {one: t for one, t in self._misses.items() if t > now}
        if len(self._misses) < _MOST_MISSES:
            self._misses[key] = now + _MISS_SECONDS


class _Flight:
    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.found: ClusterObject | None = None
        self.error: ReviewError | None = None

    def result(self) -> ClusterObject | None:
        if self.error is not None:
            error = self.error
            raise ReviewError(str(error), rule=error.rule, detail=error.detail)
        return self.found
