"""The registry of clusters: identifies callers, and limits each cluster's names.

A credential belongs to one cluster. The caller names it (`clusterid`), and the token is
verified by the keys, or the API server, of that cluster alone.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.config import (
    BoundConfig,
    BridgeConfig,
    ClusterConfig,
    JWKSConfig,
)
from bridge.dns_names import is_label
from bridge.errors import (
    AuthenticationError,
    BridgeError,
    ConfigError,
    DeniedError,
    ReviewError,
)
from bridge.identity import client_certificate
from bridge.identity.caller import (
    Caller,
    CertificateCredential,
    Credential,
    TokenCredential,
    TokenVerifier,
    Verification,
)
from bridge.identity.jwks import VerificationKey
from bridge.identity.key_sources import KeySource
from bridge.identity.keyring import KeyOwners, Keyring
from bridge.identity.node_authorization import NodeAuthorization
from bridge.identity.offline_verifier import OfflineVerifier, source_of
from bridge.identity.service_account_token import shown
from bridge.identity.token_review import ReviewVerifier
from bridge.kubernetes.api import APIServer
from bridge.kubernetes.clients import (
    WatchSource,
    access_source_of,
    api_server_of,
    key_of,
    remote_secrets_of,
)
from bridge.kubernetes.pods import LivePods
from bridge.kubernetes.remote_secrets import RemoteSecrets
from bridge.resilience.budget import Budget
from bridge.resilience.bulkhead import shared_places_of
from bridge.spiffe import SpiffeID, TrustDomain
from bridge.system.background import joined
from bridge.system.clock import Clock

if TYPE_CHECKING:
    from bridge.identity.bound_token import BoundVerifier

_START_SECONDS = 6.0
"""How long a start waits for keys: a little longer than for one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """One cluster, with what verifies its callers' tokens."""

    name: str
    trust_domain: TrustDomain
    namespaces: frozenset[str] | None
    """The namespaces that its callers may have names of; None for all."""
    verifier: TokenVerifier
    nodes: NodeAuthorization
    """Which workloads the proxies of its nodes may ask for."""
    watch: "BoundVerifier | None" = None
    """The verifier, where it goes by a watch."""

    @property
    def keyring(self) -> Keyring | None:
        """The keys of its tokens; None where the API server reviews each of them."""
        if isinstance(self.verifier, OfflineVerifier):
            return self.verifier.keyring
        return None if self.watch is None else self.watch.keyring

    def allows(self, namespace: str) -> bool:
        """Return whether its callers may have names of this namespace."""
        return self.namespaces is None or namespace in self.namespaces


def _read_clusters(config: BridgeConfig, make: "_VerifierMaker") -> list[Cluster]:
    problems: list[str] = []
    clusters: list[Cluster] = []
    for index, entry in enumerate(config.clusters):
        problems += _impossible_namespaces(entry, index)
        try:
            verifier, pods = make.verifier(entry)
        except ConfigError as error:
            tokens = entry.tokens
            key = "ca_file" if isinstance(tokens, JWKSConfig) else key_of(tokens)
            problems.append(f"clusters[{index}].tokens.{key}: {error}")
            continue
        domain = TrustDomain(entry.trust_domain or config.trust_domain)
        clusters.append(
            Cluster(
                name=entry.name,
                trust_domain=domain,
                namespaces=entry.allowed_namespaces(is_first=index == 0),
                verifier=verifier,
                watch=make.bound.get(entry.name),
                nodes=NodeAuthorization(entry.trusted_node_accounts, domain, pods),
            )
        )
    if len(clusters) == len(config.clusters):
        problems += _load(config, make.offline)
    if problems:
        raise ConfigError("\n".join(problems))
    return clusters


class _VerifierMaker:
    def __init__(
        self,
        config: BridgeConfig,
        clock: Clock,
        owners: KeyOwners,
        watched: Path | None,
        secrets: RemoteSecrets | None,
    ) -> None:
        self._secrets = secrets
        self.offline: dict[str, OfflineVerifier] = {}
        self.bound: dict[str, BoundVerifier] = {}
        self._watched = watched
        self._owners = owners
        self._clock = clock
        reviewed = [one for one in config.clusters if one.tokens.verify != "jwks"]
        # API servers that hang leave a front threads for the calls of others. Each has
        # places of its own, however many hang; those that answer share the others.
        count, all_places = len(reviewed), shared_places_of(config.limits.threads)
        self._places = max(1, all_places // max(1, 2 * count))
        self._spare = threading.Semaphore(max(0, all_places - count * self._places))

    def verifier(self, entry: ClusterConfig) -> tuple[TokenVerifier, LivePods | None]:
        tokens = entry.tokens
        if isinstance(tokens, JWKSConfig):
            return self._offline(entry.name, tokens, source_of(tokens)), None
        source = access_source_of(entry, self._secrets)
        server = api_server_of(tokens, self._places, source, self._spare)
        review = ReviewVerifier(server)
        if not isinstance(tokens, BoundConfig):
            return review, LivePods(server)
        self.bound[entry.name] = self._bound(entry, tokens, server, review)
        return self.bound[entry.name], LivePods(server)

    def _bound(
        self,
        entry: ClusterConfig,
        tokens: BoundConfig,
        server: APIServer,
        review: ReviewVerifier,
    ) -> "BoundVerifier":
        # Imported here: it brings SQLite, which no other worker needs.
        from bridge.identity.bound_token import (  # noqa: PLC0415
            APIServerKeys,
            BoundVerifier,
            WatchedObjects,
        )
        from bridge.kubernetes.objects import ObjectIndex  # noqa: PLC0415

        name, called = entry.name, WatchSource(entry, self._secrets)
        return BoundVerifier(
            name,
            self._offline(name, tokens, APIServerKeys(server, called)),
            review,
            WatchedObjects(
                None if self._watched is None else ObjectIndex(self._watched),
                called,
                server,
            ),
            max_age=tokens.max_watch_age,
        )

    def _offline(
        self,
        name: str,
        tokens: JWKSConfig | BoundConfig,
        source: KeySource,
    ) -> OfflineVerifier:
        self.offline[name] = OfflineVerifier(
            name,
            tokens,
            source,
            owners=self._owners,
            siblings=self.offline,
            clock=self._clock,
        )
        return self.offline[name]


def _impossible_namespaces(entry: ClusterConfig, index: int) -> list[str]:
    return [
        f'clusters[{index}].namespaces: expected names of namespaces, or "*" '
        f"(found {name!r})"
        for name in entry.namespaces or ()
        if name != "*" and not is_label(name)
    ]


def _load(config: BridgeConfig, made: Mapping[str, OfflineVerifier]) -> list[str]:
    # An API server is asked later: one that hangs holds up no start.
    offline = {
        one.name: made[one.name]
        for one in config.clusters
        if isinstance(one.tokens, JWKSConfig)
    }
    answers = _read(offline)
    problems = {name: one.adopt(answers[name]) for name, one in offline.items()}
    return [
        f"clusters[{index}].tokens.{entry.tokens.source_key}: "
        f"{entry.tokens.place}: {problem}"
        for index, entry in enumerate(config.clusters)
        if isinstance(entry.tokens, JWKSConfig)
        for problem in problems[entry.name]
    ]


_Answer = Sequence[VerificationKey] | BridgeError


def _read(offline: Mapping[str, OfflineVerifier]) -> Mapping[str, _Answer]:
    # All at once. One whose name is looked up without an end, or that drips, holds up
    # no start: its keys are fetched again later.
    late = ReviewError("no keys", rule="cluster.keys", detail="no answer so far")
    answers: dict[str, _Answer] = dict.fromkeys(offline, late)

    def read(name: str, one: OfflineVerifier) -> None:
        try:
            answers[name] = one.keyring.read()
        except (ConfigError, ReviewError) as error:
            answers[name] = error

    threads = [
        threading.Thread(target=read, args=each, name="cluster-keys", daemon=True)
        for each in offline.items()
    ]
    for thread in threads:
        thread.start()
    joined(threads, _START_SECONDS)
    return answers.copy()


_SCHEME = "Bearer "


class ClusterRegistry:
    """The clusters of one configuration. For all threads.

    All keys are read in parallel. A URL that does not answer is no error: its keys are
    fetched later, and the keyring's `problems` reports it. No API server is asked: one
    that hangs, or is away, holds up no start.

    Args:
        config: The whole configuration.
        clock: The time of key refreshes.
        watched: The index of what the watcher has seen; None where none runs.

    Raises:
        ConfigError: A key file cannot be read or has no usable key, the answer of a URL
            is no key set, a key is weak or symmetric, two clusters have the same key,
            a namespace is no valid name, or there is no API server to ask. Lists every
            problem.
    """

    def __init__(
        self, config: BridgeConfig, *, clock: Clock, watched: Path | None = None
    ) -> None:
        self.secrets = remote_secrets_of(config)
        """The credentials of clusters that are in remote secrets."""
        self._owners = KeyOwners([one.name for one in config.clusters])
        self._clock = clock
        make = _VerifierMaker(config, clock, self._owners, watched, self.secrets)
        self.clusters: Sequence[Cluster] = _read_clusters(config, make)
        """In the order of the configuration."""
        # Istio's agent sends an empty ID if none is configured.
        self._names = {"": self.clusters[0]} | {
            name: cluster
            for cluster, entry in zip(self.clusters, config.clusters, strict=True)
            for name in (entry.name, *entry.aliases)
        }

    def identify(
        self,
        credential: Credential,
        *,
        audiences: frozenset[str],
        now: datetime,
        budget: Budget,
    ) -> Caller:
        """Identify the caller by its credential (2).

        Args:
            credential: The credential that the front received.
            audiences: The front's audiences: a token must have one of them.
            now: The time of the request.
            budget: What is left of the call's time.

        Raises:
            AuthenticationError: The credential is absent, ambiguous or invalid, or its
                cluster is unknown.
            ReviewError: Whether the token is good cannot be told now: the cluster has
                no keys, or its API server gives no answer. The caller should try again.
        """
        if isinstance(credential, CertificateCredential):
            return self._by_certificate(credential, now)
        return self._by_token(credential, audiences, now, budget)

    def acting_for(self, requester: Caller, wanted: str, *, budget: Budget) -> Caller:
        """Return the workload that a node's proxy asks for (3).

        Args:
            requester: The proxy, identified by its credential.
            wanted: The identity that it asks for, as it came.
            budget: What is left of the call's time.

        Raises:
            DeniedError: The requester may not have this identity.
            ReviewError: Whether it may cannot be told now.
        """
        nodes = self._named(requester.cluster).nodes
        return requester.acting_for(nodes.authorize(requester, wanted, budget))

    def node_of(self, caller: Caller, *, budget: Budget) -> str:
        """Return the node whose pods a caller may ask for; empty if it is no proxy.

        Args:
            caller: Identified by its credential.
            budget: What is left of the call's time.

        Raises:
            DeniedError: Its account is a proxy's, and it may ask for no pods.
            ReviewError: It cannot be told now.
        """
        nodes = self._named(caller.cluster).nodes
        return nodes.node_of(caller, budget) if nodes.is_proxy(caller) else ""

    def require_allowed(self, caller: Caller) -> None:
        """Refuse a caller whose cluster may not have names of its namespace.

        Raises:
            DeniedError: The namespace is not on the cluster's list, or the cluster is
                unknown.
        """
        if not self._named(caller.cluster).allows(caller.namespace):
            raise DeniedError(
                "the caller's cluster may not have names of this namespace",
                rule="cluster.namespace",
                detail=f"cluster {caller.cluster}, namespace {caller.namespace}",
            )

    def trust_domain_of(self, cluster: str) -> TrustDomain:
        """Return the trust domain of the cluster with this name.

        Raises:
            DeniedError: There is no such cluster.
        """
        return self._named(cluster).trust_domain

    def problems(self) -> list[str]:
        """Return the problems of all clusters' keys, one sentence each."""
        found = self._problems_of([cluster.name for cluster in self.clusters])
        return found if self.secrets is None else found + self.secrets.problems()

    def without_keys(self) -> list[str]:
        """Return the names of the clusters that have no keys to verify tokens with."""
        now = self._clock()
        return [one.name for one in self.clusters if not one.verifier.can_verify(now)]

    def without_credentials(self) -> list[str]:
        """Return the names of the clusters whose remote secret is not there."""
        missing = frozenset[str]() if self.secrets is None else self.secrets.missing()
        return [one.name for one in self.clusters if one.name in missing]

    def unserved(self, callers: Mapping[str, Collection[str]]) -> list[str]:
        """Return the fronts that can verify no token, one sentence each.

        Args:
            callers: The fronts, each with the names of its callers' clusters.
        """
        without_keys = set(self.without_keys())
        return [
            f"front {front} can verify no token: {'; '.join(self._problems_of(names))}"
            for front, names in callers.items()
            if without_keys.issuperset(names)
        ]

    def modes(self) -> list[tuple[str, Verification]]:
        """Return how each cluster's tokens are verified now."""
        now = self._clock()
        for one in self.clusters:
            if one.watch is not None:
                one.watch.look(now)
        return [(one.name, one.verifier.verified_by) for one in self.clusters]

    def watch_ages(self) -> list[tuple[str, float]]:
        """Return the age of each watch of a cluster, in seconds."""
        return [
            (one.name, age)
            for one in self.clusters
            if one.watch is not None and (age := one.watch.objects.age()[0]) is not None
        ]

    def refused_keys(self) -> dict[str, int]:
        """Return how many keys of each cluster are not used: an earlier one's."""
        return self._owners.refused()

    def watched_objects(self) -> list[tuple[str, str, int]]:
        """Return each watched cluster and kind, and how many objects were seen."""
        return [
            (one.name, kind, count)
            for one in self.clusters
            if one.watch is not None
            for kind, count in one.watch.objects.counts().items()
        ]

    def key_ages(self) -> list[tuple[str, float]]:
        """Return the time since each cluster's keys were confirmed, in seconds."""
        now = self._clock()
        return [
            (one.name, age)
            for one in self.clusters
            if one.keyring is not None and (age := one.keyring.age(now)) is not None
        ]

    def start(self) -> None:
        """Start the background refresh of keys."""
        if self.secrets is not None:
            self.secrets.start()
        for cluster in self.clusters:
            cluster.verifier.start()

    def close(self) -> None:
        """Stop the background refresh. Requests in progress may finish."""
        if self.secrets is not None:
            self.secrets.close()
        for cluster in self.clusters:
            cluster.verifier.close()

    def _problems_of(self, names: Collection[str]) -> list[str]:
        now = self._clock()
        return [
            f"cluster {cluster.name}: {problem}"
            for cluster in self.clusters
            if cluster.name in names
            for problem in cluster.verifier.problems(now)
        ]

    def _named(self, name: str) -> Cluster:
        cluster = self._names.get(name)
        if cluster is None or cluster.name != name:
            raise DeniedError("the caller's cluster is unknown", rule="cluster.unknown")
        return cluster

    def _by_token(
        self,
        credential: TokenCredential,
        audiences: frozenset[str],
        now: datetime,
        budget: Budget,
    ) -> Caller:
        token = _bearer_token(credential.authorization)
        cluster = self._named_by_header(credential.cluster_ids)
        account = cluster.verifier.verify(
            token, audiences=audiences, now=now, budget=budget
        )
        return Caller(
            spiffe_id=_name_of(cluster.trust_domain, account.namespace, account.name),
            cluster=cluster.name,
            credential="token",
            verified_by=account.verified_by or cluster.verifier.verified_by,
            namespace=account.namespace,
            service_account=account.name,
            pod=account.pod,
            proven_at=int(now.timestamp()),
        )

    def _named_by_header(self, cluster_ids: Sequence[str]) -> Cluster:
        if len(cluster_ids) > 1:
            raise AuthenticationError(
                "clusterid is given more than once", rule="cluster.header"
            )
        name = cluster_ids[0] if cluster_ids else ""
        cluster = self._names.get(name)
        if cluster is None:
            raise AuthenticationError(
                "no cluster of this clusterid is known",
                rule="cluster.unknown",
                detail=f"clusterid {shown(name)}: to accept it, "
                "add it to aliases of its cluster",
            )
        return cluster

    def _by_certificate(
        self, credential: CertificateCredential, now: datetime
    ) -> Caller:
        spiffe_id = client_certificate.spiffe_id_of(credential.leaf, now=now)
        domain = spiffe_id.trust_domain
        fitting = [one for one in self.clusters if one.trust_domain == domain]
        if not fitting:
            raise AuthenticationError(
                "the certificate is of a foreign trust domain",
                rule="certificate.trust-domain",
                detail=str(spiffe_id)[:300],
            )
        namespace, name = spiffe_id.service_account or ("", "")
        # A certificate does not identify its cluster. The first cluster that may have
        # the name is taken: the configuration is refused if a rule tells several apart.
        cluster = next((one for one in fitting if one.allows(namespace)), fitting[0])
        return Caller(
            spiffe_id=spiffe_id,
            cluster=cluster.name,
            credential="certificate",
            verified_by="certificate",
            namespace=namespace,
            service_account=name,
        )


def _bearer_token(authorization: Sequence[str]) -> str:
    if not authorization:
        raise AuthenticationError("there is no token", rule="token.missing")
    if len(authorization) > 1:
        raise AuthenticationError(
            "authorization is given more than once", rule="token.repeated"
        )
    # Compared byte for byte, as istiod does.
    if not authorization[0].startswith(_SCHEME):
        raise AuthenticationError(
            'authorization must start with "Bearer "', rule="token.scheme"
        )
    return authorization[0][len(_SCHEME) :]


# The pods of a deployment share a name, so it is checked once for all of them.
_name_of = lru_cache(maxsize=4096)(SpiffeID.of_service_account)
