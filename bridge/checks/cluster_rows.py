"""What `meshca check` finds of each cluster: API server, rights, keys and watch.

How old the keys and the watch are, the bridge that runs knows, and no other process. So
it is asked, by its admin address.
"""

import http.client
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from bridge.config import BoundConfig, BridgeConfig
from bridge.errors import BridgeError
from bridge.identity.clusters import ClusterRegistry
from bridge.identity.keyring import Keyring
from bridge.kubernetes.rights import (
    BOUND,
    EVENTS,
    NODES,
    REVIEWS,
    SECRETS,
    NeededServer,
    missing_rights,
    needed_servers,
)
from bridge.resilience.budget import Budget
from bridge.system.clock import system_clock

_CHECK_SECONDS = 10.0
_RUNNING_SECONDS = 2.0
_LARGEST_PAGE = 8 << 20
_KEY_AGE = "meshca_token_key_age_seconds"
_WATCH_AGE = "meshca_watch_age_seconds"
_OBJECTS = "meshca_watched_objects"
_MAY = {
    REVIEWS: "review tokens",
    BOUND: "review tokens, and watch what they are bound to",
    NODES: "read pods",
    EVENTS: "write events",
    SECRETS: "list them",
}
_ONE_OF = {"pods": "pod", "serviceaccounts": "service account"}
Row = tuple[str, str, str]
"""What was looked at, the result and a detail: see `Finding`."""


def cluster_rows(config: BridgeConfig, clusters: ClusterRegistry) -> Iterator[Row]:
    """Ask each API server, and the bridge that runs; yield a row for each result.

    Args:
        config: The whole configuration.
        clusters: Built of it. Keys of API servers are fetched.
    """
    secrets = clusters.secrets
    servers = {one.name: one for one in needed_servers(config, secrets)}
    for one in servers.values():
        if one.namespace:
            yield _api_server(one.name, one)
    if secrets is not None:
        secrets.look()
    running = None
    for cluster, entry in zip(clusters.clusters, config.clusters, strict=True):
        yield cluster.name, "ok", f"trust domain {cluster.trust_domain}"
        if cluster.name in servers:
            yield _api_server(f"{cluster.name}, API server", servers[cluster.name])
        keyring = cluster.keyring
        if keyring is not None and cluster.watch is not None:
            keyring.refresh(always=True)
        elif keyring is None or not keyring.count:
            continue  # keys that could not be read are told for all clusters together
        running = running or Running.ask(config.admin.listen)
        yield _keys(cluster.name, keyring, running)
        if isinstance(entry.tokens, BoundConfig):
            yield _watch(cluster.name, entry.tokens, running)


def _api_server(what: str, one: NeededServer) -> Row:
    try:
        with closing(one.open()) as server:
            budget = Budget.of_seconds(_CHECK_SECONDS)
            missing = missing_rights(server, one.needs, budget, namespace=one.namespace)
            place = server.url
    except BridgeError as error:
        why = f": {error.detail}" if error.detail else ""
        return what, "FAILED", f"{error}{why}"
    if missing:
        return what, "FAILED", "; ".join(missing)
    may = " and ".join(text for need, text in _MAY.items() if need in one.needs)
    return what, "ok", f"{place} answers; the bridge may {may}"


def _keys(name: str, keyring: Keyring, running: "Running") -> Row:
    told = [_number(keyring.count, "key")]
    age = running.key_ages.get(name)
    if age is not None:
        told.append(f"confirmed {age:.0f} s ago by the bridge that runs")
    problems = keyring.problems(system_clock())
    result = "warning" if problems else "ok"
    return f"{name}, keys", result, "; ".join([*told, *problems])


def _watch(name: str, tokens: BoundConfig, running: "Running") -> Row:
    what = f"{name}, watch"
    if running.trouble:
        return what, "note", f"not known: {running.trouble}"
    age = running.watch_ages.get(name)
    if age is None:
        return what, "warning", "the bridge that runs has not listed everything yet"
    told = [f"the bridge that runs heard of the API server {age:.0f} s ago"]
    counts = [
        _number(count, _ONE_OF.get(kind, kind))
        for kind, count in running.objects.get(name, {}).items()
    ]
    told += [", ".join(counts)] if counts else []
    is_old = age > tokens.max_watch_age.total_seconds()
    return what, "warning" if is_old else "ok", "; ".join(told)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Running:
    """What the bridge that runs says of its clusters."""

    trouble: str = ""
    """Why it cannot be asked; empty if it can."""
    key_ages: Mapping[str, float] = field(default_factory=dict)
    """By cluster, in seconds."""
    watch_ages: Mapping[str, float] = field(default_factory=dict)
    """By cluster, in seconds."""
    objects: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By cluster and kind, how many were seen."""

    @classmethod
    def ask(cls, listen: str) -> "Running":
        """Ask the bridge that listens at `admin.listen`."""
        try:
            text = _page(listen)
            families = {one.name: one for one in text_string_to_metric_families(text)}
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error) or "no answer"
            return cls(f"no bridge answers at {listen}, its admin.listen ({why})")
        if "meshca_build" not in families and "meshca_build_info" not in families:
            return cls(f"what answers at {listen}, its admin.listen, is no bridge")

        def samples(name: str) -> Iterator[tuple[Mapping[str, str], float]]:
            for one in families[name].samples if name in families else ():
                yield one.labels, one.value

        objects: dict[str, dict[str, int]] = {}
        for labels, value in samples(_OBJECTS):
            objects.setdefault(labels["cluster"], {})[labels["kind"]] = int(value)
        return cls(
            key_ages={labels["cluster"]: age for labels, age in samples(_KEY_AGE)},
            watch_ages={labels["cluster"]: age for labels, age in samples(_WATCH_AGE)},
            objects=objects,
        )


def _page(listen: str) -> str:
    # An address that stands for every one of this host is this host to Linux.
    host, _, port = listen.rpartition(":")
    connection = http.client.HTTPConnection(
        host.strip("[]"), int(port), timeout=_RUNNING_SECONDS
    )
    with closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise http.client.HTTPException(f"HTTP status {answer.status}")
        return answer.read(_LARGEST_PAGE).decode()
