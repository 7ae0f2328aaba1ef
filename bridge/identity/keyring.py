"""The keys of one cluster: cached, and refreshed in the background.

If a refresh fails, the old keys stay. A key that the source no longer has is dropped by
the next successful refresh. Keys that were not confirmed for `max_key_age` are no
longer used, and those of another API server than is asked now are not either. Only a
few requests wait for a fetch, and only half a second.
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bridge.errors import AuthenticationError, BridgeError, ReviewError
from bridge.identity.jwks import VerificationKey, parse_jwks
from bridge.identity.key_sources import KeySource
from bridge.identity.service_account_token import shown
from bridge.system.clock import Clock

_log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0
_CONFIRM_SECONDS = 60.0
_REFRESH_SECONDS = 300.0
_WAIT_SECONDS = 0.5
_MOST_WAITING = 2
_CLOSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _State:
    keys: Mapping[str | None, tuple[VerificationKey, ...]]
    confirmed: datetime
    origin: str


class KeyOwners:
    """The cluster that each key belongs to. A key belongs to one cluster alone.

    The holder of a cluster's key can name any of its service accounts. If two clusters
    had the same key, each could name those of the other. Of those that claim a key, the
    first of the configuration has it, whichever came first: a cluster that shows a
    public key of another one takes nothing from it.

    Args:
        order: The names of all clusters, as the configuration has them.
    """

    def __init__(self, order: Sequence[str]) -> None:
        self._claims: dict[str, frozenset[str]] = {name: frozenset() for name in order}
        self._owner: Mapping[str, str] = {}
        self._refused: Mapping[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def claim(self, cluster: str, keys: Sequence[VerificationKey]) -> dict[str, str]:
        """Replace the keys of `cluster`.

        Returns:
            The fingerprint of each key that belongs to another cluster, and the name
            of that cluster.
        """
        with self._lock:
            self._claims[cluster] = frozenset(key.sha256 for key in keys)
            owner: dict[str, str] = {}
            for name, digests in self._claims.items():
                for digest in digests:
                    owner.setdefault(digest, name)
            refused = {
                (name, digest): owner[digest]
                for name, digests in self._claims.items()
                for digest in digests
                if owner[digest] != name
            }
            new = refused.keys() - self._refused.keys()
            self._owner, self._refused = owner, refused
        for name, digest in sorted(new):
            _log.warning(
                "cluster %s: the key with SHA-256 %s is not used: cluster %s, which "
                "comes before it, has it, too",
                name,
                digest,
                refused[name, digest],
            )
        return {digest: by for (name, digest), by in refused.items() if name == cluster}

    def owner(self, key: VerificationKey) -> str:
        """Return the cluster that a key belongs to; empty if none has claimed it."""
        return self._owner.get(key.sha256, "")

    def refused(self) -> dict[str, int]:
        """Return how many keys of each cluster that has some belong to another one."""
        counts = Counter(name for name, _ in self._refused)
        return {name: counts[name] for name, keys in self._claims.items() if keys}


class Keyring:
    """The keys of one cluster. For all threads.

    Args:
        source: Reads the keys.
        owners: Which cluster has which key.
        cluster: The name of this one.
        max_age: How long keys are used after they were last confirmed.
        floor: The shortest time between two fetches for unknown key IDs.
        clock: The time of a refresh.
    """

    def __init__(
        self,
        source: KeySource,
        owners: KeyOwners,
        cluster: str,
        *,
        max_age: timedelta,
        floor: timedelta,
        clock: Clock,
    ) -> None:
        self._source = source
        self._owners = owners
        self._cluster = cluster
        self._max_age = max_age
        self._clock = clock
        seconds = max_age.total_seconds() / 4
        self._floor = _POLL_SECONDS if source.is_local else floor.total_seconds()
        self._pause = _POLL_SECONDS
        if not source.is_local:
            self._pause = max(self._floor, min(_REFRESH_SECONDS, seconds))
        self._confirm = timedelta(seconds=min(_CONFIRM_SECONDS, seconds))
        self._last: _State | None = None
        self._origin = ""
        self._failure = ""
        self._reading = threading.Lock()
        self._tried: datetime | None = None
        self._looked: datetime | None = None
        self._changed = threading.Condition()
        # What follows is read and written under `_changed`.
        self._worker: threading.Thread | None = None
        self._wanted = self._busy = self._closed = False
        self._rounds = self._waiting = 0

    def keys(self, kid: str | None, now: datetime) -> tuple[VerificationKey, ...]:
        """Return the keys with this ID, or those without one if no key has it.

        Args:
            kid: From the token's header; None if it has none.
            now: The time of the request.

        Returns:
            One key, or a few.

        Raises:
            AuthenticationError: The cluster has no such key.
            ReviewError: The keys were never fetched, are too old, or are
                being fetched. The caller should try again.
        """
        if not (found := self._find(kid, now)):
            self._look_again()
            found = self._find(kid, now)
        if found:
            return found
        if self._believed(now) is None:
            raise ReviewError(
                "the keys of this cluster could not be fetched"
                if self._state is None
                else "the keys of this cluster are too old",
                rule="cluster.keys",
                detail=self._failure,
            )
        raise AuthenticationError(
            "the token's key is not one of its cluster",
            rule="token.key",
            detail=f"kid {shown(kid)}",
        )

    def has(self, kid: str | None) -> bool:
        """Return whether the cluster has a key with this ID."""
        state = self._state
        return state is not None and bool(self._own(state, kid))

    def has_keys(self, now: datetime) -> bool:
        """Return whether there are keys that are not too old."""
        state = self._believed(now)
        if state is None and self._last is not None:
            self.doubt()  # another server has others
        return state is not None and any(self._own(state, kid) for kid in state.keys)

    @property
    def count(self) -> int:
        """How many keys there are, of any age."""
        state = self._state
        return 0 if state is None else sum(map(len, state.keys.values()))

    def age(self, now: datetime) -> float | None:
        """Return the seconds since the keys were last confirmed; None without any."""
        state = self._state
        return None if state is None else (now - state.confirmed).total_seconds()

    @property
    def _state(self) -> _State | None:
        # What was read last, unless another server is asked now.
        state = self._last
        if state is None or state.origin != self._source.origin():
            return None
        return state

    def _believed(self, now: datetime) -> _State | None:
        state = self._state
        if state is None or now - state.confirmed > self._max_age:
            return None
        return state

    def _find(self, kid: str | None, now: datetime) -> tuple[VerificationKey, ...]:
        state = self._believed(now)
        if state is None:
            return ()
        return self._own(state, kid) or self._own(state, None)

    def _own(self, state: _State, kid: str | None) -> tuple[VerificationKey, ...]:
        # Asked at each use: a cluster that comes first may have claimed one meanwhile.
        found = state.keys.get(kid, ())
        return tuple(key for key in found if self._owners.owner(key) == self._cluster)

    def doubt(self) -> None:
        """Fetch the keys soon: a token's signature fits none that should verify it.

        The issuer may have a new key under an old ID, or without one. Unlike for an
        unknown ID, no request waits for it.
        """
        if not self._source.is_local:  # changes of a file are seen anyway
            with self._changed:
                self._wanted = True
                self._start()
                self._changed.notify_all()

    def _look_again(self) -> None:
        if self._source.is_local:
            self.refresh()
            return
        with self._changed:
            self._wanted = True
            if not self._busy and self._due_in() > 0:
                return  # too soon; the background thread does it later
            self._start()
            self._changed.notify_all()
            if self._waiting >= _MOST_WAITING or not self._wait_for_round():
                raise ReviewError(
                    "the keys of this cluster are being fetched", rule="cluster.keys"
                )

    def _wait_for_round(self) -> bool:
        before = self._rounds
        self._waiting += 1
        try:
            return self._changed.wait_for(
                lambda: self._rounds != before or self._closed, _WAIT_SECONDS
            )
        finally:
            self._waiting -= 1

    def refresh(self, *, always: bool = False) -> None:
        """Read the keys if they may have changed or their confirmation is due.

        An error is kept for `problems`.
        """
        with self._reading:
            now = self._looked = self._clock()
            if (
                not always
                and self._tried is not None
                and abs(now - self._tried) < self._confirm
                and not self._source.changed()
            ):
                return
            try:
                self.adopt(self._read(), now)
            except BridgeError as error:
                self.failed(error)
            self._tried = self._clock()

    def read(self) -> tuple[VerificationKey, ...]:
        """Read the keys from the source, without using them.

        Raises:
            ConfigError: The source or its keys are wrong.
            ReviewError: The source does not answer now.
        """
        with self._reading:
            self._tried = self._looked = self._clock()
            return self._read()

    def _read(self) -> tuple[VerificationKey, ...]:
        # Who is asked is noted first: if that changes meanwhile, the keys are not used.
        self._origin = self._source.origin()
        return parse_jwks(self._source.read())

    def adopt(
        self, keys: Sequence[VerificationKey], confirmed: datetime
    ) -> Mapping[str, str]:
        """Replace the keys by these. Those of another cluster are not used.

        Returns:
            The unused keys, as `KeyOwners.claim`.
        """
        foreign = self._owners.claim(self._cluster, keys)
        kept: dict[str | None, tuple[VerificationKey, ...]] = {}
        for key in keys:
            kept[key.kid] = (*kept.get(key.kid, ()), key)
        self._last = _State(kept, confirmed, self._origin)
        if self._failure:
            _log.info("token keys are read again, after: %s", self._failure)
        self._failure = ""
        return foreign

    def failed(self, error: BridgeError) -> None:
        """Store the error of a read, for `problems`, and log it when it is new."""
        failure = error.detail or str(error)
        if failure != self._failure:
            _log.warning("token keys cannot be read: %s", failure)
        self._failure = failure

    def problems(self, now: datetime) -> list[str]:
        """Return the problems of the keys for an operator, one sentence each."""
        state, failure = self._state, self._failure
        if state is None:
            return [f"has no keys yet: {failure or 'not fetched so far'}"]
        found = [
            f"the key {shown(key.kid)} is not used: it is also {owner}'s"
            for keys in state.keys.values()
            for key in keys
            if (owner := self._owners.owner(key)) != self._cluster
        ]
        if failure or now - state.confirmed > self._max_age:
            hours = (now - state.confirmed) / timedelta(hours=1)
            found.append(
                f"its keys were last confirmed {hours:.1f} hours ago: "
                f"{failure or 'no refresh since'}"
            )
        return found

    def start(self) -> None:
        """Start the background refresh."""
        with self._changed:
            self._start()

    def close(self) -> None:
        """Stop the background refresh. A fetch in progress ends by its time limit."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            worker = self._worker
        if worker is not None:
            worker.join(_CLOSE_SECONDS)

    def _start(self) -> None:
        if self._worker is None and not self._closed:
            self._worker = threading.Thread(
                target=self._work, name="cluster-keys", daemon=True
            )
            self._worker.start()

    def _due_in(self) -> float:
        if self._looked is None:
            return 0.0
        pause = self._floor if self._wanted or self._failure else self._pause
        elapsed = (self._clock() - self._looked).total_seconds()
        # If the clock is set back, the refresh must go on.
        return pause - elapsed if elapsed >= 0 else 0.0

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (seconds := self._due_in()) > 0:
                    self._changed.wait(seconds)
                if self._closed:
                    return
                self._wanted, self._busy = False, True
            self.refresh(always=not self._source.is_local)
            with self._changed:
                self._busy = False
                self._rounds += 1
                self._changed.notify_all()
