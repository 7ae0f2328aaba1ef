"""What a compromised key of each CA could make each verifier accept.

A constraint on one form of name lets every other form pass, in every verifier, and none
says anything of a subject. So a plan shows the other half of its constraints too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509

from bridge.dataplanes.exposure import exposure_of_constraints
from bridge.dataplanes.matrix import VERIFIERS, matrix_of
from bridge.hierarchy.plan.findings import Tree

_Tiers = Sequence[x509.NameConstraints | None]
_SUBJECT = (
    "constraints say nothing of a subject; make the Kubernetes CA itself the anchor "
    "(leave `anchor` out), and keep its key offline"
)


@dataclass(frozen=True, slots=True)
class Containment:
    """What one verifier accepts if the key of any of some CAs is compromised."""

    verifier: str
    """A data plane, or a part of Kubernetes."""
    anchor: str
    """The CA that the verifier trusts."""
    cas: tuple[str, ...]
    """The CAs whose key would do it. The key of any other CA does nothing here."""
    accepts: str
    narrower: str
    """How to limit it; empty where nothing does."""


@dataclass(frozen=True, slots=True)
class PlaneMatrix:
    """What each verifier does with each form of name, for some issuing CAs."""

    cas: tuple[str, ...]
    """Issuing CAs, whose chains constrain the same forms for the same data planes."""
    verifiers: tuple[str, ...]
    """The names of the columns."""
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """The name of each form, and a cell for each verifier."""


def containment_of(tree: Tree) -> tuple[Containment, ...]:
    """Return what each verifier accepts from the key of each CA, alike ones joined."""
    joined: dict[tuple[str, str, str, str], list[str]] = {}
    for verifier, anchor, judge in _verifiers(tree):
        for name in tree.order:
            chain = tree.file.chain(name)
            if anchor not in chain:
                continue
            tiers = [tree.values[one] for one in chain[: chain.index(anchor) + 1]]
            accepts, narrower = judge(tiers, anchor)
            joined.setdefault((verifier, anchor, accepts, narrower), []).append(name)
    return tuple(
        Containment(verifier, anchor, tuple(names), accepts, narrower)
        for (verifier, anchor, accepts, narrower), names in joined.items()
    )


_Judge = Callable[[_Tiers, str], tuple[str, str]]


def _verifiers(tree: Tree) -> Iterator[tuple[str, str, _Judge]]:
    """Yield each verifier with each anchor that it has in this tree, once."""
    found: dict[tuple[str, str], _Judge] = {}
    for name in tree.order:
        purpose = tree.file.cas[name].purpose
        anchor = tree.file.anchor_of(name) if purpose else ""
        if purpose == "mesh":
            for plane in tree.file.data_planes_of(name):
                found[str(plane), anchor] = _of_plane(plane)
        elif purpose is not None:
            verifier, accepts, narrower = _CONTROL_PLANE[purpose]
            found[verifier, anchor] = _always(accepts, narrower)
    for (verifier, anchor), judge in found.items():
        yield verifier, anchor, judge


def _of_plane(plane: str) -> _Judge:
    def judge(tiers: _Tiers, anchor: str) -> tuple[str, str]:
        for one in exposure_of_constraints(tiers, anchor):
            if one.data_plane == plane:
                return one.accepts, one.narrower
        raise AssertionError(plane)

    return judge


def _always(accepts: str, narrower: str) -> _Judge:
    return lambda _tiers, _anchor: (accepts, narrower)


_CONTROL_PLANE = {
    "kubernetes": (
        "kube-apiserver",
        (
            "every user in every group, system:masters included, as a client; and "
            "every server that a name constraint does not exclude"
        ),
        _SUBJECT,
    ),
    "etcd": (
        "etcd",
        "every client and member: all keys and values can be read and written",
        (
            "constraints say nothing of a client; keep this key offline, and etcd's CA "
            "its own anchor"
        ),
    ),
    "front-proxy": (
        "kube-apiserver (front proxy)",
        "every user in every group, by the headers of a request",
        (
            "--requestheader-allowed-names front-proxy-client limits the clients' "
            "names; keep this key offline, and this CA its own anchor"
        ),
    ),
}


def matrices_of(tree: Tree) -> tuple[PlaneMatrix, ...]:
    """Return the matrix of each kind of chain for a mesh that the tree has."""
    joined: dict[tuple[object, ...], list[str]] = {}
    made: dict[tuple[object, ...], tuple[tuple[str, ...], list[tuple[str, list[str]]]]]
    made = {}
    for name in tree.order:
        if tree.file.cas[name].purpose != "mesh":
            continue
        planes = [str(one) for one in tree.file.data_planes_of(name)]
        columns = tuple(one for one in VERIFIERS if one in {*planes, "go", "openssl"})
        limits = tree.chain_constraints(name, tree.file.anchor_of(name))
        key = (columns, limits.constrained)
        joined.setdefault(key, []).append(name)
        made[key] = columns, matrix_of(limits.constrained, columns)
    return tuple(
        PlaneMatrix(
            tuple(names),
            tuple(VERIFIERS[one] for one in made[key][0]),
            tuple((form, tuple(cells)) for form, cells in made[key][1]),
        )
        for key, names in joined.items()
    )
