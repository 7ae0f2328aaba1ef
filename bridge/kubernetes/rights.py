"""What the bridge may do at an API server, asked of the API server itself.

Source:
    Kubernetes API, authorization.k8s.io/v1 SelfSubjectAccessReview.
"""

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
    """The value of `tokens.verify` that needs it."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}.{self.group}"


RIGHTS = (
    Right("create", "tokenreviews", "authentication.k8s.io", needed_by="token_review"),
)
"""All that the bridge needs."""


def missing_rights(server: APIServer, budget: Budget) -> list[str]:
    """Return a sentence for each right that the bridge lacks.

    Args:
        server: Is asked about the bridge's own credentials.
        budget: The time for all questions.

    Raises:
        ReviewError: The API server does not answer, or its answer cannot be read.
    """
    return [
        f"the bridge may not {right}, which tokens.verify: {right.needed_by} needs: "
        "deploy/kubernetes has the role and its binding"
        for right in RIGHTS
        if not _is_allowed(server, right, budget)
    ]


def _is_allowed(server: APIServer, right: Right, budget: Budget) -> bool:
    wanted = {"group": right.group, "resource": right.resource, "verb": right.verb}
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
