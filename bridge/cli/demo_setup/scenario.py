"""The surroundings of the demo: a hierarchy, a cluster's tokens, a configuration.

Keys, configuration and ledger are throwaway, and in one folder.
"""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from bridge.hierarchy.export import write
from bridge.hierarchy.throwaway import Hierarchy, ThrowawaySpec, make
from bridge.spiffe import TrustDomain
from bridge.system.clock import Clock

TRUST_DOMAIN = "corp.example"
FOREIGN_TRUST_DOMAIN = "partner.example"
"""A trust domain that the chain's name constraints do not permit."""
SERVER_NAME = "meshca.istio-system.svc"
ISTIO_AUDIENCE = "istio-ca"
LINKERD_AUDIENCE = "identity.l5d.io"
_KEY_ID = "demo"
_TOKEN_LIFE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class DemoCluster:
    """Stands in for the API server: signs service-account tokens in its format."""

    name: str
    issuer: str
    key: ec.EllipticCurvePrivateKey

    def jwks(self) -> str:
        """Return the public key as a JSON Web Key Set."""
        algorithm = jwt.algorithms.ECAlgorithm
        found = algorithm.to_jwk(self.key.public_key(), as_dict=True)
        return json.dumps({"keys": [{**found, "kid": _KEY_ID, "alg": "ES256"}]})

    def token(
        self,
        namespace: str,
        service_account: str,
        now: datetime,
        audience: str = ISTIO_AUDIENCE,
    ) -> str:
        """Sign a token as a pod of `service_account` would find it mounted."""
        claims = {
            "iss": self.issuer,
            "sub": f"system:serviceaccount:{namespace}:{service_account}",
            "aud": [audience],
            "iat": int(now.timestamp()),
            "nbf": int(now.timestamp()),
            "exp": int((now + _TOKEN_LIFE).timestamp()),
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": service_account, "uid": "demo"},
                "pod": {"name": f"{service_account}-0", "uid": "demo"},
            },
        }
        return jwt.encode(claims, self.key, "ES256", headers={"kid": _KEY_ID})


@dataclass(frozen=True, slots=True)
class Scenario:
    """The folder of the demo, and the cluster whose workloads request certificates."""

    folder: Path
    hierarchy: Hierarchy
    cluster: DemoCluster

    @property
    def configuration(self) -> Path:
        """The file for `meshca serve -c`, `check -c`, `ledger verify -c`."""
        return self.folder / "bridge.yaml"

    @property
    def mistaken(self) -> Path:
        """The same with a mistake: a trust domain that the chain does not permit."""
        return self.folder / "mistaken.yaml"

    @property
    def roots(self) -> Path:
        """The trust anchors."""
        return self.folder / "hierarchy" / "roots.pem"


def prepare(folder: Path, clock: Clock) -> Scenario:
    """Make hierarchy, token keys and configuration in `folder`, which must be new."""
    hierarchy = make(
        ThrowawaySpec(trust_domains=(TrustDomain(TRUST_DOMAIN),)), clock=clock
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(hierarchy, folder / "hierarchy")
    cluster = DemoCluster(
        "Kubernetes",
        "https://kubernetes.default.svc",
        ec.generate_private_key(ec.SECP256R1()),
    )
    (folder / "jwks.json").write_text(cluster.jwks(), "utf-8")
    scenario = Scenario(folder, hierarchy, cluster)
    linkerd, *addresses = _free_addresses(7)
    good = _configuration(cluster, TRUST_DOMAIN, "journal", addresses[:3])
    good["fronts"] |= {"linkerd": {"listen": linkerd}}
    journal = "mistaken-journal"
    bad = _configuration(cluster, FOREIGN_TRUST_DOMAIN, journal, addresses[3:])
    for path, content in ((scenario.configuration, good), (scenario.mistaken, bad)):
        path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    return scenario


def _free_addresses(number: int) -> Iterator[str]:
    # All are bound before the first is released: each is another one.
    with ExitStack() as stack:
        for _ in range(number):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            yield f"127.0.0.1:{probe.getsockname()[1]}"


def _configuration(
    cluster: DemoCluster, trust_domain: str, journal: str, addresses: Sequence[str]
) -> dict[str, Any]:
    istio, istio_mtls, admin = addresses
    return {
        "trust_domain": TRUST_DOMAIN,
        "fronts": {
            "istio": {
                "listen": istio,
                "mtls_listen": istio_mtls,
                "audiences": [ISTIO_AUDIENCE],
                "tls": {"dns_names": [SERVER_NAME, "localhost"]},
            }
        },
        "clusters": [
            {
                "name": cluster.name,
                "trust_domain": trust_domain,
                "tokens": {
                    "verify": "jwks",
                    "file": "jwks.json",
                    "issuer": cluster.issuer,
                },
            },
        ],
        "issuing_cas": {
            "demo": {
                "plugin": "file",
                "chain": "hierarchy/chain.pem",
                "options": {"key": "hierarchy/issuing.key"},
            }
        },
        "trust_anchors": "hierarchy/roots.pem",
        "issuance": {"issuing_cas": ["demo"]},
        "ledger": {
            "journal": journal,
            "archive": f"sqlite:///{journal}.db",
            "heads": {"sink": f"{journal}-heads.jsonl"},
        },
        "admin": {"listen": admin},
    }
