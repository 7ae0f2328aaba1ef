"""Bars: certificates, keys and identities that get nothing more, on both fronts.

An operator bars them with `meshca bar`. They stand in a file beside the journals that
all workers of a host watch. The file has the form of the latch's, and its changes have
their rows in the ledger, see `bridge.resilience.latch_file`.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from bridge.dns_names import is_label, is_subdomain
from bridge.errors import BarredError, BridgeError, ConfigError, LedgerError
from bridge.identity.caller import Caller
from bridge.policy.certificate_renewal import key_sha256
from bridge.resilience.latch_file import Entry, Kind, LatchFile, State, new_id
from bridge.spiffe import SpiffeID

_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SERIAL = re.compile(r"[0-9a-f]{1,40}")
_SEPARATORS = str.maketrans("", "", ": ")


class BarKind(StrEnum):
    """What is barred."""

    SERIAL = "serial"
    """A client certificate, by its serial number in hex."""
    CERTIFICATE = "certificate"
    """A client certificate, by the SHA-256 of its DER."""
    KEY = "key"
    """A key, by the SHA-256 of its SubjectPublicKeyInfo in DER."""
    IDENTITY = "identity"
    """A SPIFFE ID."""
    SERVICE_ACCOUNT = "service-account"
    """A service account, as NAMESPACE/NAME, in every cluster and trust domain."""


def scope_of(kind: BarKind, value: str) -> str:
    """Return a bar as one text, `KIND:VALUE`, in the one spelling that is compared.

    Args:
        kind: What is barred.
        value: As an operator writes it: hex digits may have colons and capitals.

    Raises:
        ConfigError: The value is none of its kind.
    """
    match kind:
        case BarKind.IDENTITY:
            return f"{kind}:{_identity(value)}"
        case BarKind.SERVICE_ACCOUNT:
            namespace, _, name = value.partition("/")
            if not (is_label(namespace) and is_subdomain(name)):
                raise _bad(kind, value, "NAMESPACE/NAME of a service account")
            return f"{kind}:{value}"
    digits = value.translate(_SEPARATORS).lower()
    if kind is BarKind.SERIAL:
        if not _SERIAL.fullmatch(digits):
            raise _bad(kind, value, "a serial number in hex, of 1 to 40 digits")
        return f"{kind}:{int(digits, 16):x}"
    if not _DIGEST.fullmatch(digits):
        raise _bad(kind, value, "a SHA-256 in hex, of 64 digits")
    return f"{kind}:{digits}"


def _identity(value: str) -> str:
    try:
        return str(SpiffeID.parse(value))
    except BridgeError as error:
        raise _bad(BarKind.IDENTITY, value, f"a SPIFFE ID ({error})") from error


def _bad(kind: BarKind, value: str, expected: str) -> ConfigError:
    return ConfigError(f"{kind.value}: expected {expected} (found {value[:200]!r})")


def new_entry(kind: BarKind, value: str, *, reason: str, at: float) -> Entry:
    """Return the entry of a new bar.

    Args:
        kind: What is barred.
        value: See `scope_of`.
        reason: For operators.
        at: The time, in seconds since 1970-01-01 UTC.

    Raises:
        ConfigError: See `scope_of`.
    """
    return Entry(
        id=new_id(),
        kind=Kind.BAR.value,
        scope=scope_of(kind, value),
        state=State.BARRED.value,
        at=at,
        reason=reason,
    )


class Bars:
    """The bars in force in one process. For all threads.

    A bar that was read stays in force until the file says that it was removed: a file
    that cannot be read, is not there any more, or was made again takes none back.

    Args:
        path: The file.

    Raises:
        LedgerError: The file is there and cannot be used: it is not known what is
            barred.
    """

    def __init__(self, path: Path) -> None:
        self._file = LatchFile(path)
        self._held: dict[str, Entry] = {}
        self._scopes: Mapping[str, Entry] = {}
        self._trouble = ""
        self._text: bytes | None = None
        self._take()

    def look(self) -> None:
        """Read the file again. For one thread, several times a second."""
        try:
            self._take()
        except LedgerError as error:
            trouble = f"what was read last stays barred: {error.detail or error}"
            if trouble != self._trouble:
                _log.error("%s", trouble)
            self._trouble = trouble

    def trouble(self) -> str:
        """Return why the file cannot be used; empty if it can."""
        return self._trouble

    def require(self, caller: Caller, spki: bytes) -> None:
        """Refuse a caller, or a key that a certificate is asked for.

        Args:
            caller: The authenticated caller.
            spki: The SubjectPublicKeyInfo of the CSR, in DER.

        Raises:
            BarredError: One of them is barred.
        """
        if not self._scopes:
            return
        self._require(BarKind.IDENTITY, str(caller.spiffe_id), "bar.identity")
        account = f"{caller.namespace}/{caller.service_account}"
        self._require(BarKind.SERVICE_ACCOUNT, account, "bar.service-account")
        self._require(BarKind.KEY, hashlib.sha256(spki).hexdigest(), "bar.key")

    def require_certificate(self, certificate: x509.Certificate) -> None:
        """Refuse a client certificate.

        Raises:
            BarredError: It is barred, or its key is.
        """
        if not self._scopes:
            return
        serial = f"{certificate.serial_number:x}"
        digest = certificate.fingerprint(SHA256()).hex()
        self._require(BarKind.SERIAL, serial, "bar.certificate")
        self._require(BarKind.CERTIFICATE, digest, "bar.certificate")
        self._require(BarKind.KEY, key_sha256(certificate), "bar.key")

    def _require(self, kind: BarKind, value: str, rule: str) -> None:
        entry = self._scopes.get(f"{kind}:{value}")
        if entry is not None:
            raise BarredError(
                f"the {_WORDS[kind]} is barred",
                rule=rule,
                detail=f"{entry.scope}, by bar {entry.id}: {entry.reason}",
            )

    def _take(self) -> None:
        # The text decides, and not a time or an inode: these may be the same again.
        text = self._file.read_text()
        if text is None and self._held:
            raise LedgerError("the bars are gone", detail=f"{self._file.path} is gone")
        if text is not None and text != self._text:
            content = self._file.decode(text)
            found = {**self._held, **content.entries}
            for removed in found.keys() & {*content.cleared}:
                del found[removed]
            bars = {key: one for key, one in found.items() if one.kind == Kind.BAR}
            self._held, self._scopes = bars, {one.scope: one for one in bars.values()}
        self._text, self._trouble = text, ""


_WORDS = {
    BarKind.SERIAL: "client certificate",
    BarKind.CERTIFICATE: "client certificate",
    BarKind.KEY: "key",
    BarKind.IDENTITY: "identity",
    BarKind.SERVICE_ACCOUNT: "service account",
}
