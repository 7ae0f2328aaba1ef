"""Setup's steps for `vault-pki`: key, CSR, issuer, role, policy."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.sdk import ConfiguredCA
from bridge.spi import BackendBrokenError
from bridge_vault.options import PKIOptions
from bridge_vault.rights import pki_rights
from bridge_vault.role import (
    KEY_USAGE,
    ROLE,
    SUBJECT,
    certificate_of,
    issuer_problems,
)
from bridge_vault.setup.access import EngineSetup
from bridge_vault.setup.plan import PlanItem, Step

KEYS: Mapping[str, Mapping[str, object]] = {
    "p256": {"key_type": "ec", "key_bits": 256},
    "p384": {"key_type": "ec", "key_bits": 384},
    "rsa2048": {"key_type": "rsa", "key_bits": 2048},
    "rsa3072": {"key_type": "rsa", "key_bits": 3072},
    "rsa4096": {"key_type": "rsa", "key_bits": 4096},
    "ed25519": {"key_type": "ed25519"},
}
"""The kinds of keys, and how the PKI engine calls them."""
UNKNOWN = "00000000-0000-0000-0000-000000000000"
"""Stands for the issuer's ID in options that do not have it yet."""
_RSA_SIGNATURE_BITS = 256
"""Leaves of an RSA key are signed with SHA-256."""
_AUDITED = ("certificate", "serial_number")
_BEHAVIOR = "leaf_not_after_behavior"
_NEW = "<the ID of the new issuer>"
_CLOCK_ROOM = timedelta(minutes=1)
"""How much longer a leaf may live by the role than by the configuration: Vault's clock
may be behind. Clocks that differ by more are refused anyway."""


def wanted_role(
    ca: ConfiguredCA, issuer: str, certificate: x509.Certificate, *, is_openbao: bool
) -> dict[str, object]:
    """Return the fields of the role: what the bridge demands, and the names it issues.

    Args:
        ca: Names and times come from the configuration.
        issuer: Its ID.
        certificate: Of the issuing CA.
        is_openbao: Only OpenBao has `not_after_bound`.
    """
    globs = [name for name in ca.dns_names if "*" in name]
    longest = _seconds(ca.max_ttl + _CLOCK_ROOM)
    # Vault writes what 0 stands for into the role, if the key of the issuer is RSA.
    is_rsa = isinstance(certificate.public_key(), rsa.RSAPublicKey)
    role: dict[str, object] = {
        **ROLE,
        **{name: list[str]() for name in SUBJECT},
        "issuer_ref": issuer,
        "key_usage": sorted(KEY_USAGE),
        "ext_key_usage": list[str](),
        "key_type": "any",
        "signature_bits": _RSA_SIGNATURE_BITS if is_rsa else 0,
        "cn_validations": ["disabled"],
        "allowed_uri_sans": list(ca.uri_names),
        "allowed_domains": list(ca.dns_names),
        "allow_bare_domains": len(globs) < len(ca.dns_names),
        "allow_glob_domains": bool(globs),
        "allow_subdomains": False,
        "allow_localhost": False,
        "allow_ip_sans": False,
        "allow_wildcard_certificates": False,
        "allowed_domains_template": False,
        "allowed_uri_sans_template": False,
        "enforce_hostnames": True,
        "not_before_duration": _seconds(ca.backdate),
        "ttl": longest,
        "max_ttl": longest,
    }
    return role | ({"not_after_bound": "ttl-limited"} if is_openbao else {})


class PKISetup(EngineSetup[PKIOptions]):
    """The steps of `vault-pki`."""

    def steps(self) -> Sequence[Step]:
        """Return the steps, in order."""
        own = [self._mount, self.access.header, self._key, self._csr, self._issuer]
        last = [self.access.method, lambda: self.access.login_role(self.login_role)]
        return [*own, self._role, self._policy, *last]

    @property
    def issuer(self) -> str:
        """The ID of the issuer whose certificate is that of `chain`; "" for none."""
        mount = self.options.mount
        # Anybody may list the issuers, but not those of a mount that is not there.
        if not self.chain or not self.access.is_mounted(mount):
            return ""
        for one in self.access.vault.list(f"{mount}/issuers").get("keys") or ():
            found = self.access.vault.read(f"{mount}/issuer/{one}") or {}
            if certificate_of(found) == self.chain[0]:
                return str(one)
        return ""

    def _mount(self) -> PlanItem:
        return self.access.mount(
            self.options.mount,
            "pki",
            least_seconds=_seconds(self.access.ca.max_ttl + _CLOCK_ROOM),
            shown=_AUDITED,
        )

    @property
    def _name(self) -> str:
        return f"meshca-{self.access.ca.context.name}"

    def _key(self) -> PlanItem:
        mount = self.options.mount
        what = f"key {self._name} in {mount}"
        if self._own_key():
            return PlanItem(what=what, state="right")
        if self.chain:
            note = (
                "no key of the mount is that of the first certificate of chain: "
                "expected the certificate of a CSR that was made here"
            )
            return PlanItem(what=what, state="problem", note=note)
        fields = {"key_name": self._name, **KEYS[self.key]}
        path = f"{mount}/keys/generate/internal"
        return PlanItem(
            what=what,
            state="make",
            note=f"{self.key}, made inside; it never leaves the server",
            act=lambda: self.access.vault.write(path, fields),
        )

    def _own_key(self) -> Mapping[str, Any] | None:
        # By the chain, or by name while there is none.
        mount = self.options.mount
        data = self.access.vault.list(f"{mount}/keys")
        names = data.get("key_info") or {}
        for one in data.get("keys") or ():
            if not self.chain and names.get(one, {}).get("key_name") != self._name:
                continue
            found = self.access.vault.read(f"{mount}/key/{one}") or {}
            if not self.chain or _key_id(self.chain[0].public_key()) == _hex(found):
                return found
        return None

    def _csr(self) -> PlanItem:
        own = self._own_key() or {}
        return self.access.csr(
            self.csr,
            lambda key: _key_id(key) == _hex(own),
            self._new_csr,
            is_signed=bool(self.chain),
        )

    def _new_csr(self) -> str:
        answer = self.access.vault.write(
            f"{self.options.mount}/intermediate/generate/existing",
            {"key_ref": (self._own_key() or {})["key_id"], "common_name": self._name},
        )
        return str(answer["csr"])

    def _issuer(self) -> PlanItem:
        mount = self.options.mount
        if not self.chain:
            return PlanItem(
                what=f"issuer in {mount}",
                state="wait",
                note=f"have {self.csr} signed by the CA above, put the certificate "
                f"and its intermediates into {self.access.ca.context.chain}, and run "
                "this again",
            )
        issuer = self.issuer
        if not issuer:
            return self._new_issuer()
        what = f"issuer {mount}/issuer/{issuer}"
        if self.options.issuer not in (UNKNOWN, issuer):
            note = f"options.issuer is {self.options.issuer}: expected {issuer}"
            return PlanItem(what=what, state="problem", note=note)
        found = self.access.vault.read(f"{mount}/issuer/{issuer}") or {}
        urls = self.access.vault.read(f"{mount}/config/urls") or {}
        wanted = {_BEHAVIOR: "err"}
        others = issuer_problems({**found, **wanted}, urls, self.chain, self.options)
        if note := "; ".join(others):
            return PlanItem(what=what, state="problem", note=note)
        return self.access.changed(what, found, wanted)

    def _new_issuer(self) -> PlanItem:
        mount = self.options.mount
        what = f"issuer in {mount}"
        if self.options.issuer != UNKNOWN:
            note = (
                f"options.issuer is {self.options.issuer}, and no issuer has the first "
                "certificate of chain: leave issuer out until setup has imported it"
            )
            return PlanItem(what=what, state="problem", note=note)
        before = self.access.vault.read(f"{mount}/config/issuers") or {}
        default = before.get("default")
        if default and before.get("default_follows_latest_issuer"):
            note = (
                f"default_follows_latest_issuer of {mount}/config/issuers would make "
                "it the default issuer: set that to false first"
            )
            return PlanItem(what=what, state="problem", note=note)
        note = f"from chain; {default} stays the default issuer"
        if not default:
            note = "from chain; Vault makes the first issuer of a mount the default one"
        return PlanItem(what=what, state="make", note=note, act=self._import)

    def _import(self) -> None:
        vault, mount = self.access.vault, self.options.mount
        before = (vault.read(f"{mount}/config/issuers") or {}).get("default")
        bundle = b"".join(one.public_bytes(Encoding.PEM) for one in self.chain)
        fields = {"pem_bundle": bundle.decode("ascii")}
        vault.write(f"{mount}/issuers/import/cert", fields)
        after = (vault.read(f"{mount}/config/issuers") or {}).get("default")
        if before and after != before:
            raise BackendBrokenError(
                "the import changed the default issuer",
                rule="vault.setup",
                detail=f"{mount}/config/issuers: default was {before}, is {after}",
            )
        finding = self._issuer()
        if finding.state == "change" and finding.act is not None:
            finding.act()

    def _role(self) -> PlanItem:
        path = f"{self.options.mount}/roles/{self.options.role}"
        what = f"role {path}"
        if not self.chain:
            return PlanItem(what=what, state="wait", note="for the issuer")
        issuer = self.issuer or _NEW
        found = self.access.vault.read(path)
        is_openbao = self.access.is_openbao()
        own = self.chain[0]
        wanted = wanted_role(self.access.ca, issuer, own, is_openbao=is_openbao)
        if found is not None:
            return self.access.changed(what, found, wanted)
        return self.access.made_or_changed(
            what, None, wanted, lambda: self.access.vault.write(path, wanted)
        )

    def _policy(self) -> PlanItem:
        if not self.chain:
            what = f"policy {self.access.policy}"
            return PlanItem(what=what, state="wait", note="for the issuer")
        issuer = self.issuer or _NEW
        rights = pki_rights(self.options.mount, issuer, self.options.role)
        # In Vault, not_after is not held to max_ttl.
        denied = () if self.access.is_openbao() else ("not_after",)
        return self.access.write_policy(rights, denied=denied)


def _key_id(key: Any) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()


def _hex(key: Mapping[str, Any]) -> str:
    return str(key.get("subject_key_id") or "").replace(":", "").lower()


def _seconds(value: timedelta) -> int:
    return int(value.total_seconds())
