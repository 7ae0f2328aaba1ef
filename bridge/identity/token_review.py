"""Verify a service-account token by the cluster's API server: TokenReview.

A token's unverified payload only refuses: what is no token for this front costs the
API server nothing. Whatever is accepted, the API server has said: the token is good,
for one of the front's audiences, and of this service account. Nothing is cached.

Source:
    Kubernetes API, authentication.k8s.io/v1 TokenReview; k8s.io/kubernetes,
    pkg/serviceaccount/claims.go and staging/src/k8s.io/apiserver/pkg/authentication.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from bridge.dns_names import is_subdomain
from bridge.errors import AuthenticationError, ReviewError
from bridge.identity.caller import NO_POD, Pod, ServiceAccount
from bridge.identity.service_account_token import (
    UID,
    account_of,
    shown,
    unverified_account,
)
from bridge.kubernetes.api import APIServer, unreadable
from bridge.resilience.budget import Budget

_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
_GROUP = "system:serviceaccounts"
_EXTRA = "authentication.kubernetes.io/"


class ReviewVerifier:
    """Has each token reviewed by one API server. See TokenVerifier.

    Args:
        server: The API server of the tokens' cluster.
    """

    verified_by: Final = "token_review"

    def __init__(self, server: APIServer) -> None:
        self._server = server
        self._trouble = ""

    def verify(
        self, token: str, *, audiences: frozenset[str], now: datetime, budget: Budget
    ) -> ServiceAccount:
        """See TokenVerifier.verify."""
        claimed = unverified_account(token, audiences=audiences, now=now)
        try:
            answer = self._server.post(_PATH, _review(token, audiences), budget)
            status = _status(answer, token)
        except ReviewError as error:
            self._trouble = f"{error}: {error.detail}"
            raise
        self._trouble = ""
        return _account(status, audiences, claimed)

    def problems(self, now: datetime) -> list[str]:
        """See TokenVerifier.problems."""
        return [self._trouble] if self._trouble else []

    def can_verify(self, now: datetime) -> bool:
        """See TokenVerifier.can_verify: only a review can tell."""
        return True

    def start(self) -> None:
        """See TokenVerifier.start: there is nothing to keep up to date."""

    def close(self) -> None:
        """See TokenVerifier.close."""
        self._server.close()


def _review(token: str, audiences: frozenset[str]) -> Mapping[str, object]:
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": sorted(audiences)},
    }


def _status(answer: Mapping[str, Any], token: str) -> Mapping[str, Any]:
    status, spec = answer.get("status"), answer.get("spec")
    if answer.get("kind") != "TokenReview" or not isinstance(status, dict):
        raise unreadable(
            f"expected a TokenReview with a status (found {shown(answer)})"
        )
    # The API server repeats what it was asked for.
    if not isinstance(spec, dict) or spec.get("token") != token:
        raise unreadable(
            "expected the review of the token that was sent, in spec.token"
        )
    return status


def _account(
    status: Mapping[str, Any], audiences: frozenset[str], claimed: ServiceAccount
) -> ServiceAccount:
    error = status.get("error")
    if status.get("authenticated") is not True or error:
        raise _refused("the API server does not accept the token", error)
    confirmed = status.get("audiences")
    # An API server that knows no audiences names none: its token may be for anybody.
    if not isinstance(confirmed, list) or not audiences.intersection(_texts(confirmed)):
        raise _refused(
            "the API server does not confirm the token's audience", confirmed
        )
    user = status.get("user")
    if not isinstance(user, dict):
        raise _refused("the API server names no user", user)
    name = user.get("username")
    account = account_of(name)
    if (account.namespace, account.name) != (claimed.namespace, claimed.name):
        raise _refused("the API server names another user than the token", name)
    groups = user.get("groups")
    wanted = {_GROUP, f"{_GROUP}:{account.namespace}"}
    if not isinstance(groups, list) or not wanted.issubset(_texts(groups)):
        raise _refused("the user is not in the groups of a service account", groups)
    pod = _pod(user.get("extra"), account.namespace)
    if claimed.pod.name and not _is_same(pod, claimed.pod):
        raise _refused("the API server names another pod than the token", str(pod))
    return ServiceAccount(account.namespace, account.name, pod)


def _pod(extra: object, namespace: str) -> Pod:
    if extra is None:
        return NO_POD
    if not isinstance(extra, dict):
        raise _refused("the user's extras cannot be read", extra)
    name, uid, node = (_one(extra, key) for key in ("pod-name", "pod-uid", "node-name"))
    if bool(name) != bool(uid):
        raise _refused("the user's pod has no name or no UID", f"{name}/{uid}")
    is_named = all(is_subdomain(one) for one in (name, node) if one)
    if not is_named or (uid and not UID.fullmatch(uid)):
        raise _refused("the user's pod or node has no valid name", f"{name} {node}")
    return Pod(namespace if name else "", name, uid, node)


def _is_same(pod: Pod, claimed: Pod) -> bool:
    # While a cluster is updated, one of its API servers may tell no node.
    is_same_node = "" in {pod.node, claimed.node} or pod.node == claimed.node
    return is_same_node and (pod.name, pod.uid) == (claimed.name, claimed.uid)


def _one(extra: Mapping[str, Any], key: str) -> str:
    values = extra.get(_EXTRA + key)
    if values is None:
        return ""
    if isinstance(values, list) and len(values) == 1 and isinstance(values[0], str):
        return values[0]
    raise _refused(f"the user's {key} is not one value", values)


def _texts(values: list[Any]) -> set[str]:
    return {value for value in values if isinstance(value, str)}


def _refused(message: str, found: object) -> AuthenticationError:
    return AuthenticationError(message, rule="token.review", detail=shown(found))
