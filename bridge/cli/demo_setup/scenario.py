"""The surroundings of the demo: a hierarchy, a cluster's tokens, a configuration.

Keys, configuration and ledger are throwaway, and in one folder. Where the issuing key
is says `backends`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bridge.cli.demo_setup.backends import FileKey, IssuingKey, free_addresses
from bridge.errors import ConfigError
from bridge.hierarchy.export import write
from bridge.hierarchy.issuing_csr import read_issuing_key
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.spiffe import TrustDomain
from bridge.system.clock import Clock
from bridge.x509.algorithm import new_key
from bridge.x509.pem import key_pem

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


def cluster_in(folder: Path) -> DemoCluster:
    """Return the cluster of a folder, with its `cluster.key`, which is made if absent.

    Its public half is written to `jwks.json`.
    """
    file = folder / "cluster.key"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_bytes(key_pem(new_key("p256")))
    key = load_pem_private_key(file.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{file}: expected an EC key", rule="demo.cluster")
    cluster = DemoCluster("Kubernetes", "https://kubernetes.default.svc", key)
    (folder / "jwks.json").write_text(cluster.jwks(), "utf-8")
    return cluster


@dataclass(frozen=True, slots=True)
class Scenario:
    """The folder of the demo, and the cluster whose workloads request certificates."""

    folder: Path
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


def prepare(folder: Path, clock: Clock, key: IssuingKey | None = None) -> Scenario:
    """Make issuing key, hierarchy, token keys and configuration in a folder.

    Args:
        folder: New or empty, or with what the backend has made; made with mode 0700 if
            absent.
        clock: The beginning of the certificates.
        key: The issuing key; by default it is in a file.

    Raises:
        ConfigError: A program of the backend failed.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    scenario = Scenario(folder, cluster_in(folder))
    addresses = tuple(free_addresses(7))
    key = key or FileKey()
    _write_configurations(scenario, key, addresses)
    csr = key.make(scenario.configuration)
    spec = ThrowawaySpec(trust_domains=(TrustDomain(TRUST_DOMAIN),))
    public_key = None if csr is None else read_issuing_key(csr)
    write(make(spec, clock=clock, issuing_key=public_key), folder / "hierarchy")
    key.certify(scenario.configuration)
    # Only now are all options known.
    _write_configurations(scenario, key, addresses)
    return scenario


def _write_configurations(
    scenario: Scenario, key: IssuingKey, addresses: Sequence[str]
) -> None:
    linkerd, *others = addresses
    cluster, journal = scenario.cluster, "mistaken-journal"
    good = _configuration(cluster, TRUST_DOMAIN, "journal", others[:3])
    good["fronts"] |= {"linkerd": {"listen": linkerd}}
    bad = _configuration(cluster, FOREIGN_TRUST_DOMAIN, journal, others[3:])
    for path, content in ((scenario.configuration, good), (scenario.mistaken, bad)):
        content["issuing_cas"] = {
            "demo": {
                "plugin": key.plugin,
                "chain": "hierarchy/chain.pem",
                "options": key.options,
            }
        }
        path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")


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
                "mtls_identities": [{"namespaces": ["shop"]}],
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
        "trust_anchors": "hierarchy/roots.pem",
        "issuance": {"issuing_cas": ["demo"]},
        "ledger": {
            "journal": journal,
            "archive": f"sqlite:///{journal}.db",
            "heads": {"sink": f"{journal}-heads.jsonl"},
        },
        "admin": {"listen": admin},
    }
