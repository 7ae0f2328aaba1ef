"""Hierarchy files to begin with: commented, and with nothing for a plan to refuse."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bridge.dataplanes.planes import RUSTLS_PLANES, DataPlane
from bridge.dns_names import is_host
from bridge.errors import ConfigError
from bridge.hierarchy.schema.certificates import LONGEST_NODE_NAME
from bridge.spiffe import TrustDomain

RootBackend = Literal["pkcs11", "file"]
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,18}[a-z0-9])?")
_LONGEST_NAME = 64
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,&()-]{0,39}")


@dataclass(frozen=True, slots=True)
class Profile:
    """What kind of hierarchy a file begins with."""

    title: str
    data_planes: tuple[DataPlane, ...]
    has_control_plane: bool = False
    """Whether the CAs of each cluster's own control plane are in the tree."""


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "sidecar": Profile(
            "Istio with sidecars: URI constraints hold", (DataPlane.SIDECAR,)
        ),
        "ambient": Profile(
            "Istio ambient, with gateways and sidecars: no URI constraint",
            (DataPlane.SIDECAR, DataPlane.AMBIENT),
        ),
        "linkerd": Profile("Linkerd: DNS constraints hold", (DataPlane.LINKERD,)),
        "kubernetes": Profile(
            "Istio with sidecars, and the control plane of each cluster",
            (DataPlane.SIDECAR,),
            has_control_plane=True,
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """What a file is written for.

    Raises:
        ConfigError: A name cannot stand in a file, or a list is empty.
    """

    profile: Profile
    organisation: str = "Corp"
    trust_domains: tuple[str, ...] = ("corp.example",)
    regions: tuple[str, ...] = ("eu",)
    clusters: tuple[str, ...] = ("prod",)
    root_backend: RootBackend = "pkcs11"

    def __post_init__(self) -> None:
        if not _PLAIN.fullmatch(self.organisation):
            raise _bad("organisation", "1 to 40 plain characters", self.organisation)
        for domain in self.trust_domains or ("",):
            TrustDomain(domain)
            if not is_host(domain):
                raise _bad("trust domain", "a DNS name such as corp.example", domain)
        for what, names in (("region", self.regions), ("cluster", self.clusters)):
            for name in names or ("",):
                if not _LABEL.fullmatch(name):
                    raise _bad(what, "1 to 20 of the characters a-z 0-9 -", name)

    @property
    def has_uri_constraint(self) -> bool:
        """Whether each of its data planes works with a URI constraint."""
        return not RUSTLS_PLANES.intersection(self.profile.data_planes)

    @property
    def name(self) -> str:
        """The organisation as the name of the hierarchy."""
        return re.sub("[^a-z0-9]+", "-", self.organisation.lower()).strip("-")


def render(given: StartingPoint) -> str:
    """Return the text of a hierarchy file."""
    return (
        "\n".join([*_head(given), *_cas(given), *_clusters(given), *_tail(given)])
        + "\n"
    )


def _head(given: StartingPoint) -> Iterator[str]:
    yield f"# {given.profile.title}."
    yield "# `meshca hierarchy plan FILE` shows what it would make. No PIN stands here."
    yield "version: 1"
    yield f"name: {given.name}"
    yield f'organisation: "{given.organisation}"  # O of every CA'
    yield f"trust_domains: [{', '.join(given.trust_domains)}]"
    yield "# Who verifies leaves: sidecar (Envoy), ambient (ztunnel), linkerd."
    yield f"data_planes: [{', '.join(given.profile.data_planes)}]"
    yield ""
    yield "cas:"


def _cas(given: StartingPoint) -> Iterator[str]:
    yield "  root:  # stays offline; verifiers trust it, so it has no constraints"
    yield from _entry(given, "Root CA", "root", "p384", "years: 20", 2)
    for region in given.regions:
        yield ""
        yield f"  {region}:  # may sign issuing CAs of its region, each within this"
        yield "    parent: root"
        title = f"{region} Regional CA"
        yield from _entry(given, title, region, "p384", "years: 5", 1)
        yield f"    name_constraints: &{region}-names"
        yield from _mesh_names(given)
        for cluster in given.clusters:
            name = f"{region}-{cluster}"
            yield ""
            yield f"  {name}:  # the key that the bridge of this cluster uses"
            yield f"    parent: {region}"
            yield "    purpose: mesh"
            title = f"{name} Issuing CA"
            yield from _entry(given, title, name, "p256", "years: 1", 0)
            yield f"    name_constraints: *{region}-names"
        if given.profile.has_control_plane:
            yield from _control_planes(given, region)


def _entry(
    given: StartingPoint,
    title: str,
    name: str,
    algorithm: str,
    validity: str,
    path_len: int,
) -> Iterator[str]:
    common_name = f"{given.organisation} {title}"
    if len(common_name) > _LONGEST_NAME:
        common_name = title
    yield f'    common_name: "{common_name}"'
    if path_len and given.root_backend == "pkcs11":
        token = f"pkcs11:token={given.name}-offline;object={name}"
        if name == "root":
            yield "    # The PIN is asked for when the key is used."
        where = ("backend: pkcs11", f'uri: "{token}"')
    else:
        where = ("backend: file", f"path: keys/{name}.key")
    yield "    key:"
    for line in where:
        yield f"      {line}"
    yield f"      algorithm: {algorithm}"
    yield f"    validity: {{{validity}}}"
    yield f"    path_len: {path_len}"


def _mesh_names(given: StartingPoint) -> Iterator[str]:
    hosts = [form for one in given.trust_domains for form in (one, f".{one}")]
    yield "      # A host and its subdomains: verifiers differ, so both are written."
    yield "      permitted:"
    yield f"        dns: [{', '.join(hosts)}, svc, .svc,"
    yield "          cluster.local, .cluster.local]"
    if given.has_uri_constraint:
        yield f"        uri: [{', '.join(hosts)}]  # hosts of SPIFFE IDs"
    yield "        email: [invalid]  # a host that cannot exist: no address at all"
    yield "      excluded:"
    yield '        ip: ["0.0.0.0/0", "::/0"]  # no leaf has an address'


def _control_planes(given: StartingPoint, region: str) -> Iterator[str]:
    parent, alias = f"{region}-platform", f"{region}-platform-names"
    yield ""
    yield f"  {parent}:  # beside the meshes: its leaves have addresses"
    yield "    parent: root"
    title = f"{region} Platform CA"
    yield from _entry(given, title, parent, "p384", "years: 5", 1)
    yield f"    name_constraints: &{alias}"
    yield "      permitted:"
    yield "        # The API server and the nodes. Add the names of your own."
    yield "        dns: [kubernetes, kubernetes.default, svc, cluster.local, localhost,"
    hosts = ", ".join(f"nodes.{one}" for one in given.trust_domains)
    yield f"          {hosts}]"
    yield "        uri: [invalid, .invalid]  # no SPIFFE ID: its keys are no mesh's"
    yield "        # Nodes, Services and loopback. Write the networks of your own."
    yield '        ip: ["10.0.0.0/8", "127.0.0.0/8", "::1/128"]'
    yield "        email: [invalid]"
    for cluster in given.clusters:
        for purpose, title in (
            ("kubernetes", "Kubernetes CA"),
            ("etcd", "etcd CA"),
            ("front-proxy", "Front Proxy CA"),
        ):
            name = f"{region}-{cluster}-{purpose}"
            yield ""
            yield f"  {name}:"
            yield f"    parent: {parent}"
            yield f"    purpose: {purpose}  # its own anchor: never trust the root here"
            whole = f"{region}-{cluster} {title}"
            yield from _entry(given, whole, name, "p256", "years: 3", 0)
            if purpose == "front-proxy":
                yield "    ext_key_usage: [client_auth]  # its key makes no server"
            yield f"    name_constraints: *{alias}"


def _clusters(given: StartingPoint) -> Iterator[str]:
    nodes = f"nodes.{given.trust_domains[0]}"
    # Node names are bounded by the common name of their certificates.
    too_long = len(f"worker-1.{nodes}") > LONGEST_NODE_NAME
    if not given.profile.has_control_plane or too_long:
        return
    yield ""
    yield "# The nodes of each cluster; `hierarchy export` writes their certificates."
    yield "certificates:"
    for region in given.regions:
        for cluster in given.clusters:
            name = f"{region}-{cluster}"
            yield f"  {name}:"
            for purpose in ("kubernetes", "etcd", "front-proxy"):
                yield f"    {purpose.replace('-', '_')}_ca: {name}-{purpose}"
            yield "    # Where nodes and users find the API servers."
            yield f"    endpoint: https://{name}.{nodes}:6443"
            yield "    service_range: 10.96.0.0/12"
            yield "    control_planes:"
            yield f'      cp-1.{nodes}: {{ip: ["10.0.0.11"]}}'
            yield "    workers:"
            yield f'      worker-1.{nodes}: {{ip: ["10.0.0.21"]}}'


def _tail(given: StartingPoint) -> Iterator[str]:
    yield ""
    yield "# Who signs the transcript, and how many of them have to:"
    yield "# officers:"
    yield "# - {name: Ada, role: security officer, public_key: officers/ada.pem}"
    yield "# quorum: 1"
    if not given.has_uri_constraint:
        yield ""
        yield "# A warning fails unless it stands here with its reason."
        yield "accepted:"
        for region in given.regions:
            yield "- rule: constraints.uri-unconstrained"
            yield f"  ca: {region}"
            yield "  reason: rustls rejects SPIFFE IDs under a URI constraint, and the"
            yield "    bridge holds leaves to the trust domain"


def _bad(what: str, expected: str, found: str) -> ConfigError:
    return ConfigError(
        f"{what}: expected {expected} (found {found!r})", rule="hierarchy.init"
    )
