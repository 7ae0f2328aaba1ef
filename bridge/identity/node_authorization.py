"""Node authorization: which workloads the proxy of a node may ask for.

A ztunnel asks for the certificates of the pods of its node, with a token of its own. It
gets those of accounts that have a pod on that node, as the API server has it.

Source:
    istio.io/istio, security/pkg/server/ca/node_auth.go. It compares no trust domain,
    takes any text between the slashes, and knows no aliases of a cluster.
"""

from collections.abc import Collection

from bridge.dns_names import is_label, is_subdomain
from bridge.errors import DeniedError, RequestError
from bridge.identity.caller import Caller
from bridge.identity.service_account_token import shown
from bridge.kubernetes.pods import LivePods
from bridge.resilience.budget import Budget
from bridge.spiffe import SpiffeID, TrustDomain


class NodeAuthorization:
    """The node authorization of one cluster. For all threads.

    Args:
        accounts: The accounts of its proxies, each as NAMESPACE/NAME.
        trust_domain: Of the cluster.
        pods: The cluster's pods; None where nobody can be asked for them.
    """

    def __init__(
        self,
        accounts: Collection[str],
        trust_domain: TrustDomain,
        pods: LivePods | None,
    ) -> None:
        self._accounts = frozenset(accounts)
        self._trust_domain = trust_domain
        self._pods = pods

    def is_proxy(self, caller: Caller) -> bool:
        """Return whether a caller's account is one of the proxies'."""
        return f"{caller.namespace}/{caller.service_account}" in self._accounts

    def authorize(self, requester: Caller, wanted: str, budget: Budget) -> SpiffeID:
        """Return the identity that a proxy asks for, if a pod of its node has it.

        Args:
            requester: Who asks, identified by its credential.
            wanted: The identity, as it came.
            budget: What is left of the call's time.

        Raises:
            DeniedError: The requester may not have it.
            ReviewError: Whether it may cannot be told now.
        """
        try:
            return self._authorized(requester, wanted, budget)
        except DeniedError as error:
            error.detail = f"asks for {shown(wanted)}: {error.detail}"
            raise

    def node_of(self, requester: Caller, budget: Budget) -> str:
        """Return the name of the node whose pods a proxy may ask for.

        Args:
            requester: See `authorize`.
            budget: See `authorize`.

        Raises:
            DeniedError: It may ask for none.
            ReviewError: It cannot be told now.
        """
        return self._node_of(self._require_proxy(requester), requester, budget)

    def _authorized(self, requester: Caller, wanted: str, budget: Budget) -> SpiffeID:
        pods = self._require_proxy(requester)
        identity, namespace, account = self._parsed(wanted)
        node = self._node_of(pods, requester, budget)
        if not pods.has_pod_on(node, namespace, account, budget):
            raise DeniedError(
                "no pod of this identity is on the node of the pod that asks",
                rule="impersonation.node",
                detail=f"the node {node} has no pod of it that has not ended",
            )
        return identity

    def _require_proxy(self, requester: Caller) -> LivePods:
        if self._pods is None:
            raise DeniedError(
                "acting for another workload is not allowed here",
                rule="impersonation",
                detail=f"cluster {requester.cluster} verifies tokens by keys alone, "
                "which tell nothing of the pods on a node; with tokens.verify: "
                "token_review or bound, its API server is asked",
            )
        if not self.is_proxy(requester):
            raise DeniedError(
                "this account may not act for other workloads",
                rule="impersonation.account",
                detail=f"to allow {requester.namespace}/{requester.service_account}, "
                f"list it under trusted_node_accounts of cluster {requester.cluster}",
            )
        return self._pods

    def _parsed(self, wanted: str) -> tuple[SpiffeID, str, str]:
        try:
            identity = SpiffeID.parse(wanted)
        except RequestError as error:
            raise _malformed(str(error)) from error
        namespace, account = identity.service_account or ("", "")
        if not (is_label(namespace) and is_subdomain(account)):
            raise _malformed("these are no names of a namespace and an account")
        if identity.trust_domain != self._trust_domain:
            raise DeniedError(
                "the identity that is asked for is of another trust domain",
                rule="impersonation.trust-domain",
                detail=f"expected {self._trust_domain}",
            )
        return identity, namespace, account

    def _node_of(self, pods: LivePods, requester: Caller, budget: Budget) -> str:
        claimed = requester.pod
        if not claimed.name:
            raise _other_pod("the credential is bound to no pod", requester)
        found = pods.pod(claimed.namespace, claimed.name, budget)
        if found is None:
            raise _other_pod("there is no such pod", requester)
        if found.uid != claimed.uid:
            raise _other_pod(f"the pod of this name is {found.uid}", requester)
        if found.service_account != requester.service_account:
            account = shown(found.service_account)
            raise _other_pod(f"the pod's account is {account}", requester)
        # It goes into a field selector, where a comma would begin another condition.
        if not is_subdomain(found.node) or claimed.node not in {"", found.node}:
            node = shown(found.node)
            raise _other_pod(
                f"the pod's node is {node}, and the credential's {claimed.node!r}",
                requester,
            )
        return found.node


def _malformed(reason: str) -> DeniedError:
    return DeniedError(
        "the identity that is asked for is none of a service account; expected "
        "spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME",
        rule="impersonation.identity",
        detail=reason,
    )


def _other_pod(reason: str, requester: Caller) -> DeniedError:
    return DeniedError(
        "the pod, account or node of the credential is not as the cluster has it",
        rule="impersonation.pod",
        detail=f"pod {str(requester.pod) or 'none'}: {reason}",
    )
