"""What a test needs inside OpenBao or Vault: engines with an issuing key, and logins.

Every function mounts something of its own, under a name that was not there before.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID

from bridge.hierarchy.export import write
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.spiffe import TrustDomain
from tests.support.parts.pki import (
    Authority,
    bundle,
    key_pem,
    new_key,
    new_root,
    write_private,
)
from tests.support.parts.softhsm import write_chain
from tests.support.parts.tokens import TokenIssuer
from tests.support.parts.vault import Server

TRUST_DOMAIN = "corp.example"
ATTEMPT_HEADER = "x-meshca-attempt"
_PKI_KEYS: Mapping[str, Mapping[str, object]] = {
    "p256": {"key_type": "ec", "key_bits": 256},
    "p384": {"key_type": "ec", "key_bits": 384},
    "rsa2048": {"key_type": "rsa", "key_bits": 2048},
    "ed25519": {"key_type": "ed25519"},
}
TRANSIT_KEYS = {
    "p256": "ecdsa-p256",
    "p384": "ecdsa-p384",
    "rsa2048": "rsa-2048",
    "ed25519": "ed25519",
}
_ROLE: Mapping[str, object] = {
    "use_csr_common_name": False,
    "use_csr_sans": False,
    "require_cn": False,
    "cn_validations": ["disabled"],
    "allow_any_name": False,
    "allow_localhost": False,
    "allow_ip_sans": False,
    "allow_wildcard_certificates": False,
    "allow_bare_domains": False,
    "allow_subdomains": True,
    "allow_glob_domains": False,
    "enforce_hostnames": True,
    "allowed_uri_sans": [f"spiffe://{TRUST_DOMAIN}/ns/*/sa/*"],
    "allowed_domains": ["identity.linkerd.cluster.local"],
    "server_flag": True,
    "client_flag": True,
    "key_usage": ["DigitalSignature", "KeyEncipherment"],
    "basic_constraints_valid_for_non_ca": True,
    "key_type": "any",
    "not_before_duration": "60s",
    "ttl": "24h",
    "max_ttl": "24h",
    "no_store": True,
    "generate_lease": False,
}
"""A role for workloads of both meshes: backends.md, "Role, SPIFFE leaf"."""
_numbers = count(1)


def write_hierarchy(folder: Path, *, trust_domain: str = TRUST_DOMAIN) -> Path:
    """Write a throwaway hierarchy; return its folder, which is new."""
    write(make(ThrowawaySpec(trust_domains=(TrustDomain(trust_domain),))), folder)
    return folder


@dataclass(frozen=True, slots=True)
class PKI:
    """A PKI engine with one issuer, whose key was made inside, and the role `mesh`."""

    server: Server
    mount: str
    issuer: str
    """The issuer's ID."""
    chain: Path
    """The issuing CA and the intermediate, in PEM."""
    authority: Authority
    """The issuing CA. Its key here is a stand-in that signs nothing."""
    role: str = "mesh"

    @classmethod
    def make(
        cls, server: Server, hierarchy: Path, chain: Path, kind: str = "p256"
    ) -> "PKI":
        """Mount an engine, and have the intermediate of a hierarchy sign its key.

        Args:
            server: Where.
            hierarchy: What `write_hierarchy` wrote.
            chain: The file to write.
            kind: `p256`, `p384`, `rsa2048` or `ed25519`.
        """
        mount = f"pki-{next(_numbers)}"
        server.api.post(
            f"sys/mounts/{mount}", type="pki", config={"max_lease_ttl": "87600h"}
        )
        issuer, authority = add_issuer(server, mount, hierarchy, chain, kind)
        made = cls(server, mount, issuer, chain, authority)
        made.write_role()
        return made

    def write_role(self, **changes: object) -> None:
        """Write the role, with changes to what it should be."""
        fields = {**_ROLE, "issuer_ref": self.issuer, **self.server.product.role}
        path = f"{self.mount}/roles/{self.role}"
        self.server.api.post(path, **(fields | changes))

    def add_issuer(self, hierarchy: Path, chain: Path, kind: str = "p256") -> str:
        """Make another key, certificate and issuer in this mount; return its ID."""
        return add_issuer(self.server, self.mount, hierarchy, chain, kind)[0]

    def change_issuer(self, **fields: object) -> None:
        """Change fields of the issuer, such as `usage="read-only"`."""
        self.server.api.call("PATCH", f"{self.mount}/issuer/{self.issuer}", fields)

    def delete_issuer(self) -> None:
        """Delete the issuer; its key stays."""
        self.server.api.delete(f"{self.mount}/issuer/{self.issuer}")

    def set_default(self, issuer: str) -> None:
        """Make another issuer the default one."""
        self.server.api.post(f"{self.mount}/config/issuers", default=issuer)

    def write_urls(self, *urls: str) -> None:
        """Have AIA URLs added to each leaf."""
        path = f"{self.mount}/config/urls"
        self.server.api.post(path, issuing_certificates=list(urls))

    @property
    def rules(self) -> dict[str, tuple[str, ...]]:
        """The rights that issuing needs: from path to capabilities."""
        issuer = f"{self.mount}/issuer/{self.issuer}"
        return {
            f"{issuer}/sign/{self.role}": ("update",),
            issuer: ("read",),
            f"{self.mount}/roles/{self.role}": ("read",),
            f"{self.mount}/config/urls": ("read",),
        }

    def options(self, login: Mapping[str, object], **more: object) -> dict[str, object]:
        """Return the options of a `vault-pki` issuing CA.

        Args:
            login: Such as `token_login` returns.
            more: Further options, or others.
        """
        own = {"mount": self.mount, "issuer": self.issuer, "role": self.role}
        return {**_reached(self.server), "login": dict(login), **own, **more}


def add_issuer(
    server: Server, mount: str, hierarchy: Path, chain: Path, kind: str
) -> tuple[str, Authority]:
    """Make a key in a PKI engine and an issuer of it; see `PKI.make`.

    The default issuer stays, where there is one.
    """
    path = f"{mount}/intermediate/generate/internal"
    made = server.api.post(path, common_name="made by a test", **_PKI_KEYS[kind])
    csr = x509.load_pem_x509_csr(made["csr"].encode())
    key = cast("CertificateIssuerPublicKeyTypes", csr.public_key())
    authority = write_chain(key, hierarchy, chain)
    answer = server.api.post(
        f"{mount}/issuers/import/cert", pem_bundle=chain.read_text("ascii")
    )
    (issuer,) = (one for one, own_key in answer["mapping"].items() if own_key)
    return issuer, authority


@dataclass(frozen=True, slots=True)
class Transit:
    """A Transit engine with the key `issuing`."""

    server: Server
    mount: str
    chain: Path
    """The issuing CA of version 1 and the intermediate, in PEM."""
    authority: Authority
    """The issuing CA. Its key here is a stand-in that signs nothing."""
    key: str = "issuing"

    @classmethod
    def make(
        cls, server: Server, hierarchy: Path, chain: Path, kind: str = "p256"
    ) -> "Transit":
        """Mount an engine, and have the intermediate of a hierarchy sign its key.

        Args:
            server: Where.
            hierarchy: What `write_hierarchy` wrote.
            chain: The file to write.
            kind: `p256`, `p384`, `rsa2048` or `ed25519`.
        """
        mount = f"transit-{next(_numbers)}"
        server.api.post(f"sys/mounts/{mount}", type="transit")
        server.api.post(f"{mount}/keys/issuing", type=TRANSIT_KEYS[kind])
        key = _public_key(server, f"{mount}/keys/issuing", 1)
        return cls(server, mount, chain, write_chain(key, hierarchy, chain))

    def rotate(self) -> CertificateIssuerPublicKeyTypes:
        """Make a new version of the key; return its public half."""
        path = f"{self.mount}/keys/{self.key}"
        self.server.api.post(f"{path}/rotate")
        latest = self.server.api.get(path)["latest_version"]
        return _public_key(self.server, path, latest)

    def configure(self, **fields: object) -> None:
        """Change the key's settings, such as `min_encryption_version`."""
        self.server.api.post(f"{self.mount}/keys/{self.key}/config", **fields)

    def delete_key(self) -> None:
        """Delete the key, with all versions."""
        self.configure(deletion_allowed=True)
        self.server.api.delete(f"{self.mount}/keys/{self.key}")

    @property
    def rules(self) -> dict[str, tuple[str, ...]]:
        """The rights that signing needs: from path to capabilities."""
        return {
            f"{self.mount}/sign/{self.key}": ("update",),
            f"{self.mount}/keys/{self.key}": ("read",),
        }

    def options(self, login: Mapping[str, object], **more: object) -> dict[str, object]:
        """Return the options of a `vault-transit` issuing CA; see `PKI.options`."""
        own = {"mount": self.mount, "key": self.key}
        return {**_reached(self.server), "login": dict(login), **own, **more}


def unmount(mount: PKI | Transit) -> None:
    """Remove an engine with all it holds."""
    mount.server.api.delete(f"sys/mounts/{mount.mount}")


def write_policy(
    server: Server, rules: Mapping[str, Sequence[str]], name: str = ""
) -> str:
    """Write a policy; return its name, which is new if none is given.

    Args:
        server: Where.
        rules: From path to capabilities, as `PKI.rules` has them.
        name: Of a policy to replace.
    """
    name = name or f"policy-{next(_numbers)}"
    paths = {path: {"capabilities": list(one)} for path, one in rules.items()}
    server.api.post(f"sys/policies/acl/{name}", policy=json.dumps({"path": paths}))
    return name


def new_token(server: Server, *policies: str, **fields: object) -> str:
    """Make a token without a parent; `fields` such as `ttl`, `period`, `num_uses`."""
    made = server.api.post(
        "auth/token/create-orphan", policies=list(policies), **fields
    )
    return str(made["client_token"])


def token_login(token: str, file: Path) -> dict[str, object]:
    """Write a token to a file; return the option `login` for it."""
    write_private(file, f"{token}\n".encode())
    return {"token": {"file": str(file)}}


@dataclass(frozen=True, slots=True)
class AppRole:
    """A mount of AppRole with one role."""

    server: Server
    mount: str
    role_id: str
    role: str = "bridge"

    @classmethod
    def make(cls, server: Server, *policies: str, **fields: object) -> "AppRole":
        """Mount it; `fields` of the role, such as `secret_id_num_uses`, `token_ttl`."""
        mount = _new_auth(server, "approle")
        path = f"auth/{mount}/role/bridge"
        server.api.post(path, token_policies=list(policies), **fields)
        found = server.api.get(f"{path}/role-id")
        return cls(server, mount, found["role_id"])

    def new_secret_id(self, **fields: object) -> str:
        """Make a SecretID."""
        path = f"auth/{self.mount}/role/{self.role}/secret-id"
        return str(self.server.api.post(path, **fields)["secret_id"])

    def login(self, file: Path, **fields: object) -> dict[str, object]:
        """Write a new SecretID to a file; return the option `login` for it."""
        write_private(file, f"{self.new_secret_id(**fields)}\n".encode())
        own = {"role_id": self.role_id, "secret_id_file": str(file)}
        return {"approle": {**own, "mount": self.mount}}


@dataclass(frozen=True, slots=True)
class JWT:
    """A mount of the JWT method that believes one key."""

    mount: str
    issuer: TokenIssuer
    role: str = "bridge"

    @classmethod
    def make(cls, server: Server, *policies: str, **fields: object) -> "JWT":
        """Mount it; `fields` of the role, such as `token_ttl`."""
        made = cls(_new_auth(server, "jwt"), TokenIssuer(algorithm="ES256"))
        pem = made.issuer.key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        server.api.post(
            f"auth/{made.mount}/config", jwt_validation_pubkeys=[pem.decode()]
        )
        server.api.post(
            f"auth/{made.mount}/role/{made.role}",
            role_type="jwt",
            user_claim="sub",
            bound_audiences=["vault"],
            token_policies=list(policies),
            **fields,
        )
        return made

    def login(self, file: Path, *, lifetime: float = 3600) -> dict[str, object]:
        """Write a new JWT to a file; return the option `login` for it.

        Args:
            file: Where.
            lifetime: In seconds; below zero, it has expired.
        """
        token = self.issuer.token(
            audiences=["vault"], now=datetime.now(UTC), lifetime=lifetime
        )
        write_private(file, token.encode())
        own = {"role": self.role, "token_file": str(file), "mount": self.mount}
        return {"jwt": own}


@dataclass(frozen=True, slots=True)
class TLSCertificate:
    """A mount of the method `cert` that believes one CA. The server must have TLS."""

    mount: str
    authority: Authority
    role: str = "bridge"

    @classmethod
    def make(cls, server: Server, *policies: str, **fields: object) -> "TLSCertificate":
        """Mount it; `fields` of the role, such as `token_ttl`."""
        start = datetime.now(UTC) - timedelta(hours=1)
        authority = new_root(f"CA of clients {next(_numbers)}", not_before=start)
        made = cls(_new_auth(server, "cert"), authority)
        server.api.post(
            f"auth/{made.mount}/certs/{made.role}",
            certificate=authority.pem.decode(),
            token_policies=list(policies),
            **fields,
        )
        return made

    def login(self, folder: Path) -> dict[str, object]:
        """Write a new certificate and its key; return the option `login` for them."""
        key = new_key()
        now = datetime.now(UTC)
        leaf = self.authority.issue_leaf(
            x509.DNSName("bridge.example"),
            key=key,
            not_before=now - timedelta(minutes=5),
            not_after=now + timedelta(days=1),
            subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bridge")]),
        )
        certificate = folder / f"{self.mount}.pem"
        certificate.write_bytes(bundle(leaf))
        key_file = write_private(folder / f"{self.mount}.key", key_pem(key))
        own = {"certificate_file": str(certificate), "key_file": str(key_file)}
        return {"tls": {**own, "role": self.role, "mount": self.mount}}


def audit_to(server: Server, file: Path) -> str:
    """Write an audit log to a file; return the device's name.

    The IDs of attempts and the accessors of tokens are in clear.
    """
    name = f"audit-{next(_numbers)}"
    options = {"file_path": str(file), "hmac_accessor": "false"}
    server.api.post(f"sys/audit/{name}", type="file", options=options)
    server.api.post(f"sys/config/auditing/request-headers/{ATTEMPT_HEADER}", hmac=False)
    return name


def _new_auth(server: Server, kind: str) -> str:
    mount = f"{kind}-{next(_numbers)}"
    server.api.post(f"sys/auth/{mount}", type=kind)
    return mount


def _reached(server: Server) -> dict[str, object]:
    found: dict[str, object] = {"addresses": [server.url]}
    if server.ca_file is not None:
        found["ca_file"] = str(server.ca_file)
    return found


def _public_key(
    server: Server, path: str, version: int
) -> CertificateIssuerPublicKeyTypes:
    text = server.api.get(path)["keys"][str(version)]["public_key"]
    if text.startswith("-----"):
        key = load_pem_public_key(text.encode())
    else:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(text))
    return cast("CertificateIssuerPublicKeyTypes", key)
