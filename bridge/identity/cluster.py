"""One cluster: what the configuration says of it, and its keys, read a first time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from bridge.config import BridgeConfig, ClusterConfig, TokensConfig
from bridge.config.alike import namespaces_of
from bridge.dns_names import is_label
from bridge.errors import BackendUnavailableError, BridgeError, ConfigError
from bridge.identity.jwks import VerificationKey
from bridge.identity.key_sources import FileSource, KeySource, URLSource
from bridge.identity.keyring import KeyOwners, Keyring
from bridge.spiffe import TrustDomain
from bridge.system.clock import Clock

_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """One cluster, and the keys that its callers are known by."""

    name: str
    trust_domain: TrustDomain
    namespaces: frozenset[str] | None
    """`None` is all."""
    tokens: TokensConfig
    keyring: Keyring

    def allows(self, namespace: str) -> bool:
        """Say whether its callers may have names of this namespace."""
        return self.namespaces is None or namespace in self.namespaces


def read_clusters(
    config: BridgeConfig, *, clock: Clock, previous: Sequence[Cluster] = ()
) -> list[Cluster]:
    """Make every cluster of the configuration and read its keys, all at a time.

    A URL that does not answer is no error: the keys come later, and the keyring's
    `problems` tells.

    Args:
        config: The whole configuration.
        clock: The time of key refreshes.
        previous: The clusters before a reload: where a URL does not answer now, its
            keys go on.

    Raises:
        ConfigError: A key file cannot be read or has no usable key, what a URL
            answered is no key set, a key is weak or symmetric, two clusters have the
            same key, or a namespace cannot exist. Lists every problem.
    """
    owners = KeyOwners()
    problems: list[str] = []
    clusters: list[Cluster] = []
    for index, entry in enumerate(config.clusters):
        problems += _impossible_namespaces(entry, index)
        try:
            clusters.append(_cluster(config, index, owners, clock))
        except ConfigError as error:
            problems.append(f"clusters[{index}].tokens.ca_file: {error}")
    if len(clusters) == len(config.clusters):
        problems += _load(clusters, clock, previous)
    if problems:
        raise ConfigError("\n".join(problems))
    return clusters


def _cluster(
    config: BridgeConfig, index: int, owners: KeyOwners, clock: Clock
) -> Cluster:
    entry = config.clusters[index]
    return Cluster(
        name=entry.name,
        trust_domain=TrustDomain(entry.trust_domain or config.trust_domain),
        namespaces=namespaces_of(entry, index),
        tokens=entry.tokens,
        keyring=Keyring(
            _source(config, entry.tokens),
            partial(owners.claim, entry.name),
            max_age=entry.tokens.max_key_age,
            floor=entry.tokens.refresh_floor,
            clock=clock,
        ),
    )


def _source(config: BridgeConfig, entry: TokensConfig) -> KeySource:
    if entry.file is not None:
        return FileSource(config.resolve(entry.file))
    ca_file = None if entry.ca_file is None else config.resolve(entry.ca_file)
    return URLSource(entry.url or "", entry.issuer, ca_file)


def _impossible_namespaces(entry: ClusterConfig, index: int) -> list[str]:
    return [
        f'clusters[{index}].namespaces: expected names of namespaces, or "*" '
        f"(found {name!r})"
        for name in entry.namespaces or ()
        if name != "*" and not is_label(name)
    ]


def _load(
    clusters: Sequence[Cluster], clock: Clock, previous: Sequence[Cluster]
) -> list[str]:
    with ThreadPoolExecutor(min(_READERS, len(clusters))) as pool:
        answers = list(pool.map(_read, clusters))
    now, problems = clock(), list[str]()
    for index, (cluster, answer) in enumerate(zip(clusters, answers, strict=True)):
        where = f"clusters[{index}].tokens.{cluster.tokens.source_key}"
        if isinstance(answer, ConfigError):
            problems.append(f"{where}: {_place(cluster.tokens)}: {answer}")
        elif isinstance(answer, BridgeError):
            _inherit(cluster, previous)
            cluster.keyring.failed(answer)
        else:
            foreign = cluster.keyring.adopt(answer, now)
            problems += [
                f"{where}: {_place(cluster.tokens)}: expected keys of its own; "
                f"the cluster {owner} has the same one"
                for owner in sorted(set(foreign.values()))
            ]
    return problems


def _read(cluster: Cluster) -> Sequence[VerificationKey] | BridgeError:
    try:
        return cluster.keyring.read()
    except (ConfigError, BackendUnavailableError) as error:
        return error


def _inherit(cluster: Cluster, previous: Sequence[Cluster]) -> None:
    for before in previous:
        if before.name == cluster.name and before.tokens == cluster.tokens:
            cluster.keyring.inherit(before.keyring)


def _place(entry: TokensConfig) -> str:
    return str(entry.file or entry.url or entry.issuer)
