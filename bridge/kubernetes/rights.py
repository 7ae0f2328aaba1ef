"""What the bridge may do at an API server, asked of the API server itself.

Source:
    Kubernetes API, authorization.k8s.io/v1 SelfSubjectAccessReview.
"""

from collections.abc import Collection
from dataclasses import dataclass

from bridge.errors import ReviewError
from bridge.kubernetes.api import APIServer
from bridge.resilience.budget import Budget

_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True)
class Right:
    """A right of role-based access control."""

    verb: str
    resource: str
    group: str
    needed_by: str
    """What of a cluster's configuration needs it."""

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {self.resource}{group}"


REVIEWS = "tokens.verify: token_review"
NODES = "trusted_node_accounts"
SECRETS = "remote_secrets"
RIGHTS = (
    Right("create", "tokenreviews", "authentication.k8s.io", needed_by=REVIEWS),
    Right("get", "pods", "", needed_by=NODES),
    Right("list", "pods", "", needed_by=NODES),
    Right("list", "secrets", "", needed_by=SECRETS),
)
"""All that the bridge needs."""
_WAYS_OUT = {NODES: f", or set {NODES}: [] where no ztunnel runs"}


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
        needs: What the configuration has of `REVIEWS`, `NODES` and `SECRETS`.
        budget: The time for all questions.
        namespace: Where the rights are needed; empty for the whole cluster.

    Raises:
        ReviewError: The API server does not answer, or its answer cannot be read.
    """
    place = f" in {namespace}" if namespace else ""
    return [
        f"the bridge may not {right}{place}, which {right.needed_by} needs: "
        f"deploy/kubernetes has the role and its binding{_WAYS_OUT.get(needed, '')}"
        for right in RIGHTS
        if (needed := right.needed_by) in needs
        and not _is_allowed(server, right, namespace, budget)
    ]


def _is_allowed(
    server: APIServer, right: Right, namespace: str, budget: Budget
) -> bool:
    wanted = {"group": right.group, "resource": right.resource, "verb": right.verb}
    if namespace:
        wanted["namespace"] = namespace
    answer = server.post(
        _PATH,
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": wanted},
        },
        budget,
    )
    status = answer.get("status")
    allowed = status.get("allowed") if isinstance(status, dict) else None
    if not isinstance(allowed, bool):
        raise ReviewError(
            "the answer of the API server of this cluster cannot be read",
            rule="review.answer",
            detail="expected a SelfSubjectAccessReview with a status",
        )
    return allowed
