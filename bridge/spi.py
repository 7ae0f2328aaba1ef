"""The plugin contract: what the bridge asks of an issuing CA.

A plugin imports this module and `bridge.sdk`, and no other part of the bridge. The
names below, and `API_VERSION`, follow semantic versioning; the rest of the package
does not.

An issuing CA object stands for one state of the CA: its certificate, its chain and
its key do not change during its life. When the backend's state changes, the plugin
says so (`Watcher`). The core then builds a successor with the same factory, proves it
and swaps it in. Requests under way keep the object that they started with.
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
"""The version of the contract. It goes up when a method changes meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafRequest:
    """A request for one leaf, with every field decided. A plugin adds nothing."""

    public_key: CertificatePublicKeyTypes
    spki: bytes
    """The same key, as SubjectPublicKeyInfo in DER."""
    csr: bytes
    """The CSR in DER, for a backend that needs one. Its names are ignored. Empty for a
    certificate of the bridge's own."""
    names: tuple[x509.GeneralName, ...]
    """The subject alternative names, in order. They are typed: a dNSName with the text
    of a SPIFFE ID is not a SPIFFE ID."""
    serial: int
    """Positive, 127 random bits; ignored by a backend that chooses its own."""
    not_before: datetime
    not_after: datetime
    """Both ends are inclusive, in UTC, in whole seconds (RFC 5280, 4.1.2.5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A certificate that is about to be signed. It is recorded before it is signed."""

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
    """The description of an issuing CA. Constant for the object's life."""

    certificate: x509.Certificate
    """The issuing CA's own certificate."""
    intermediates: tuple[x509.Certificate, ...] = ()
    """From the issuing CA's issuer upwards; no trust anchor. May be empty."""
    chooses_serial: bool = False
    """The backend builds the TBSCertificate: serial and digest are known afterwards."""
    assurance: str = "file"
    """`file`, `hsm` or `service`: failover never goes down from one to another."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """For people: key label, mount, file. Never a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginContext:
    """What a factory gets besides its own options."""

    name: str
    """The issuing CA's name in the configuration."""
    base: Path
    """The folder that relative paths are relative to."""
    chain: Path | None = None
    """`chain` of the issuing CA's section: issuing CA first, then intermediates."""
    clock: Clock = system_clock
    warn: Callable[[str], None] = lambda _text: None
    """Warns the operator of something that is allowed and unwise."""


class IssuingCA(Protocol):
    """An issuing CA the bridge can call.

    Methods block and are called from several threads at once. `timeout` is the
    caller's remaining budget in seconds. A method that cannot finish in this time
    raises `BackendTimeoutError`, or `BackendUnavailableError` if nothing was sent. A
    method raises only a `BackendError`.
    """

    def describe(self) -> Description:
        """Return certificate, chain and abilities. Cheap; no I/O."""

    def prepare(self, request: LeafRequest) -> Prepared:
        """Build what will be signed. No I/O."""

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        """Sign exactly what was prepared."""

    def check(self, *, timeout: float) -> None:
        """Return if the backend answers, accepts our credential and has the key.

        Signs nothing. The core proves the key with a probe certificate, which goes
        through `prepare` and `issue` and is recorded.
        """

    def close(self) -> None:
        """Release handles and threads. Called once, after the last call returns."""


class Signer(Protocol):
    """A CA key that signs bytes. `bridge.sdk.SigningCA` makes an issuing CA of it."""

    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """Return the public key. Cheap; no I/O."""

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
    """An issuing CA that detects changes of its backend's state."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change, from any thread, perhaps more than once."""


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
