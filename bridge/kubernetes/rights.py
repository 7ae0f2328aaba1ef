"""What the bridge may do at an API server, asked of the API server itself.

Source:
    Kubernetes API, authorization.k8s.io/v1 SelfSubjectAccessReview.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

from bridge.config import BoundConfig, BridgeConfig, ClusterConfig, JWKSConfig
from bridge.kubernetes.api import APIServer, unreadable
from bridge.kubernetes.clients import (
    access_source_of,
    api_server_of,
    has_remote_secret,
)
from bridge.kubernetes.remote_secrets import RemoteSecrets
from bridge.resilience.budget import Budget

_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

REVIEWS = "tokens.verify: token_review"
BOUND = "tokens.verify: bound"
NODES = "trusted_node_accounts"
EVENTS = "fronts.linkerd.events"
SECRETS = "remote_secrets"


@dataclass(frozen=True, slots=True)
class Right:
    """A right of role-based access control."""

    verb: str
    resource: str
    """Empty for a path that is no resource."""
    needed_by: tuple[str, ...]
    """What of a configuration needs it."""
    group: str = ""
    path: str = ""

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {self.resource or self.path}{group}"


RIGHTS = (
    Right("create", "tokenreviews", (REVIEWS, BOUND), group="authentication.k8s.io"),
    Right("get", "pods", (BOUND, NODES)),
    Right("list", "pods", (BOUND, NODES)),
    Right("watch", "pods", (BOUND,)),
    Right("get", "serviceaccounts", (BOUND,)),
    Right("list", "serviceaccounts", (BOUND,)),
    Right("watch", "serviceaccounts", (BOUND,)),
    Right("get", "", (BOUND,), path="/openid/v1/jwks"),
    Right("create", "events", (EVENTS,)),
    Right("list", "secrets", (SECRETS,)),
)
"""All that the bridge needs."""
_ROLE = "deploy/kubernetes has the role and its binding"
_OF_KEYS = "the cluster role system:service-account-issuer-discovery has it"
_WAYS_OUT: dict[tuple[str, ...], str] = {
    (NODES,): f", or set {NODES}: [] where no ztunnel runs",
    (EVENTS,): f", or set {EVENTS}: false",
}


def needs_of(config: BridgeConfig, entry: ClusterConfig) -> frozenset[str]:
    """Return what of the configuration needs rights at the API server of a cluster.

    Returns:
        Of `REVIEWS`, `BOUND`, `NODES` and `EVENTS`. Empty where no API server is asked.
    """
    if isinstance(entry.tokens, JWKSConfig):
        return frozenset()
    found = {BOUND if isinstance(entry.tokens, BoundConfig) else REVIEWS}
    if entry.trusted_node_accounts and config.fronts.istio is not None:
        found.add(NODES)
    if has_events(config, entry):
        found.add(EVENTS)
    return frozenset(found)


def has_events(config: BridgeConfig, entry: ClusterConfig) -> bool:
    """Return whether the certificates of a cluster are told as Linkerd's events."""
    front = config.fronts.linkerd
    is_asked = not isinstance(entry.tokens, JWKSConfig)
    is_on = front is not None and front.events
    return is_on and is_asked and config.linkerd_cluster() is entry


@dataclass(frozen=True, slots=True)
class NeededServer:
    """An API server at which the bridge needs rights."""

    name: str
    """Of its cluster, or of what needs it."""
    needs: frozenset[str]
    open: Callable[[], APIServer]
    """Builds its client. Raises `ConfigError` where it cannot be asked."""
    namespace: str = ""
    """Where the rights are needed; empty for the whole cluster."""


def needed_servers(
    config: BridgeConfig, secrets: RemoteSecrets | None
) -> Iterator[NeededServer]:
    """Yield every API server of a configuration, that of the remote secrets first.

    Args:
        config: The whole configuration.
        secrets: Has the credentials of clusters with `tokens.remote_secret`.
    """
    section = config.remote_secrets
    if section is not None:
        name = f"remote secrets in {section.namespace}"
        home = partial(api_server_of, section)
        yield NeededServer(name, frozenset({SECRETS}), home, section.namespace)
    for entry in config.clusters:
        if secrets is None and has_remote_secret(entry):
            continue  # the secrets cannot be read, and whoever asks for them is told
        if not isinstance(entry.tokens, JWKSConfig):
            source = access_source_of(entry, secrets)
            server = partial(api_server_of, entry.tokens, source=source)
            yield NeededServer(entry.name, needs_of(config, entry), server)


def missing_rights(
    server: APIServer,
    needs: Collection[str],
    budget: Budget,
    *,
    namespace: str = "",
) -> list[str]:
    """Return a sentence for each right that the bridge lacks.

    Args:
        server: Is asked about the bridge's own credentials.
        needs: What the configuration has of `REVIEWS` and those that follow it.
        budget: The time for all questions.
        namespace: Where the rights are needed; empty for the whole cluster.

    Raises:
        ReviewError: The API server does not answer, or its answer cannot be read.
    """
    place = f" in {namespace}" if namespace else ""
    found = []
    for right in RIGHTS:
        whose = tuple(one for one in right.needed_by if one in needs)
        if whose and not _is_allowed(server, right, namespace, budget):
            need = f"{' and '.join(whose)} need{'' if whose[1:] else 's'}"
            way_out = _OF_KEYS if right.path else _ROLE + _WAYS_OUT.get(whose, "")
            found.append(f"the bridge may not {right}{place}, which {need}: {way_out}")
    return found


def _is_allowed(
    server: APIServer, right: Right, namespace: str, budget: Budget
) -> bool:
    wanted = {"group": right.group, "resource": right.resource, "verb": right.verb}
    if namespace:
        wanted["namespace"] = namespace
    spec = (
        {"nonResourceAttributes": {"path": right.path, "verb": right.verb}}
        if right.path
        else {"resourceAttributes": wanted}
    )
    answer = server.post(
        _PATH,
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": spec,
        },
        budget,
    )
    status = answer.get("status")
    allowed = status.get("allowed") if isinstance(status, dict) else None
    if not isinstance(allowed, bool):
        raise unreadable("expected a SelfSubjectAccessReview with a status")
    return allowed
