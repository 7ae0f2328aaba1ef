"""Finds what an export needs: certificates of a ceremony, and keys."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bridge.errors import ConfigError
from bridge.hierarchy.ceremony import Keys
from bridge.hierarchy.export.shapes import SHAPES, ExportedCA, Files, ShapeOptions
from bridge.hierarchy.keys import SIGN_SECONDS
from bridge.hierarchy.kubernetes_pki.issue import LeafIssuer, issue_all
from bridge.hierarchy.kubernetes_pki.layouts import component_files, kubeadm_files
from bridge.hierarchy.schema import (
    ClusterCA,
    ClusterPKIEntry,
    HierarchyFile,
    KeyInFile,
    Loaded,
)
from bridge.registry import Secret
from bridge.spi import Signer
from bridge.system.clock import Clock
from bridge.system.files import read_secret
from bridge.x509.algorithm import (
    CA_KEYS,
    CAPrivateKey,
    algorithm_of,
    issuer_key,
    new_key,
)

Certificates = Callable[[str], x509.Certificate]
"""Returns the certificate of a CA by its name, as `Output.certificate` does."""
CRLs = Callable[[str], bytes | None]
"""Returns the newest CRL of a CA in PEM by its name; None without one that is not
overdue."""


def ca_files(  # noqa: PLR0913 - where each thing comes from, by name
    loaded: Loaded,
    name: str,
    shape: str,
    options: ShapeOptions,
    *,
    certificates: Certificates,
    secret: Secret,
    crls: CRLs,
) -> Files:
    """Return the files of one CA in one shape.

    Args:
        loaded: The hierarchy file.
        name: The CA.
        shape: One of `SHAPES`.
        options: What the shape has to know besides.
        certificates: What the ceremony made.
        secret: Asked for the passphrase of a key that is encrypted and handed out.
        crls: See `CRLs`.

    Raises:
        ConfigError: There is no such CA, it was not signed yet, or the shape hands out
            a key that must not be, or cannot be, handed out.
    """
    file = loaded.file
    _require_name(name, [*file.cas], "cas")
    found = SHAPES[shape]
    if found.wants_key and file.cas[name].purpose != "mesh":
        raise _bad(
            f"{name}: this shape hands out the private key, and only that of an "
            "issuing CA of a mesh may leave its place: it has the purpose "
            f"{file.cas[name].purpose or 'none, it signs CAs'}"
        )
    names = _up_to_anchor(file, name)
    path = [certificates(one) for one in names]
    lists = {one: crls(one) for one in names}
    # A CA that is its own anchor is both; what is served below it is itself.
    ca = ExportedCA(
        name=name,
        chain=tuple(path[:-1] or path),
        anchor=path[-1],
        key=_key(file, name, secret) if found.wants_key else None,
        crls=tuple(one for one in lists.values() if one),
        no_crls=_no_crls(file, lists),
    )
    if ca.key is not None and ca.key.public_key() != issuer_key(ca.chain[0]):
        raise _bad(
            f"{name}: its key is not that of its certificate: name the right one"
        )
    return found.files(ca, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterExport:
    """What is exported for a cluster."""

    cluster: str
    """One of the file's `certificates`."""
    layout: Literal["kubeadm", "files"]
    nodes: tuple[str, ...] = ()
    """Only for these nodes; by default for all."""
    account_key: CAPrivateKey | None = None
    """Signs the tokens of service accounts. By default a new one is made, which is for
    a new cluster: a running one would refuse the tokens of its pods."""


def cluster_files(
    loaded: Loaded,
    wanted: ClusterExport,
    *,
    certificates: Certificates,
    keys: Keys,
    clock: Clock,
) -> Files:
    """Issue the certificates of a cluster; return the files of its nodes.

    Args:
        loaded: The hierarchy file.
        wanted: Of which cluster, for whom.
        certificates: What the ceremony made.
        keys: Opens the keys of the cluster's three CAs.
        clock: Tells the time.

    Raises:
        ConfigError: There is no such cluster, or see `issue_all`.
        BackendError: A CA's key cannot be used.
    """
    file = loaded.file
    _require_name(wanted.cluster, [*file.certificates], "certificates")
    entry = file.certificates[wanted.cluster]
    limited = _limited(entry, wanted.nodes)
    issuers: dict[ClusterCA, LeafIssuer] = {}
    with ExitStack() as opened:
        for purpose, _, name in entry.cas():
            _require_own_anchor(file, name)
            chain = tuple(certificates(one) for one in file.chain(name))
            signer = opened.enter_context(keys(name))
            issuers[purpose] = LeafIssuer(chain, _sign_with(signer))
        leaves = issue_all(entry, issuers, clock=clock, nodes=wanted.nodes)
    layout = kubeadm_files if wanted.layout == "kubeadm" else component_files
    return layout(limited, issuers, leaves, wanted.account_key or new_key("p256"))


def _limited(entry: ClusterPKIEntry, nodes: Sequence[str]) -> ClusterPKIEntry:
    if not nodes:
        return entry
    for node in nodes:
        _require_name(node, [*entry.control_planes, *entry.workers], "its nodes")
    parts = {
        role: {
            name: node for name, node in getattr(entry, role).items() if name in nodes
        }
        for role in ("control_planes", "workers")
    }
    return entry.model_copy(update=parts)


def _sign_with(signer: Signer) -> Callable[[bytes], bytes]:
    algorithm = algorithm_of(signer.public_key())
    return lambda tbs: signer.sign(tbs, algorithm, timeout=SIGN_SECONDS)


def _require_own_anchor(file: HierarchyFile, name: str) -> None:
    # The plan refuses it too: whoever exports by an older plan must not be let past.
    anchor = file.anchor_of(name)
    if anchor != name:
        raise _bad(
            f"cas.{name}.anchor: expected none (found {anchor}): whoever verifies "
            "clients would take those of every CA below it, such as O=system:masters "
            "signed by a mesh; leave anchor out"
        )


def _no_crls(file: HierarchyFile, lists: Mapping[str, bytes | None]) -> str:
    """Return why proxies cannot be given the CRLs of a path."""
    anchor = [*lists][-1]
    if file.cas[anchor].parent is not None:
        return (
            f"its anchor {anchor} is not the root, and Envoy asks for a CRL of the CA "
            "above an anchor too, which it cannot verify: with CRLs use the root as "
            "the anchor"
        )
    if missing := [one for one, crl in lists.items() if crl is None]:
        return (
            f"no CRL that is not overdue of {', '.join(missing)}, and Envoy refuses "
            "every peer unless each CA of the path has one: make it with `meshca "
            "hierarchy crl`"
        )
    return ""


def _up_to_anchor(file: HierarchyFile, name: str) -> tuple[str, ...]:
    chain = file.chain(name)
    return chain[: chain.index(file.anchor_of(name)) + 1]


def _key(file: HierarchyFile, name: str, secret: Secret) -> CAPrivateKey | None:
    location = file.cas[name].key
    return read_key(location.path, secret) if isinstance(location, KeyInFile) else None


def read_key(path: Path, secret: Secret) -> CAPrivateKey:
    """Read a private key in PEM, encrypted or not.

    Raises:
        ConfigError: It is not there, others can read it, or it is no such key.
    """
    data = read_secret(path)
    try:
        try:
            found = load_pem_private_key(data, None)
        except TypeError:
            passphrase = secret(f"the passphrase of {path}").encode()
            found = load_pem_private_key(data, passphrase)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad(f"{path}: expected a private key in PEM: {error}") from error
    if not isinstance(found, CAPrivateKey):
        raise _bad(f"{path}: expected {CA_KEYS}")
    return found


def _require_name(name: str, known: list[str], section: str) -> None:
    if name not in known:
        shown = ", ".join(known[:8]) or "there are none"
        raise _bad(f"{name}: expected a name under {section}: {shown}")


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.export")
