"""What name constraints may be, for the data planes and for Kubernetes.

What a constraint does in each verifier is measured: `bridge.dataplanes.matrix`.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from cryptography import x509

from bridge.dataplanes.planes import DataPlane
from bridge.errors import DeniedError
from bridge.hierarchy.plan.findings import PlanFinding, Tree
from bridge.hierarchy.schema import Purpose
from bridge.x509.name_constraints import Kind, wider_problems

_URI = x509.UniformResourceIdentifier
_FORMS: Mapping[str, Kind] = {
    "uri": _URI,
    "dns": x509.DNSName,
    "ip": x509.IPAddress,
    "email": x509.RFC822Name,
}
_API_SERVER = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
"""Names of every API server's certificate, as kubeadm makes it."""
_ANY_ADDRESS = tuple(map(ipaddress.ip_network, ("0.0.0.0/0", "::/0")))
_CLIENT_CA: Mapping[Purpose, tuple[str, str]] = {
    "kubernetes": (
        "client-ca-file of the API server, of kubelets and of controllers",
        (
            "any CA below it could sign a client with O=system:masters, which is let "
            "in, as DNS and URI constraints say nothing of a subject"
        ),
    ),
    "etcd": (
        "trusted-ca-file of etcd",
        "any CA below it could sign a client, which reads and writes every key",
    ),
    "front-proxy": (
        "requestheader-client-ca-file of the API server",
        "any CA below it could sign a client that names any user in a header",
    ),
}


def constraint_findings(tree: Tree) -> Iterator[PlanFinding]:
    """Yield what is wrong with the name constraints of the tree."""
    identities = _identities(tree)
    for name in tree.order:
        yield from _wider(tree, name)
        yield from _unconstrained(tree, name)
        yield from _extension(tree, name)
        yield from _planes(tree, name)
        purpose = tree.file.cas[name].purpose
        if purpose == "mesh":
            yield from _own_leaves(tree, name, _mesh_names(tree, name))
        elif purpose is not None:
            yield from _kubernetes(tree, name, purpose)
            yield from _mesh_identities(tree, name, identities)


def _wider(tree: Tree, name: str) -> Iterator[PlanFinding]:
    parent = tree.file.cas[name].parent
    if parent is None:
        return
    problems = wider_problems(tree.constraints[name], tree.constraints[parent])
    for problem in problems:
        yield PlanFinding(
            "constraints.wider",
            name,
            f"allows more than its parent {parent}: {problem}; a child repeats what is "
            "above it, or narrows it",
        )


def _unconstrained(tree: Tree, name: str) -> Iterator[PlanFinding]:
    # Of the root nothing is expected, unless there is nothing else.
    chain = tree.file.chain(name)
    if len(chain) != (1 if len(tree.order) == 1 else 2):
        return
    constrained = {
        kind
        for one in chain
        if (found := tree.constraints[one])
        for kind in found.constrained
    }
    for form, kind in _FORMS.items():
        if kind not in constrained:
            yield PlanFinding(
                f"constraints.{form}-unconstrained",
                name,
                f"{_NO_LIMIT[form]}, neither here nor above; {_WAY_OUT[form]}, or "
                "accept it with a reason",
            )


_NO_LIMIT = {
    "uri": "URI names, and so SPIFFE IDs, are not constrained",
    "dns": "DNS names are not constrained",
    "ip": "IP addresses are not constrained",
    "email": "e-mail addresses are not constrained",
}
_WAY_OUT = {
    "uri": "write permitted.uri, where neither ztunnel nor a linkerd2-proxy that gets "
    "URI names verifies leaves",
    "dns": "write permitted.dns",
    "ip": 'write excluded.ip ["0.0.0.0/0", "::/0"], or permitted.ip',
    "email": 'write permitted.email ["invalid"], a host that cannot exist',
}


def _extension(tree: Tree, name: str) -> Iterator[PlanFinding]:
    entry, found = tree.file.cas[name].name_constraints, tree.constraints[name]
    if entry is None or found is None:
        return
    if not found.critical:
        yield PlanFinding(
            "constraints.not-critical",
            name,
            "has constraints that are not critical: a verifier that does not know them "
            "ignores them; leave critical out, or write true",
        )
    for key, hosts in (("permitted", entry.permitted), ("excluded", entry.excluded)):
        uris = {host.lower() for host in hosts.uri}
        for host in sorted(uris):
            if not host.startswith(".") and f".{host}" not in uris:
                yield PlanFinding(
                    "constraints.half-host",
                    name,
                    f"has {host!r} in {key}.uri without {'.' + host!r}: Go up to 1.27 "
                    "includes subdomains, OpenSSL and Envoy do not; write both",
                )
    domains = tree.file.trust_domains_of(name)
    foreign = [
        host
        for host in entry.permitted.uri
        if not any(f".{host.lower()}".endswith(f".{one}") for one in domains)
        and not host.endswith("invalid")
    ]
    if foreign:
        yield PlanFinding(
            "constraints.foreign-domain",
            name,
            f"permits URI names of {', '.join(foreign)}, outside its trust domains "
            f"({', '.join(domains) or 'none'}); take them out, or add the domain to "
            "trust_domains",
        )


def _planes(tree: Tree, name: str) -> Iterator[PlanFinding]:
    """Yield which data planes below a CA reject what its constraints allow."""
    found, parent = tree.constraints[name], tree.file.cas[name].parent
    above = tree.constraints[parent] if parent else None
    # Told once, of the highest CA: those below it cannot leave the form out.
    kinds = found.constrained if found else frozenset[Kind]()
    kinds -= above.constrained if above else frozenset()
    planes = _planes_below(tree, name) if kinds else frozenset[DataPlane]()
    if _URI in kinds and DataPlane.AMBIENT in planes:
        yield PlanFinding(
            "constraints.uri-ambient",
            name,
            "has a URI constraint, and ztunnel (ambient) verifies leaves below it: it "
            "rejects every SPIFFE ID under a URI constraint, inside or not; leave uri "
            "out, or give ambient a branch of its own with data_planes",
        )
    if _URI in kinds and DataPlane.LINKERD in planes:
        yield PlanFinding(
            "constraints.uri-linkerd",
            name,
            "has a URI constraint, and linkerd2-proxy verifies leaves below it: it "
            "rejects every leaf with a URI name, so fronts.linkerd.spiffe_uri has to "
            "stay false; leave uri out, or accept it with this as its reason",
        )
    if x509.IPAddress in kinds and DataPlane.SIDECAR in planes:
        yield PlanFinding(
            "constraints.ip-sidecar",
            name,
            "constrains IP addresses: Envoy rejects every leaf with an IP address then,"
            " inside or not; such leaves are for others only",
        )


def _planes_below(tree: Tree, name: str) -> frozenset[DataPlane]:
    below, found = [name], set[DataPlane]()
    for one in below:
        below += tree.children[one]
        if tree.file.cas[one].purpose == "mesh":
            found.update(tree.file.data_planes_of(one))
    return frozenset(found)


def _mesh_names(tree: Tree, name: str) -> Iterator[tuple[str, x509.GeneralName]]:
    """Yield a name of a leaf for each trust domain and data plane, and its key."""
    for domain in tree.file.trust_domains_of(name):
        yield from mesh_names(domain, tree.file.data_planes_of(name))


def mesh_names(
    domain: str, planes: Iterable[DataPlane]
) -> Iterator[tuple[str, x509.GeneralName]]:
    """Yield names that workloads of a trust domain have, each with its form's key."""
    given = {*planes}
    if given & {DataPlane.SIDECAR, DataPlane.AMBIENT}:
        yield "uri", _URI(f"spiffe://{domain}/ns/shop/sa/web")
    if DataPlane.LINKERD in given:
        identity = f"web.shop.serviceaccount.identity.linkerd.{domain}"
        yield "dns", x509.DNSName(identity)


def _own_leaves(
    tree: Tree, name: str, names: Iterable[tuple[str, x509.GeneralName]]
) -> Iterator[PlanFinding]:
    root = tree.order[0]
    limits = tree.chain_constraints(name, root)
    for form, one in names:
        try:
            limits.require_permitted([one])
        except DeniedError as error:
            yield PlanFinding(
                "constraints.shuts-out",
                name,
                f"cannot issue its own leaves, such as {one.value}: {error}; add it to "
                f"permitted.{form} of each CA from here to the root that constrains "
                f"{form}, or take it out of excluded.{form}",
            )


def _kubernetes(tree: Tree, name: str, purpose: Purpose) -> Iterator[PlanFinding]:
    _file, anchor = tree.file, tree.file.anchor_of(name)
    if anchor != name:
        where, what = _CLIENT_CA[purpose]
        yield PlanFinding(
            "client-ca.anchor",
            name,
            f"has the anchor {anchor}, which would be {where}: {what}; leave anchor "
            "out, so that it is its own anchor",
        )
    if purpose == "kubernetes":
        names = [("dns", x509.DNSName(one)) for one in _API_SERVER]
        yield from _own_leaves(tree, name, names)
    if purpose in {"kubernetes", "etcd"}:
        yield from _addresses(tree, name, purpose)


def _addresses(tree: Tree, name: str, purpose: Purpose) -> Iterator[PlanFinding]:
    for one in tree.file.chain(name):
        entry = tree.file.cas[one].name_constraints
        given = entry.excluded.ip if entry else ()
        networks = [*map(ipaddress.ip_network, given)]
        if not all(any(wide == found for found in networks) for wide in _ANY_ADDRESS):
            continue
        needs = (
            "the API server's certificate needs two, its own and that of its Service"
            if purpose == "kubernetes"
            else "etcd's certificates need those that its members are reached at"
        )
        where = "here" if one == name else f"on {one} above it"
        yield PlanFinding(
            "constraints.no-addresses",
            name,
            f"can issue no leaf with an IP address, as all are excluded {where}, and "
            f"{needs}; write their networks as permitted.ip in place of excluded.ip, "
            f"{where}" + ("" if one == name else f", or give it a parent beside {one}"),
        )
        return


_Identities = Mapping[tuple[str, str, str], x509.GeneralName]


def _identities(tree: Tree) -> _Identities:
    """Return a name of each mesh, by its anchor, the form's key and its text."""
    return {
        (tree.file.anchor_of(mesh), form, str(one.value)): one
        for mesh in tree.order
        if tree.file.cas[mesh].purpose == "mesh"
        for form, one in _mesh_names(tree, mesh)
    }


def _mesh_identities(
    tree: Tree, name: str, identities: _Identities
) -> Iterator[PlanFinding]:
    """Yield whether the key of a CA of Kubernetes could make identities of a mesh."""
    chain, open_to = tree.file.chain(name), {}
    for (anchor, form, text), one in identities.items():
        if anchor not in chain:
            continue
        try:
            tree.chain_constraints(name, anchor).require_permitted([one])
        except DeniedError:
            continue
        open_to[form] = text
    for form, value in sorted(open_to.items()):
        yield PlanFinding(
            "client-ca.mesh-identities",
            name,
            f"could issue identities of a mesh, such as {value}, as {form} allows "
            f"them; {_NO_IDENTITY[form]}, or let the mesh trust a CA beside it "
            "(anchor)",
        )


_NO_IDENTITY = {
    "uri": 'write permitted.uri ["invalid", ".invalid"], a host that cannot exist',
    "dns": "write permitted.dns with the names of the cluster's control plane only",
}
