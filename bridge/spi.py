"""The plugin contract: what the bridge asks of an issuing CA.

A plugin imports this module and `bridge.sdk`, and no other part of the bridge. The
names below, and `API_VERSION`, follow semantic versioning; the rest of the package
does not.

An issuing CA object stands for one state of the CA: its certificate, its chain and
its key do not change during its life. When the backend's state changes, the plugin
says so (`Watcher`), and the core builds a successor with the same factory, proves
it and swaps it in; requests under way keep the object that they started with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
    CertificatePublicKeyTypes,
)

from bridge.errors import (
    BackendAuthError,
    BackendBrokenError,
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConfigError,
    MisissuedError,
)
from bridge.system.clock import Clock, system_clock
from bridge.x509.algorithm import SignatureAlgorithm

__all__ = [
    "API_VERSION",
    "BackendAuthError",
    "BackendBrokenError",
    "BackendError",
    "BackendRefusedError",
    "BackendThrottledError",
    "BackendTimeoutError",
    "BackendUnavailableError",
    "CRLSigner",
    "ConfigError",
    "Description",
    "IssuedChain",
    "IssuingCA",
    "IssuingCAFactory",
    "LeafRequest",
    "MisissuedError",
    "PluginContext",
    "Prepared",
    "SignatureAlgorithm",
    "Signer",
    "Watcher",
]

API_VERSION = 1
"""Goes up when a method changes meaning; a plugin states the one it speaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafRequest:
    """One end-entity certificate, fully decided. A plugin adds nothing to it."""

    public_key: CertificatePublicKeyTypes
    spki: bytes
    """The same key, as SubjectPublicKeyInfo in DER."""
    csr: bytes
    """The CSR in DER, for a backend that wants one; its names are ignored. Empty for
    a certificate that the bridge asks for itself."""
    names: tuple[x509.GeneralName, ...]
    """The subject alternative names, in order. Typed: a dNSName that spells a SPIFFE
    ID is not one."""
    serial: int
    """Positive, 127 random bits; ignored by a backend that chooses its own."""
    not_before: datetime
    not_after: datetime
    """Both ends are inclusive, in UTC, in whole seconds (RFC 5280, 4.1.2.5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is about to be signed; it goes on record before it is."""

    request: LeafRequest
    tbs: bytes = b""
    """The TBSCertificate in DER; empty where the backend builds it."""
    tbs_sha256: str = ""
    """SHA-256 of `tbs` in lower-case hex; empty with it."""


@dataclass(frozen=True, slots=True)
class IssuedChain:
    """A leaf and the intermediates that join it to a trust anchor, in DER."""

    leaf: bytes
    intermediates: tuple[bytes, ...]
    """Issuing CA first. No trust anchor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What an issuing CA says of itself. Constant for the object's life."""

    certificate: x509.Certificate
    """The issuing CA's own certificate."""
    intermediates: tuple[x509.Certificate, ...] = ()
    """From the issuing CA's issuer upwards; no trust anchor. May be empty."""
    chooses_serial: bool = False
    """The backend builds the TBSCertificate: serial and digest are known only after."""
    assurance: str = "file"
    """`file`, `hsm` or `service`: failover never goes down from one to another."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """For people: key label, mount, file. Never a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginContext:
    """What a factory is told besides its own options."""

    name: str
    """The issuing CA's name in the configuration."""
    base: Path
    """The folder that relative paths are relative to."""
    chain: Path | None = None
    """`chain` of the issuing CA's section: issuing CA first, then intermediates."""
    clock: Clock = system_clock
    warn: Callable[[str], None] = lambda _text: None
    """Tells the operator something that is legal and unwise."""


class IssuingCA(Protocol):
    """An issuing CA the bridge can call.

    Methods block and are called from several threads at once. `timeout` is the
    caller's remaining budget in seconds; a method that cannot finish inside it raises
    `BackendTimeoutError`, or `BackendUnavailableError` if nothing was sent, rather than
    running on. No method raises anything but a `BackendError`.
    """

    def describe(self) -> Description:
        """Return certificate, chain and abilities. Cheap; no I/O."""

    def prepare(self, request: LeafRequest) -> Prepared:
        """Build what will be signed. No I/O."""

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        """Sign exactly what was prepared."""

    def check(self, *, timeout: float) -> None:
        """Return if the backend answers, knows us, and still has the key.

        Signs nothing: what proves a key is a signature, and that is the core's, a probe
        certificate that goes through `prepare` and `issue` and is on record.
        """

    def close(self) -> None:
        """Release handles and threads. Called once, after the last call returns."""


class Signer(Protocol):
    """A CA key that signs bytes. `bridge.sdk.SigningCA` makes an issuing CA of it."""

    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """Return the public half. Cheap; no I/O."""

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        """Sign `tbs`; ECDSA signatures are in DER (ECDSA-Sig-Value)."""

    def close(self) -> None:
        """Release handles and threads."""


@runtime_checkable
class CRLSigner(Protocol):
    """An issuing CA that can also sign a CRL."""

    def sign_crl(self, tbs: bytes, *, timeout: float) -> bytes:
        """Sign a TBSCertList and return the CRL in DER."""


@runtime_checkable
class Watcher(Protocol):
    """An issuing CA that notices that its backend's state has changed."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Start telling: `changed` is called from any thread, also more than once."""


class IssuingCAFactory(Protocol):
    """What an entry point in the group `meshca_bridge.issuing_ca` refers to."""

    api_version: int

    def __call__(
        self, options: Mapping[str, object], context: PluginContext, /
    ) -> IssuingCA:
        """Check `options` and build the CA.

        Raises:
            ConfigError: An option is missing, unknown, or out of range, or a file
                cannot be used. The message names file, option and expectation.
        """
