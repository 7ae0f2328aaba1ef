"""The backend `vault-transit`: an issuing CA whose key is in Vault's Transit engine."""

import base64
import hashlib
import time
from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from hvac.api.secrets_engines import Transit

from bridge.sdk import (
    CAPublicKey,
    SignatureAlgorithm,
    WatchedSigningCA,
    issuer_key,
    read_watched_description,
    require_signature,
)
from bridge.spi import (
    BackendBrokenError,
    IssuedChain,
    PluginContext,
    Prepared,
)
from bridge_vault.options import TransitOptions, files_of, options_of
from bridge_vault.rights import Rights, transit_rights
from bridge_vault.session import ASK_SECONDS, SharedSession


class VaultTransitCA(WatchedSigningCA):
    """An issuing CA whose key is in Transit. It reports changes of its files.

    Args:
        options: See `bridge_vault.options.TransitOptions`.
        context: `chain` names the certificates.

    Raises:
        ConfigError: An option or a file cannot be used; the message says what was
            expected.
    """

    api_version = 2

    def __init__(
        self, options: Mapping[str, object], context: PluginContext, /
    ) -> None:
        parsed = options_of(TransitOptions, options, context)
        # Each login may use up a secret: whoever asks first, there is one session.
        session = cache(lambda: SharedSession(parsed, context))
        description, files = read_watched_description(
            context,
            assurance="service",
            labels={"key": f"{parsed.mount}/{parsed.key} v{parsed.key_version}"},
            beside=files_of(parsed),
            holds=lambda key: (
                not key_problem(
                    _read(session(), parsed, ASK_SECONDS), parsed.key_version, key
                )
            ),
        )
        key = issuer_key(description.certificate)
        super().__init__(
            description,
            _TransitSigner(key, parsed, session(), context),
            files,
        )

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        """See `IssuingCA.issue`; Vault's audit log has the attempt's ID."""
        before = _attempt.set(prepared.request.attempt)
        try:
            return super().issue(prepared, timeout=timeout)
        finally:
            _attempt.reset(before)


_UNWISE = ("exportable", "allow_plaintext_backup", "deletion_allowed")
_attempt = ContextVar("_attempt", default="")
"""The attempt of the signature that this thread asks for: a `Signer` is not told."""


class _TransitSigner:
    # A `Signer`.
    def __init__(
        self,
        public_key: CAPublicKey,
        options: TransitOptions,
        session: SharedSession,
        context: PluginContext,
    ) -> None:
        self._public_key = public_key
        self._options = options
        self._session = session
        self._context = context
        self._rights = Rights(session, context, _needless(options))
        self._warned: set[str] = set()

    def public_key(self) -> CAPublicKey:
        return self._public_key

    def check(self, *, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        options = self._options
        where = f"{options.mount}/keys/{options.key}"
        self._rights.require(transit_rights(options.mount, options.key), deadline)
        key = _read(self._session, options, deadline - time.monotonic())
        if problem := key_problem(key, options.key_version, self._public_key):
            raise BackendBrokenError(
                "the key in Transit is not the issuing CA's",
                rule="vault.key",
                detail=f"{where}: {problem}",
            )
        for name in _UNWISE:
            if key.get(name) and name not in self._warned:
                self._warned.add(name)
                self._context.warn(
                    f"issuing_cas.{self._context.name}: {where} has {name}: the key of "
                    "an issuing CA should neither leave Vault nor be deleted"
                )

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        options = self._options
        fields = signing_fields(self._public_key, algorithm, tbs)
        answer = self._session.call(
            lambda adapter: Transit(adapter).sign_data(
                options.key,
                key_version=options.key_version,
                mount_point=options.mount,
                **fields,
            ),
            timeout,
            signs=True,
            attempt=_attempt.get(),
        )
        signature = signature_in(answer.get("data"), options.key_version)
        try:
            # Another key under the same name and version makes no certificate of ours.
            require_signature(self._public_key, algorithm, signature, tbs)
        except InvalidSignature as error:
            raise BackendBrokenError(
                "the key in Transit is not the issuing CA's",
                rule="vault.key",
                detail=f"{options.mount}/keys/{options.key}: its signature does not "
                "verify with the issuing CA's certificate",
                certificate_may_exist=True,
            ) from error
        return signature

    def close(self) -> None:
        self._session.close()


def signature_in(data: object, version: int) -> bytes:
    """Return the signature in the data of an answer.

    Args:
        data: Of the answer.
        version: Of the key that was to sign.

    Raises:
        BackendBrokenError: Another version has signed, or it is no signature.

    Source:
        OpenBao, internal/builtin/logical/transit: `vault:v<N>:<base64>`.
    """
    text = data.get("signature") if isinstance(data, dict) else None
    _, _, encoded = str(text).rpartition(":")
    if text != f"vault:v{version}:{encoded}":
        raise BackendBrokenError(
            f"Transit's answer has no signature by version {version} of the key",
            rule="vault.answer",
            certificate_may_exist=True,
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise BackendBrokenError(
            "Transit's signature is no base64",
            rule="vault.answer",
            certificate_may_exist=True,
        ) from error


def _read(
    session: SharedSession, options: TransitOptions, timeout: float
) -> Mapping[str, Any]:
    path = f"/v1/{options.mount}/keys/{options.key}"
    data = session.call(lambda adapter: adapter.get(path), timeout).get("data")
    return data if isinstance(data, dict) else {}


def key_problem(key: Mapping[str, Any], version: int, public_key: CAPublicKey) -> str:
    """Return why a version of a key cannot sign for a certificate; "" if it can.

    Args:
        key: The data of `GET <mount>/keys/<name>`.
        version: Of the key.
        public_key: Of the certificate.
    """
    versions = key.get("keys")
    found = versions.get(str(version)) if isinstance(versions, dict) else None
    if not isinstance(found, dict):
        latest = key.get("latest_version", "unknown")
        return f"version {version} is not there (the latest is {latest})"
    least = key.get("min_encryption_version")
    if isinstance(least, int) and least > version:
        return (
            f"min_encryption_version {least} keeps version {version} from signing: "
            f"set it to {version}, or 0"
        )
    if key.get("supports_signing") is not True:
        return f"a key of type {key.get('type')} does not sign"
    if key.get("derived"):
        return "a derived key signs with a key of its own for each context"
    if spki_in_answer(found.get("public_key")) != _spki_of(public_key):
        return f"version {version} is another key than that of the certificate"
    return ""


def _needless(options: TransitOptions) -> tuple[str, ...]:
    mount, key = options.mount, options.key
    return (
        f"{mount}/keys/{key}/config",
        f"{mount}/keys/{key}/rotate",
        f"{mount}/export/signing-key/{key}",
        f"{mount}/backup/{key}",
    )


def signing_fields(
    key: CAPublicKey, algorithm: SignatureAlgorithm, tbs: bytes
) -> dict[str, Any]:
    """Return the arguments of `Transit.sign_data` that sign `tbs` as X.509 has it."""
    if algorithm.hash is None:
        # Ed25519 signs the message itself.
        return {"hash_input": base64.b64encode(tbs).decode("ascii")}
    digest = hashlib.new(algorithm.hash.name, tbs).digest()
    fields = {
        "hash_input": base64.b64encode(digest).decode("ascii"),
        "prehashed": True,
        "hash_algorithm": algorithm.hash.name.replace("sha", "sha2-"),
    }
    if isinstance(key, rsa.RSAPublicKey):
        # Transit's own choice is PSS.
        fields["signature_algorithm"] = "pkcs1v15"
    else:
        fields["marshaling_algorithm"] = "asn1"
    return fields


def _spki_of(key: CAPublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_in_answer(text: object) -> bytes:
    """Return the key of a version in DER: it is PEM, or Ed25519's 32 bytes in base64.

    Empty where it is neither.
    """
    try:
        if str(text).startswith("-----"):
            key = load_pem_public_key(str(text).encode("ascii"))
        else:
            raw = base64.b64decode(str(text), validate=True)
            key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
