"""An issuing CA and its trust anchor, in the shapes that others read.

Every shape has the chain from the issuing CA up to below the anchor. The anchor is what
the plan says: the common root, or a regional or environment CA in place of it.

Source:
    Istio, "Plug in CA Certificates"; Linkerd, "Automatically Rotating Control Plane TLS
    Credentials"; cert-manager, "CA" and "Vault" under "Configuration"; trust-manager,
    "API Reference"; KEP-3257 (ClusterTrustBundle); Vault, "PKI secrets engine (API)".
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import ConfigError
from bridge.x509.algorithm import CAPrivateKey
from bridge.x509.pem import key_pem, pem_of

CRL_SHAPE = "istio-crl"
"""The shape of the lists alone."""
Files = dict[str, bytes]
"""Contents by their path below the folder of the export."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedCA:
    """What is known of an issuing CA when it is exported."""

    name: str
    chain: tuple[x509.Certificate, ...]
    """Its own certificate first, then those above it up to below the anchor."""
    anchor: x509.Certificate
    key: CAPrivateKey | None = field(default=None, repr=False)
    """None where it stays in a token, in Vault, or on another machine."""
    crls: tuple[bytes, ...] = ()
    """The CRL of each CA of the chain and of the anchor, in PEM."""
    no_crls: str = ""
    """Why there are none; empty if each CA has one."""

    @property
    def chain_pem(self) -> bytes:
        """The chain, in order."""
        return pem_of(*self.chain)

    @property
    def anchor_pem(self) -> bytes:
        """The trust anchor."""
        return pem_of(self.anchor)

    @property
    def key_pem(self) -> bytes:
        """The private key, in PKCS#8 and not encrypted, as all readers want it.

        Raises:
            ConfigError: The key is not here.
        """
        if self.key is None:
            raise ConfigError(
                f"{self.name}: this shape holds the private key, which is not in a "
                "file: export a shape without it, such as trust-manager or pem, and "
                "let the bridge, or Vault, issue",
                rule="hierarchy.export",
            )
        return key_pem(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultIssuer:
    """How cert-manager asks Vault."""

    server: str
    """Such as `https://vault.corp.example:8200`."""
    path: str
    """Of the engine that signs: `MOUNT/sign/ROLE`."""
    role: str
    """Of the login, at the mount `kubernetes`."""
    service_account: str
    ca_bundle: bytes = b""
    """What the server's certificate is verified with; by default what the container of
    cert-manager has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeOptions:
    """What a shape has to know besides the CA."""

    namespace: str | None = None
    """By default that of the reader's own installation."""
    signer: str = "istio.io/istiod-ca"
    """`signerName` of a ClusterTrustBundle; Istio's by default."""
    bundle: str = "root-cert"
    """Last part of the name of a ClusterTrustBundle; Istio's by default."""
    vault: VaultIssuer | None = None


def cacerts(ca: ExportedCA) -> Files:
    """Return Istio's four files, as istiod and the bridge read them."""
    return {
        "ca-cert.pem": pem_of(ca.chain[0]),
        "ca-key.pem": ca.key_pem,
        "cert-chain.pem": ca.chain_pem,
        "root-cert.pem": ca.anchor_pem,
    }


def tls(ca: ExportedCA) -> Files:
    """Return the three files of a `kubernetes.io/tls` Secret of cert-manager."""
    return {"tls.crt": ca.chain_pem, "tls.key": ca.key_pem, "ca.crt": ca.anchor_pem}


def _pem_files(ca: ExportedCA, _: ShapeOptions) -> Files:
    return {
        f"{ca.name}.pem": pem_of(ca.chain[0]),
        "chain.pem": ca.chain_pem,
        "anchor.pem": ca.anchor_pem,
    }


def _der_files(ca: ExportedCA, _: ShapeOptions) -> Files:
    above = {
        f"intermediate-{number}.der": _der(one)
        for number, one in enumerate(ca.chain[1:], 1)
    }
    own = {f"{ca.name}.der": _der(ca.chain[0])}
    return own | above | {"anchor.der": _der(ca.anchor)}


def _istio(ca: ExportedCA, options: ShapeOptions) -> Files:
    files = cacerts(ca)
    if ca.crls and not ca.no_crls:
        files["ca-crl.pem"] = b"".join(ca.crls)
    secret = _secret(
        "cacerts", options.namespace or "istio-system", files, kind="Opaque"
    )
    return {f"cacerts/{name}": data for name, data in files.items()} | {
        "secret.yaml": _yaml(secret)
    }


def _istio_crl(ca: ExportedCA, options: ShapeOptions) -> Files:
    if ca.no_crls:
        raise ConfigError(f"{ca.name}: {ca.no_crls}", rule="hierarchy.export")
    content = b"".join(ca.crls)
    # istiod writes it to every namespace, and proxies mount the one of their own.
    place = {"namespace": options.namespace} if options.namespace else {}
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "istio-ca-crl", **place},
        "data": {"ca-crl.pem": content.decode()},
    }
    return {"ca-crl.pem": content, "configmap.yaml": _yaml(manifest)}


def _linkerd_issuer(ca: ExportedCA, options: ShapeOptions) -> Files:
    namespace = options.namespace or "linkerd"
    secret = _secret("linkerd-identity-issuer", namespace, tls(ca))
    return {"secret.yaml": _yaml(secret)} | _linkerd_roots(ca, options)


def _linkerd_roots(ca: ExportedCA, options: ShapeOptions) -> Files:
    content = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "linkerd-identity-trust-roots",
            "namespace": options.namespace or "linkerd",
        },
        "data": {"ca-bundle.crt": ca.anchor_pem.decode()},
    }
    return {"trust-roots.yaml": _yaml(content), "ca-bundle.crt": ca.anchor_pem}


def _tls_files(ca: ExportedCA, options: ShapeOptions) -> Files:
    files = tls(ca)
    secret = _secret(ca.name, options.namespace or "cert-manager", files)
    return {f"tls/{name}": data for name, data in files.items()} | {
        "secret.yaml": _yaml(secret)
    }


def _ca_issuer(kind: str) -> Callable[[ExportedCA, ShapeOptions], Files]:
    def files(ca: ExportedCA, options: ShapeOptions) -> Files:
        namespace = options.namespace or "cert-manager"
        issuer = _issuer(kind, ca, namespace, {"ca": {"secretName": ca.name}})
        return {
            "issuer.yaml": _yaml(issuer),
            "secret.yaml": _yaml(_secret(ca.name, namespace, tls(ca))),
        }

    return files


def _vault_issuer(kind: str) -> Callable[[ExportedCA, ShapeOptions], Files]:
    def files(ca: ExportedCA, options: ShapeOptions) -> Files:
        vault = options.vault
        if vault is None:
            raise ConfigError(
                f"{ca.name}: an issuer of kind Vault needs --vault-server, "
                "--vault-path, --vault-role and --vault-service-account",
                rule="hierarchy.export",
            )
        bundle = {"caBundle": _base64(vault.ca_bundle)} if vault.ca_bundle else {}
        spec = {
            "vault": {
                "server": vault.server,
                "path": vault.path,
                **bundle,
                "auth": {
                    "kubernetes": {
                        "role": vault.role,
                        "mountPath": "/v1/auth/kubernetes",
                        "serviceAccountRef": {"name": vault.service_account},
                    }
                },
            }
        }
        namespace = options.namespace or "cert-manager"
        return {"issuer.yaml": _yaml(_issuer(kind, ca, namespace, spec))}

    return files


def _trust_manager(ca: ExportedCA, _: ShapeOptions) -> Files:
    content = {
        "apiVersion": "trust.cert-manager.io/v1alpha1",
        "kind": "Bundle",
        "metadata": {"name": ca.name},
        "spec": {
            "sources": [{"inLine": ca.anchor_pem.decode()}],
            "target": {"configMap": {"key": "ca-bundle.crt"}},
        },
    }
    return {"bundle.yaml": _yaml(content)}


def _cluster_trust_bundle(ca: ExportedCA, options: ShapeOptions) -> Files:
    # The API server wants the signer's name in front, with a colon for each slash.
    prefix = options.signer.replace("/", ":")
    content = {
        "apiVersion": "certificates.k8s.io/v1beta1",
        "kind": "ClusterTrustBundle",
        "metadata": {"name": f"{prefix}:{options.bundle}"},
        "spec": {
            "signerName": options.signer,
            "trustBundle": ca.anchor_pem.decode(),
        },
    }
    return {"cluster-trust-bundle.yaml": _yaml(content)}


def _vault_import(ca: ExportedCA, _: ShapeOptions) -> Files:
    """Return the body of `MOUNT/issuers/import/bundle`: all, with the anchor.

    With the key in Vault already it is that of `MOUNT/intermediate/set-signed`.
    """
    certificates = ca.chain_pem + ca.anchor_pem
    if ca.key is None:
        body = {"certificate": certificates.decode()}
        return {"set-signed.json": json.dumps(body).encode()}
    body = {"pem_bundle": (ca.key_pem + certificates).decode()}
    return {"import-bundle.json": json.dumps(body).encode()}


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape."""

    files: Callable[[ExportedCA, ShapeOptions], Files]
    wants_key: bool = False
    """Whether it hands the private key out, where the key is in a file."""


SHAPES: Mapping[str, Shape] = {
    "pem": Shape(_pem_files),
    "der": Shape(_der_files),
    "istio-cacerts": Shape(_istio, wants_key=True),
    CRL_SHAPE: Shape(_istio_crl),
    "linkerd-issuer": Shape(_linkerd_issuer, wants_key=True),
    "linkerd-trust-roots": Shape(_linkerd_roots),
    "tls": Shape(_tls_files, wants_key=True),
    "ca-issuer": Shape(_ca_issuer("Issuer"), wants_key=True),
    "ca-cluster-issuer": Shape(_ca_issuer("ClusterIssuer"), wants_key=True),
    "vault-issuer": Shape(_vault_issuer("Issuer")),
    "vault-cluster-issuer": Shape(_vault_issuer("ClusterIssuer")),
    "trust-manager": Shape(_trust_manager),
    "cluster-trust-bundle": Shape(_cluster_trust_bundle),
    "vault-import": Shape(_vault_import, wants_key=True),
}
"""Each shape by its name on the command line."""


def _issuer(
    kind: str, ca: ExportedCA, namespace: str, spec: Mapping[str, object]
) -> dict[str, object]:
    metadata = {"name": ca.name}
    if kind == "Issuer":
        metadata["namespace"] = namespace
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": kind,
        "metadata": metadata,
        "spec": dict(spec),
    }


def _secret(
    name: str, namespace: str, files: Files, *, kind: str = "kubernetes.io/tls"
) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": kind,
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: _base64(data) for key, data in files.items()},
    }


class _Dumper(yaml.SafeDumper):
    # Writes PEM as people write it: a block, line by line.
    pass


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def _yaml(content: Mapping[str, object]) -> bytes:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False).encode()


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
