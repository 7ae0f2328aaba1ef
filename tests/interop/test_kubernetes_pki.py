"""A real etcd and a real API server run on an export, and take only its clients."""

import ipaddress
import shutil
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from bridge.errors import AuthenticationError
from bridge.hierarchy.export.shapes import SHAPES, ExportedCA, ShapeOptions
from bridge.hierarchy.kubernetes_pki.issue import LeafIssuer, issue_all
from bridge.hierarchy.kubernetes_pki.layouts import component_files
from bridge.hierarchy.kubernetes_pki.profiles import ADMINS
from bridge.hierarchy.schema import ClusterCA
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.identity.client_certificate import spiffe_id_of
from bridge.spiffe import TrustDomain
from bridge.system.clock import system_clock
from bridge.system.files import write_new
from bridge.x509.certificate import value_in
from tests.interop.planes.all_planes import ask_all
from tests.interop.planes.verifiers import Verdicts
from tests.support.parts import netports
from tests.support.parts.cluster_pki import cluster, issuer_of
from tests.support.parts.kubernetes_pki import Client, ControlPlane, await_true
from tests.support.parts.pki import Authority, new_key, new_root

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("kubernetes-pki")]

OK, CREATED, FORBIDDEN, UNAUTHORIZED = 200, 201, 403, 401
CART = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/cart")
HOST = x509.DNSName("localhost")
REFUSED = r"(?i)unknown.ca|certificate|reset|eof|pipe|closed"
"""How a handshake ends that the server does not complete."""
_RIGHTS = "rbac.authorization.k8s.io"
BINDINGS = f"/apis/{_RIGHTS}/v1/clusterrolebindings"
BINDING = {
    "metadata": {"name": ADMINS},
    "subjects": [{"apiGroup": _RIGHTS, "kind": "Group", "name": ADMINS}],
    "roleRef": {"apiGroup": _RIGHTS, "kind": "ClusterRole", "name": "cluster-admin"},
}
"""What kubeadm makes of an administrator's group."""
STORE = shutil.ignore_patterns("store", "log")


def subject(common_name: str, group: str = "") -> x509.Name:
    parts = [(NameOID.ORGANIZATION_NAME, group), (NameOID.COMMON_NAME, common_name)]
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts if text])


class Tree:
    """One root; below it a mesh and the three CAs of a cluster."""

    def __init__(self) -> None:
        self.start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
        self.root = new_root("corp root", not_before=self.start)
        domains = (TrustDomain("corp.example"),)
        throwaway = make(ThrowawaySpec(trust_domains=domains))
        found = throwaway.intermediate.certificate.extensions
        mesh = value_in(found, x509.NameConstraints)
        region = self.root.issue_ca("corp eu", path_length=1, constraints=mesh)
        self.mesh = region.issue_ca("corp mesh", path_length=0, constraints=mesh)
        hosts = ("kubernetes", "cluster.local", "default", "svc", "localhost")
        nodes = ("cp-1", "worker-1")
        forms = [form for one in (*hosts, *nodes) for form in (one, f".{one}")]
        networks = ("10.96.0.0/16", "127.0.0.0/8", "::1/128")
        self.cluster_constraints = x509.NameConstraints(
            [
                *map(x509.DNSName, forms),
                *(x509.IPAddress(ipaddress.ip_network(one)) for one in networks),
                # No workload of a mesh: its identity is a URI.
                x509.UniformResourceIdentifier("invalid"),
            ],
            None,
        )
        self.kubernetes, self.etcd, self.front_proxy = (
            self.root.issue_ca(
                f"corp {name}", path_length=0, constraints=self.cluster_constraints
            )
            for name in ("kubernetes", "etcd", "front proxy")
        )

    def client(
        self, ca: Authority, subject: x509.Name, *names: x509.GeneralName
    ) -> Client:
        """Sign a client with the key of `ca`, as a thief of the key can."""
        key = new_key()
        leaf = ca.issue_leaf(*names, key=key, not_before=self.start, subject=subject)
        return Client.of([leaf, *ca.chain], key, self.kubernetes.pem + self.etcd.pem)


@dataclass(frozen=True)
class Ground:
    tree: Tree
    plane: ControlPlane
    folder: Path
    """Of the export: a folder for each node."""
    clients: Mapping[str, Client]

    def ask(self, client: Client | None, **headers: str) -> int:
        """List the namespaces, which administrators may; return the status."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.plane.call(client, headers=sent)[0]

    def anchor(self, name: str, certificate: bytes) -> None:
        """Replace a CA that the API server takes clients of; it reads the file anew."""
        path = self.plane.folder / "kube-apiserver" / name
        new = path.with_suffix(".new")
        new.write_bytes(certificate)
        new.replace(path)

    def await_status(self, status: int, client: Client, **headers: str) -> None:
        await_true(
            lambda: self.ask(client, **headers) == status,
            lambda: f"the last status was {self.ask(client, **headers)}",
        )


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    tree, folder = Tree(), tmp_path_factory.mktemp("export")
    port = netports.reserve()
    own = {"ip": ["127.0.0.1"]}
    planned = cluster(
        endpoint=f"https://127.0.0.1:{port}",
        local_port=port,
        service_range="10.96.0.0/16",
        control_planes={"cp-1": own},
        workers={"worker-1": own},
    )
    issuers: dict[ClusterCA, LeafIssuer] = {
        "kubernetes": issuer_of(tree.kubernetes),
        "etcd": issuer_of(tree.etcd),
        "front-proxy": issuer_of(tree.front_proxy),
    }
    leaves = issue_all(planned, issuers, clock=system_clock)
    write_new(folder, component_files(planned, issuers, leaves, new_key("p256")))
    node = folder / "cp-1"
    clients = {
        name: Client.of_kubeconfig(node / path)
        for name, path in (
            ("admin", "kubectl/admin.conf"),
            ("super-admin", "kubectl/super-admin.conf"),
            ("controller-manager", "kube-controller-manager/kubeconfig"),
            ("scheduler", "kube-scheduler/kubeconfig"),
            ("kubelet", "kubelet/kubeconfig"),
        )
    }
    clients["worker"] = Client.of_kubeconfig(folder / "worker-1/kubelet/kubeconfig")
    anchors = tree.kubernetes.pem + tree.etcd.pem
    for name, path in (
        ("healthcheck", "etcdctl/client"),
        ("etcd-client", "kube-apiserver/etcd-client"),
        ("front-proxy", "kube-apiserver/front-proxy-client"),
    ):
        certificate = (node / f"{path}.crt").read_bytes()
        key = (node / f"{path}.key").read_bytes()
        clients[name] = Client(certificate, key, anchors)
    clients["super-admin"] = replace(clients["super-admin"], anchors=anchors)
    clients["kubelet"] = replace(clients["kubelet"], anchors=anchors)
    more = (
        "--authorization-mode=Node,RBAC",
        "--disable-admission-plugins=ServiceAccount",
        "--kubelet-preferred-address-types=InternalIP",
        "--feature-gates=ClusterTrustBundle=true",
        "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
    )
    with ControlPlane(node, port, clients["super-admin"], more) as plane:
        made = plane.call(clients["super-admin"], "POST", BINDINGS, BINDING)
        assert made[0] == CREATED, made
        yield Ground(tree, plane, folder, clients)


SECRETS = "/api/v1/secrets"
MASTER = subject("eve", "system:masters")
AS_ADMIN = {"X_Remote_User": "eve", "X_Remote_Group": "system:masters"}
"""What the front proxy says of whom it asks for."""


@pytest.mark.parametrize(
    ("client", "path", "status"),
    [
        ("super-admin", SECRETS, OK),
        ("admin", SECRETS, OK),
        ("controller-manager", "/api/v1/serviceaccounts", OK),
        ("controller-manager", "/metrics", FORBIDDEN),
        ("scheduler", "/api/v1/pods", OK),
        ("scheduler", SECRETS, FORBIDDEN),
        ("kubelet", "/api/v1/services", OK),
        ("kubelet", SECRETS, FORBIDDEN),
    ],
)
def test_each_client_may_what_its_user_and_group_may(
    ground: Ground, client: str, path: str, status: int
) -> None:
    assert ground.plane.call(ground.clients[client], path=path)[0] == status


def test_nobody_without_a_certificate_is_taken(ground: Ground) -> None:
    assert ground.ask(None) == UNAUTHORIZED
    with pytest.raises(OSError, match=REFUSED):
        ground.plane.read_etcd(None)


def test_a_client_of_an_unknown_group_may_nothing(ground: Ground) -> None:
    tree = ground.tree
    eve = tree.client(tree.kubernetes, subject("eve", "strangers"), HOST)
    assert ground.ask(eve) == FORBIDDEN


def test_a_workload_of_the_mesh_is_no_client(ground: Ground) -> None:
    cart = ground.tree.client(ground.tree.mesh, x509.Name([]), CART)
    assert ground.ask(cart) == UNAUTHORIZED
    with pytest.raises(OSError, match=REFUSED):
        ground.plane.read_etcd(cart)


@pytest.mark.parametrize("client", ["healthcheck", "etcd-client"])
def test_etcd_takes_its_own_clients(ground: Ground, client: str) -> None:
    assert ground.plane.read_etcd(ground.clients[client]) == OK


@pytest.mark.parametrize("client", ["super-admin", "kubelet", "front-proxy"])
def test_etcd_takes_no_client_of_the_other_cas(ground: Ground, client: str) -> None:
    with pytest.raises(OSError, match=REFUSED):
        ground.plane.read_etcd(ground.clients[client])


@pytest.mark.parametrize("client", ["healthcheck", "etcd-client", "front-proxy"])
def test_the_api_server_takes_no_client_of_the_other_cas(
    ground: Ground, client: str
) -> None:
    assert ground.ask(ground.clients[client]) == UNAUTHORIZED


def test_under_the_common_root_a_constrained_mesh_ca_signs_an_administrator(
    ground: Ground,
) -> None:
    """DNS, URI and IP constraints say nothing of a subject."""
    tree = ground.tree
    thief = tree.client(tree.mesh, MASTER, CART)
    assert ground.ask(thief) == UNAUTHORIZED
    ground.anchor("client-ca.crt", tree.root.pem)
    ground.await_status(OK, thief)
    ground.anchor("client-ca.crt", tree.kubernetes.pem)
    ground.await_status(UNAUTHORIZED, thief)
    assert ground.ask(ground.clients["admin"]) == OK


def test_under_the_common_root_a_mesh_ca_signs_a_front_proxy(ground: Ground) -> None:
    tree = ground.tree
    thief = tree.client(tree.mesh, subject("front-proxy-client"), CART)
    assert ground.ask(ground.clients["front-proxy"], **AS_ADMIN) == OK
    assert ground.ask(thief, **AS_ADMIN) == UNAUTHORIZED
    ground.anchor("front-proxy-ca.crt", tree.root.pem)
    ground.await_status(OK, thief, **AS_ADMIN)
    ground.anchor("front-proxy-ca.crt", tree.front_proxy.pem)
    ground.await_status(UNAUTHORIZED, thief, **AS_ADMIN)


def test_under_the_common_root_a_mesh_ca_signs_a_client_of_etcd(
    ground: Ground, tmp_path: Path
) -> None:
    tree = ground.tree
    thief = tree.client(tree.mesh, subject("eve"), CART)
    with pytest.raises(OSError, match=REFUSED):
        ground.plane.read_etcd(thief)
    shutil.copytree(ground.folder / "cp-1/etcd", tmp_path / "etcd", ignore=STORE)
    (tmp_path / "etcd/ca.crt").write_bytes(tree.root.pem)
    # Under the root etcd, which is its own client too, has to send its chain.
    with (tmp_path / "etcd/server.crt").open("ab") as certificates:
        certificates.write(tree.etcd.pem)
    with ControlPlane(tmp_path, 0, thief).etcd_alone() as etcd:
        assert etcd.read_etcd(thief) == OK


def test_the_api_server_and_a_kubelet_take_each_other(ground: Ground) -> None:
    """A stand-in for the kubelet's port, on the certificate of the export."""
    node = {"metadata": {"name": "worker-1"}}
    own = "/api/v1/nodes/worker-1"
    worker = ground.clients["worker"]
    assert ground.plane.call(worker, "POST", "/api/v1/nodes", node)[0] == CREATED
    assert ground.plane.call(ground.clients["kubelet"], path=own)[0] == FORBIDDEN
    pods = "/api/v1/namespaces/default/pods"
    with KubeletPort(ground.folder / "worker-1/kubelet") as port:
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port.server_port}},
        }
        patched = ground.plane.call(
            worker, "PATCH", f"{own}/status", {"status": status}
        )
        assert patched[0] == OK, patched
        pod = {
            "metadata": {"name": "cart"},
            "spec": {
                "nodeName": "worker-1",
                "containers": [{"name": "cart", "image": "cart"}],
            },
        }
        admin = ground.clients["admin"]
        assert ground.plane.call(admin, "POST", pods, pod)[0] == CREATED
        answer = ground.plane.call(admin, path=f"{pods}/cart/log")
    assert answer[0] == OK, answer
    assert "kube-apiserver-kubelet-client" in answer[1]["text"]


_IN_NAMESPACE = "/api/v1/namespaces/default"


@pytest.mark.parametrize(
    ("shape", "file", "path"),
    [
        ("istio-cacerts", "secret.yaml", f"{_IN_NAMESPACE}/secrets"),
        ("linkerd-issuer", "secret.yaml", f"{_IN_NAMESPACE}/secrets"),
        ("tls", "secret.yaml", f"{_IN_NAMESPACE}/secrets"),
        ("linkerd-trust-roots", "trust-roots.yaml", f"{_IN_NAMESPACE}/configmaps"),
        (
            "cluster-trust-bundle",
            "cluster-trust-bundle.yaml",
            "/apis/certificates.k8s.io/v1beta1/clustertrustbundles",
        ),
    ],
)
def test_the_api_server_takes_what_is_exported_of_a_mesh(
    ground: Ground, shape: str, file: str, path: str
) -> None:
    mesh = ground.tree.mesh
    region, root = (one.certificate for one in mesh.above)
    ca = ExportedCA(
        name="mesh", chain=(mesh.certificate, region), anchor=root, key=mesh.key
    )
    options = ShapeOptions(namespace="default")
    content = yaml.safe_load(SHAPES[shape].files(ca, options)[file])
    # The server fails what it does not know, which it drops otherwise.
    made = ground.plane.call(
        ground.clients["admin"], "POST", f"{path}?fieldValidation=Strict", content
    )
    assert made[0] == CREATED, made
    assert made[1].get("type") == content.get("type")


@pytest.fixture(scope="module")
def verdicts(
    ground: Ground, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Verdicts]:
    """Return what each plane that trusts the root says of two leaves, by its letter."""
    tree, folder = ground.tree, tmp_path_factory.mktemp("chains")
    shown = {
        "mesh": tree.client(tree.mesh, x509.Name([]), CART),
        "thief": tree.client(tree.kubernetes, x509.Name([]), CART),
    }
    for name, client in shown.items():
        (folder / f"{name}.chain").write_bytes(client.certificates)
        (folder / f"{name}.roots").write_bytes(tree.root.pem)
        (folder / f"{name}.key").write_bytes(client.key)
    return ask_all([*shown], folder, datetime.now(UTC))


def test_a_stolen_key_of_the_kubernetes_ca_makes_no_workload_of_the_mesh(
    verdicts: dict[str, Verdicts],
) -> None:
    """Its constraints permit no URI, and its anchor is not that of the mesh."""
    for plane, said in verdicts.items():
        assert said["thief"], plane
        # rustls takes no URI under the URI constraint that a mesh of sidecars has.
        assert bool(said["mesh"]) is (plane in "al"), (plane, said["mesh"])


@pytest.mark.parametrize("client", ["admin", "kubelet", "front-proxy"])
def test_a_client_of_the_cluster_is_no_caller_of_the_bridge(
    ground: Ground, client: str
) -> None:
    shown = ground.clients[client].certificates
    with pytest.raises(AuthenticationError, match="URI"):
        spiffe_id_of(shown, now=datetime.now(UTC))


class KubeletPort(ThreadingHTTPServer):
    """Answers each request with the common name of the client certificate."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Kubelet)
        context = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "client-ca.crt")
        )
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Kubelet(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.connection, ssl.SSLSocket)
        shown = self.connection.getpeercert() or {}
        self.send_response(OK)
        self.end_headers()
        self.wfile.write(f"asked by {shown['subject']}".encode())

    def log_message(self, *_: object) -> None:
        pass
