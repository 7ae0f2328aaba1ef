"""Setup's steps that both engines need: mount, audited header, policy and login."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from bridge.sdk import CAPublicKey, ConfiguredCA, read_chain, read_public
from bridge.spi import BackendError, ConfigError
from bridge_vault.adapter import ATTEMPT_HEADER
from bridge_vault.options import AppRoleLogin, Options, VaultOptions
from bridge_vault.setup.operator import OperatorSession
from bridge_vault.setup.plan import Change, PlanItem, differences

LONGEST_MOUNT_SECONDS = 10 * 365 * 24 * 3600
"""`max_lease_ttl` of a PKI mount that setup makes. It bounds no leaf: the role does."""
_HEADERS = "sys/config/auditing/request-headers"
_TOKEN_PERIOD_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Access:
    """Steps for one issuing CA.

    Args:
        vault: The operator's calls.
        ca: Its section.
        options: Its options.
        alike: The names of the issuing CAs that log in alike, this one among them.
    """

    vault: OperatorSession
    ca: ConfiguredCA
    options: VaultOptions
    alike: Sequence[str]

    @property
    def policy(self) -> str:
        """The name of the policy of this issuing CA."""
        return _policy_of(self.ca.context.name)

    def is_openbao(self) -> bool:
        """Return whether the server is OpenBao."""
        system = (self.vault.read("sys/mounts") or {}).get("sys/") or {}
        return ".bao" in str(system.get("running_plugin_version"))

    def is_mounted(self, path: str) -> bool:
        """Tell whether there is an engine at a path."""
        return f"{path}/" in (self.vault.read("sys/mounts") or {})

    def mount(
        self, path: str, kind: str, *, least_seconds: int = 0, shown: tuple[str, ...]
    ) -> PlanItem:
        """Look at an engine's mount.

        Args:
            path: Where it is mounted.
            kind: `pki` or `transit`.
            least_seconds: What `max_lease_ttl` must be at least; 0 for any.
            shown: The fields of answers that the audit log needs unhashed.
        """
        what = f"mount {path}"
        found = (self.vault.read("sys/mounts") or {}).get(f"{path}/")
        keys = "audit_non_hmac_response_keys"
        if found is None:
            config: dict[str, object] = {keys: list(shown)} if shown else {}
            if least_seconds:
                config["max_lease_ttl"] = max(LONGEST_MOUNT_SECONDS, least_seconds)
            fields = {"type": kind, "config": config}
            return PlanItem(
                what=what,
                state="make",
                note=f"an engine {kind}",
                act=lambda: self.vault.write(f"sys/mounts/{path}", fields),
            )
        if found.get("type") != kind:
            note = f"expected an engine {kind} (found {found.get('type')})"
            return PlanItem(what=what, state="problem", note=note)
        tune = self.vault.read(f"sys/mounts/{path}/tune") or {}
        wanted: dict[str, object] = {}
        own = list(tune.get(keys) or ())
        if more := [one for one in shown if one not in own]:
            wanted[keys] = [*own, *more]
        if tune.get("max_lease_ttl", least_seconds) < least_seconds:
            wanted["max_lease_ttl"] = least_seconds
        return self.made_or_changed(
            what,
            tune,
            wanted,
            lambda: self.vault.write(f"sys/mounts/{path}/tune", wanted),
        )

    def header(self) -> PlanItem:
        """Look at the header that has the ID of an attempt in the audit log."""
        what, name = f"audited header {ATTEMPT_HEADER}", ATTEMPT_HEADER.lower()
        try:
            read = self.vault.read(_HEADERS, of_server=True)
        except BackendError as error:
            if error.rule != "vault.denied" or not self.options.namespace:
                raise
            # A token of a namespace. Certificates are issued without the header.
            note = (
                "it is the whole server's: have an operator of the root namespace "
                f"write hmac=false to {_HEADERS}/{name}"
            )
            return PlanItem(what=what, state="wait", note=note)
        headers = (read or {}).get("headers") or {}
        path, fields = f"{_HEADERS}/{name}", {"hmac": False}
        return self.made_or_changed(
            what,
            {one.lower(): value for one, value in headers.items()}.get(name),
            fields,
            lambda: self.vault.write(path, fields, of_server=True),
        )

    def csr(
        self,
        path: Path,
        is_own: Callable[[CAPublicKey], bool],
        make: Callable[[], str],
        *,
        is_signed: bool,
    ) -> PlanItem:
        """Look at the file of the CSR. A file that is there is not overwritten.

        Args:
            path: The file.
            is_own: Whether a public key is that of the issuing CA.
            make: Returns a CSR of the key, in PEM.
            is_signed: There is a certificate, and the CSR is of no use any more.
        """
        what = f"CSR {path}"
        if is_signed:
            return PlanItem(what=what, state="right", note="it is signed")
        if not path.exists():
            act = lambda: _write_new(path, make())  # noqa: E731 - of one line
            return PlanItem(what=what, state="make", act=act)
        try:
            key = x509.load_pem_x509_csr(read_public(path)).public_key()
            is_right = isinstance(key, CAPublicKey) and is_own(key)
        except (ConfigError, ValueError, UnsupportedAlgorithm):
            is_right = False
        if is_right:
            return PlanItem(what=what, state="right")
        note = "expected a CSR of the key: move the file away, or name another one"
        return PlanItem(what=what, state="problem", note=note)

    def write_policy(
        self, rights: Mapping[str, str], *, denied: Sequence[str] = ()
    ) -> PlanItem:
        """Look at the policy of the bridge.

        Args:
            rights: The capability by path.
            denied: Parameters that no call may have.
        """
        rules: dict[str, dict[str, object]] = {
            path: {"capabilities": [own]} for path, own in rights.items()
        }
        if denied:
            signing = next(iter(rules.values()))
            signing["denied_parameters"] = {name: list[str]() for name in denied}
        path = f"sys/policies/acl/{self.policy}"
        text = json.dumps({"path": rules}, indent=2)
        policy = self.vault.read(path)
        found = None if policy is None else _paths(str(policy.get("policy")))
        return self.made_or_changed(
            f"policy {self.policy}",
            found,
            {**dict.fromkeys(found or ()), **rules},
            lambda: self.vault.write(path, {"policy": text}),
        )

    def method(self) -> PlanItem:
        """Look at the mount of AppRole, if the bridge logs in by it."""
        method = self.options.method
        if not isinstance(method, AppRoleLogin):
            return self._other_login()
        found = (self.vault.read("sys/auth") or {}).get(f"{method.mount}/")
        what = f"login method auth/{method.mount}"
        if found is None:
            fields = {"type": "approle"}
            path = f"sys/auth/{method.mount}"
            act = lambda: self.vault.write(path, fields)  # noqa: E731 - of one line
            return PlanItem(what=what, state="make", note="approle", act=act)
        if found.get("type") != "approle":
            note = f"expected approle (found {found.get('type')})"
            return PlanItem(what=what, state="problem", note=note)
        return PlanItem(what=what, state="right")

    def login_role(self, name: str) -> PlanItem:
        """Look at the role of AppRole; its other policies stay.

        Args:
            name: Of the role.
        """
        method = self.options.method
        if not isinstance(method, AppRoleLogin):
            return self._other_login()
        path = f"auth/{method.mount}/role/{name}"
        found = self.vault.read(path)
        own = list((found or {}).get("token_policies") or ())
        # Vault can only replace the whole list. So each of two runs at once writes the
        # policies of both, also of one that is not there yet.
        more = [one for one in map(_policy_of, self.alike) if one not in own]
        wanted: dict[str, object] = {"token_policies": [*own, *more]}
        if found is None:
            wanted["token_period"] = _TOKEN_PERIOD_SECONDS
        return self.made_or_changed(
            f"login role {path}",
            found,
            wanted,
            lambda: self.vault.write(path, wanted),
        )

    def role_id(self, name: str) -> str:
        """Return the RoleID of a role of AppRole; "" if there is none."""
        method = self.options.method
        if not isinstance(method, AppRoleLogin):
            return ""
        found = self.vault.read(f"auth/{method.mount}/role/{name}/role-id")
        return str((found or {}).get("role_id") or "")

    def changed(
        self, what: str, found: Mapping[str, Any], wanted: Mapping[str, object]
    ) -> PlanItem:
        """Look at what is changed by PATCH, such as a role; `what` ends in its path."""
        path = what.rpartition(" ")[2]
        changes = differences(found, wanted)
        fields = {change.field: change.wanted for change in changes}
        return self.made_or_changed(
            what, found, fields, lambda: self.vault.change(path, fields)
        )

    def made_or_changed(
        self,
        what: str,
        found: Mapping[str, Any] | None,
        wanted: Mapping[str, object],
        act: Callable[[], object],
    ) -> PlanItem:
        """Look at what is made and changed by the same call.

        Args:
            what: Its kind and path.
            found: None if it is not there.
            wanted: The fields that setup decides.
            act: Makes or changes it.
        """
        if found is None:
            changes = tuple(
                Change(name, None, one)
                for name, one in wanted.items()
                if one not in ("", [])
            )
            return PlanItem(what=what, state="make", changes=changes, act=act)
        changes = differences(found, wanted)
        if not changes:
            return PlanItem(what=what, state="right")
        return PlanItem(what=what, state="change", changes=changes, act=act)

    def _other_login(self) -> PlanItem:
        kind = next(name for name, one in self.options.login if one is not None)
        return PlanItem(
            what=f"login.{kind}",
            state="right",
            note=f"setup does not make it: give its tokens the policy {self.policy}",
        )


@dataclass(frozen=True)
class EngineSetup(Generic[Options]):
    """The steps for one issuing CA, of which an engine has its own.

    Args:
        access: Calls, section and options.
        options: Its options; `issuer` is `UNKNOWN` until there is one.
        key: A key of `KEYS`, for a key that is made.
        csr: The file of the CSR.
        login_role: The role of AppRole.
    """

    access: Access
    options: Options
    key: str
    csr: Path
    login_role: str

    @cached_property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The chain of the section; empty while there is no such file."""
        ca = self.access.ca
        chain = ca.context.chain
        if chain is not None and not (ca.context.base / chain).exists():
            return ()
        return read_chain(ca.context)


def _policy_of(name: str) -> str:
    return f"meshca-{name}"


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="ascii") as file:
            try:
                file.write(f"{text.strip()}\n")
                file.flush()
            except BaseException:
                # The next run would take half a CSR for somebody else's file.
                path.unlink()
                raise
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}", rule="vault.setup"
        ) from error


def _paths(policy: str) -> dict[str, Any]:
    # Of a policy in JSON. One in HCL is somebody else's: it is told as a whole.
    try:
        found = json.loads(policy or "{}")
    except ValueError:
        return {"the text": policy}
    paths = found.get("path") if isinstance(found, dict) else None
    return paths if isinstance(paths, dict) else {}
