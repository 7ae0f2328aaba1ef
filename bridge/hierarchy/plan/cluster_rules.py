"""What the CAs of a cluster's own PKI have to allow: every certificate under them."""

from collections.abc import Iterator, Mapping

from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from bridge.hierarchy.kubernetes_pki.issue import name_problems
from bridge.hierarchy.kubernetes_pki.profiles import PlannedLeaf, leaves_of
from bridge.hierarchy.plan.findings import PlanFinding, Tree

_SHOWN = 4
_USAGES: Mapping[ObjectIdentifier, str] = {
    ExtendedKeyUsageOID.SERVER_AUTH: "server_auth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "client_auth",
}


def cluster_findings(tree: Tree) -> Iterator[PlanFinding]:
    """Yield which certificates of the file's clusters could not be issued or used."""
    for cluster, entry in tree.file.certificates.items():
        leaves = [*leaves_of(entry)]
        for purpose, _, ca in entry.cas():
            own = [leaf for leaf in leaves if leaf.profile.ca == purpose]
            yield from _names(tree, cluster, ca, own)
            yield from _usages(tree, cluster, ca, own)


def _names(
    tree: Tree, cluster: str, ca: str, leaves: list[PlannedLeaf]
) -> Iterator[PlanFinding]:
    limits = tree.chain_constraints(ca, tree.order[0])
    problems = name_problems(leaves, limits)
    if problems:
        more = len(problems) - _SHOWN
        shown = "; ".join(problems[:_SHOWN]) + (
            f"; and {more} more" if more > 0 else ""
        )
        yield PlanFinding(
            "certificates.names",
            ca,
            f"cannot issue all certificates of certificates.{cluster}: {shown}; permit "
            "these names and networks on each CA from here to the root that "
            "constrains their form, or give the CA a parent without that constraint",
        )


def _usages(
    tree: Tree, cluster: str, ca: str, leaves: list[PlannedLeaf]
) -> Iterator[PlanFinding]:
    for one in tree.file.chain(ca):
        allowed = tree.file.cas[one].ext_key_usage
        needed = {_USAGES[usage] for leaf in leaves for usage in leaf.profile.usages}
        missing = sorted(needed.difference(allowed)) if allowed else []
        if missing:
            yield PlanFinding(
                "certificates.usage",
                ca,
                f"issues certificates of certificates.{cluster} for "
                f"{', '.join(missing)}, which ext_key_usage of {one} leaves out: "
                "verifiers hold leaves to it; add it there, or take ext_key_usage out",
            )
