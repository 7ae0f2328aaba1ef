"""A scripted Vault, and the steps of setup over it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from bridge.sdk import ConfiguredCA
from bridge.spi import BackendError, PluginContext
from bridge_vault.options import PKIOptions, TransitOptions
from bridge_vault.setup.access import Access
from bridge_vault.setup.operator import OperatorSession
from bridge_vault.setup.pki import UNKNOWN, PKISetup
from bridge_vault.setup.plan import PlanItem, Step
from bridge_vault.setup.transit import TransitSetup

ISSUER = "0b51d2f0-6ff5-4a4c-9f0c-5a6bb2a5a3a1"
RIGHT_MOUNT = {"type": "pki"}
TUNE = "sys/mounts/pki/tune"
KEYS = "audit_non_hmac_response_keys"
RIGHT_TUNE = {"max_lease_ttl": 999_999, KEYS: ["certificate", "serial_number"]}


@dataclass
class Scripted:
    """Has what it is given, and notes what is written."""

    content: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    written: dict[str, Mapping[str, object]] = field(default_factory=dict)
    error: BackendError | None = None
    of_server: list[str] = field(default_factory=list)
    patched: list[str] = field(default_factory=list)
    answers: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """To what is written."""
    imported: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is there once something was imported."""

    def read(self, path: str, *, of_server: bool = False) -> Mapping[str, Any] | None:
        self.of_server += [f"read {path}"] if of_server else []
        if self.error is not None:
            raise self.error
        return self.content.get(path)

    def list(self, path: str) -> Mapping[str, Any]:
        return self.content.get(path, {})

    def write(
        self, path: str, fields: Mapping[str, object], *, of_server: bool = False
    ) -> Mapping[str, Any]:
        self.of_server += [f"write {path}"] if of_server else []
        self.written[path] = fields
        if path.endswith("issuers/import/cert"):
            self.content |= self.imported
        return self.answers.get(path, {})

    def change(self, path: str, fields: Mapping[str, object]) -> None:
        self.patched.append(path)
        self.written[path] = fields

    def close(self) -> None:
        """Nothing is open."""


def configured(folder: Path) -> ConfiguredCA:
    return ConfiguredCA(
        plugin="vault-pki",
        options={},
        context=PluginContext(name="eu", base=folder, chain=Path("chain.pem")),
        uri_names=("spiffe://corp.example/ns/*/sa/*",),
        dns_names=("meshca.istio-system.svc", "*.identity.linkerd.corp.example"),
        backdate=timedelta(minutes=2),
        max_ttl=timedelta(hours=24),
    )


def access_to(
    vault: Scripted,
    folder: Path,
    login: Mapping[str, object] | None = None,
    alike: Sequence[str] = ("eu",),
) -> Access:
    approle = {"approle": {"role_id": "r", "secret_id_file": "secret-id"}}
    options = PKIOptions.model_validate(
        {
            "addresses": ("https://vault.example:8200",),
            "login": login or approle,
            "issuer": ISSUER,
            "role": "mesh",
        },
        context=folder,
    )
    return Access(cast("OperatorSession", vault), configured(folder), options, alike)


def pki_setup(vault: Scripted, folder: Path, *, is_unknown: bool = False) -> PKISetup:
    access = access_to(vault, folder)
    options = cast("PKIOptions", access.options)
    if is_unknown:
        options = options.model_copy(update={"issuer": UNKNOWN})
    return PKISetup(access, options, "p256", folder / "eu.csr", "meshca")


def transit_setup(vault: Scripted, folder: Path, *, version: int = 1) -> TransitSetup:
    access = access_to(vault, folder)
    options = TransitOptions.model_validate(
        {
            "addresses": ("https://vault.example:8200",),
            "login": {"token": {"file": "token"}},
            "key": "issuing",
            "key_version": version,
        },
        context=folder,
    )
    return TransitSetup(access, options, "p256", folder / "eu.csr", "meshca")


def state_of(steps: Iterable[Step], what: str) -> PlanItem:
    (found,) = [one for one in (step() for step in steps) if what in one.what]
    return found
