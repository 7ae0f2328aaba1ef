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
    BackendCredentialError,
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConfigError,
    MisissuedError,
)
from bridge.resilience.latch import Latch
from bridge.system.clock import Clock, system_clock
from bridge.x509.algorithm import SignatureAlgorithm

__all__ = [
    "API_VERSION",
    "BackendAuthError",
    "BackendBrokenError",
    "BackendCredentialError",
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
    "Latch",
    "LeafRequest",
    "MisissuedError",
    "PluginContext",
    "PluginMetrics",
    "Prepared",
    "SignatureAlgorithm",
    "Signer",
    "Watcher",
]

API_VERSION = 2
"""The version of the contract. It goes up when a method changes meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafRequest:
    """A request for one leaf, with every field decided. A plugin adds nothing."""

    attempt: str
    """The ID of this attempt in the ledger, 32 hex digits. A backend with a log of its
    own may note it there: it then tells what became of an attempt without an answer."""
    public_key: CertificatePublicKeyTypes
    spki: bytes
    """The same key, as SubjectPublicKeyInfo in DER."""
    csr: bytes
    """The CSR in DER, for a backend that needs one. Its names are ignored."""
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
    """The other certificates of its chain, in any order: the bridge finds the path to a
    trust anchor. May be empty."""
    chooses_serial: bool = False
    """The backend builds the TBSCertificate: serial and digest are known afterwards.
    notBefore may then differ by 30 s and notAfter by 5 s, and the order of the names
    is the backend's."""
    added_extensions: tuple[x509.Extension[x509.ExtensionType], ...] = ()
    """What the backend's own configuration adds to each leaf: authority information
    access and CRL distribution points, no others. Only with `chooses_serial`."""
    assurance: str = "file"
    """`file`, `hsm` or `service`: failover never goes down from one to another."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """For people: key label, mount, file. Never a secret."""


class PluginMetrics(Protocol):
    """Metrics of a plugin, each with the issuing CA's name as a label."""

    def set(self, name: str, value: float) -> None:
        """Show a value: `meshca_plugin_value{issuing_ca, name}`."""

    def count(self, name: str, amount: int = 1) -> None:
        """Count events: `meshca_plugin_events_total{issuing_ca, name}`."""


class _NoMetrics:
    def set(self, name: str, value: float) -> None:
        pass

    def count(self, name: str, amount: int = 1) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginContext:
    """What a factory gets besides its own options."""

    name: str
    """The issuing CA's name in the configuration."""
    base: Path
    """The folder that relative paths are relative to."""
    chain: Path | None = None
    """`chain` of the issuing CA's section: the issuing CA and its intermediates."""
    clock: Clock = system_clock
    warn: Callable[[str], None] = lambda _text: None
    """Warns the operator of something that is allowed and unwise."""
    latch: Latch = field(default_factory=Latch)
    """Asked before each login: a credential that was refused is not tried again."""
    metrics: PluginMetrics = field(default_factory=_NoMetrics)
    state: Path | None = None
    """A folder of this issuing CA on this host, kept over restarts and shared by all
    workers; None where nothing is kept."""
    workers: int = 1
    """How many workers have an object of this issuing CA. During a reload as many
    again have one."""


class IssuingCA(Protocol):
    """An issuing CA the bridge can call.

    Methods block and are called from several threads at once. `timeout` is the
    caller's remaining budget in seconds. A method that cannot finish in this time
    raises `BackendTimeoutError`, or `BackendUnavailableError` if nothing was sent. A
    method raises only a `BackendError`; the core takes anything else for a
    `BackendBrokenError` after which a certificate may exist.

    The core retries, fails over, and keeps callers away from a CA that fails. A plugin
    repairs its own connection, and does not repeat a request.
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
        """Release handles and threads. Called once, after the last call returns.

        A bridge that stops does not wait for calls that a backend holds. They end with
        a leaf or a `BackendError`, and close returns within five seconds all the same.
        """


class Signer(Protocol):
    """A CA key that signs bytes. `bridge.sdk.SigningCA` makes an issuing CA of it."""

    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        """Return the public key. Cheap; no I/O."""

    def check(self, *, timeout: float) -> None:
        """See `IssuingCA.check`."""

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
        """Check `options` and build the CA. Asks nothing of the backend.

        A backend that is away must not keep the bridge from its start, so this returns
        within a second whatever the state of the backend. It may read files.

        Raises:
            ConfigError: An option is missing, unknown, or out of range, or a file
                cannot be used. The message names file, option and expectation.
        """
