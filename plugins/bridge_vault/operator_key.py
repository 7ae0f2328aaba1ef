"""A CA's key in Vault's or OpenBao's Transit engine, used by an operator in a ceremony.

The operator's token is used, not the login of the bridge. The key stays in Vault.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pydantic import Field

from bridge.sdk import (
    CAPublicKey,
    KeyAlgorithm,
    PluginOptions,
    SignatureAlgorithm,
    parse_options,
    require_signature,
)
from bridge.spi import BackendBrokenError, ConfigError, PluginContext
from bridge_vault.options import Login, TokenLogin, TransitOptions, tls_of
from bridge_vault.setup.operator import OperatorSession
from bridge_vault.setup.transit import KEYS
from bridge_vault.transit import (
    key_problem,
    signature_in,
    signing_fields,
    spki_in_answer,
)

_NO_LOGIN = Login(token=TokenLogin(file=Path("unused")))
_Text = Annotated[str, Field(min_length=1)]


class TransitKeyOptions(PluginOptions):
    """Which version of which key."""

    address: _Text
    mount: _Text
    name: _Text
    version: Annotated[int, Field(ge=1)]
    namespace: _Text | None = None
    ca_file: Annotated[Path, Field(strict=False)] | None = None
    make: KeyAlgorithm | None = None


class TransitKey:
    """A `Signer`: one version of a key in Transit.

    Args:
        options: Which key.
        token: The operator's.

    Raises:
        ConfigError: The address cannot be used, or Transit has no such kind of key.
        BackendError: Vault refuses, cannot be asked, or has no such key.
    """

    def __init__(self, options: TransitKeyOptions, token: str) -> None:
        context = PluginContext(name="key", base=Path())
        where: dict[str, object] = {
            "addresses": (options.address,),
            "login": _NO_LOGIN,
            "mount": options.mount,
            "key": options.name,
            "key_version": options.version,
            "namespace": options.namespace,
            "ca_file": options.ca_file,
        }
        transit = parse_options(TransitOptions, where, context)
        self._options = options
        self._path = f"{options.mount}/keys/{options.name}"
        self._vault = OperatorSession(transit, tls_of(transit, context), token)
        try:
            self._public_key = self._find()
        except BaseException:
            self.close()
            raise

    def public_key(self) -> CAPublicKey:
        """See `Signer.public_key`."""
        return self._public_key

    def check(self, *, timeout: float) -> None:
        """See `Signer.check`."""
        found = self._vault.read(self._path) or {}
        if problem := key_problem(found, self._options.version, self._public_key):
            raise self._unfit(problem)

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        """See `Signer.sign`. The calls have time limits of their own."""
        options = self._options
        fields = signing_fields(self._public_key, algorithm, tbs)
        fields["input"] = fields.pop("hash_input")
        data = self._vault.write(
            f"{options.mount}/sign/{options.name}",
            {**fields, "key_version": options.version},
        )
        signature = signature_in(data, options.version)
        try:
            require_signature(self._public_key, algorithm, signature, tbs)
        except InvalidSignature as error:
            raise self._unfit("its signature does not verify") from error
        return signature

    def close(self) -> None:
        """See `Signer.close`."""
        self._vault.close()

    def _find(self) -> CAPublicKey:
        found = self._vault.read(self._path)
        if found is None and self._options.make is not None:
            found = self._make(self._options.make)
        versions = (found or {}).get("keys")
        version = str(self._options.version)
        one = versions.get(version) if isinstance(versions, dict) else None
        spki = spki_in_answer(one.get("public_key")) if isinstance(one, dict) else b""
        key = load_der_public_key(spki) if spki else None
        if not isinstance(key, CAPublicKey):
            raise self._unfit(
                f"there is no version {version} of a key that signs: make it with "
                "--make-key, or correct name and version"
            )
        if problem := key_problem(found or {}, self._options.version, key):
            raise self._unfit(problem)
        return key

    def _make(self, kind: str) -> Mapping[str, Any] | None:
        if kind not in KEYS:
            raise ConfigError(
                f"{self._path}: expected an algorithm of {', '.join(KEYS)} (found "
                f"{kind})",
                rule="vault.key",
            )
        self._vault.write(self._path, {"type": KEYS[kind], "exportable": False})
        return self._vault.read(self._path)

    def _unfit(self, problem: str) -> BackendBrokenError:
        return BackendBrokenError(
            "the key in Transit cannot be used",
            rule="vault.key",
            detail=f"{self._path}: {problem}",
        )


def open_key(
    options: Mapping[str, object], secret: Callable[[str], str], /
) -> TransitKey:
    """Open a key of Transit. See `bridge.registry.SignerFactory`."""
    context = PluginContext(name="key", base=Path())
    parsed = parse_options(TransitKeyOptions, options, context)
    return TransitKey(parsed, secret(f"the operator's token of {parsed.address}"))
