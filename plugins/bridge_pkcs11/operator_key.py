"""A CA's key in a token, used by an operator: for a ceremony, or to make a CSR.

It works with any PKCS#11 module, which is loaded into this process. A person is there,
so it logs in once with the PIN that it is given, and does not ask the latch.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass, Session, TokenFlag
from pkcs11.exceptions import PKCS11Error
from pkcs11.util.ec import encode_named_curve_parameters
from pydantic import Field

from bridge.sdk import (
    CAPublicKey,
    KeyAlgorithm,
    PluginOptions,
    SignatureAlgorithm,
    algorithm_of,
    parse_options,
    require_signature,
)
from bridge.spi import (
    BackendBrokenError,
    BackendCredentialError,
    BackendUnavailableError,
    ConfigError,
    PluginContext,
)
from bridge_pkcs11.cryptoki import (
    PIN_REFUSED,
    CryptokiError,
    Module,
    load_module,
    words,
)
from bridge_pkcs11.mechanism import mechanism_of
from bridge_pkcs11.token import KeySession, find_token, handle_of, serial_of, unfit

CURVES: dict[str, ec.EllipticCurve] = {
    "p256": ec.SECP256R1(),
    "p384": ec.SECP384R1(),
    "p521": ec.SECP521R1(),
}
KINDS: tuple[KeyAlgorithm, ...] = get_args(KeyAlgorithm)
_EDWARDS25519 = bytes.fromhex("06032b6570")
"""The OID 1.3.101.112, in DER."""
_ED25519_BYTES = 32
_CHALLENGE_BYTES = 64
_Text = Annotated[str, Field(min_length=1)]
_Result = TypeVar("_Result")


class TokenKeyOptions(PluginOptions):
    """Which key of which token."""

    module: Annotated[Path, Field(strict=False)]
    token_label: _Text
    token_serial: _Text | None = None
    key_label: _Text | None = None
    key_id: Annotated[str, Field(pattern=r"^([0-9a-fA-F]{2})+$")] | None = None
    make: KeyAlgorithm | None = None

    @property
    def named(self) -> str:
        """What the key is searched by, for people."""
        parts = (("key_label", self.key_label), ("key_id", self.key_id))
        return " and ".join(f"{name} {value!r}" for name, value in parts if value)

    @property
    def searched(self) -> str:
        """The key and its token, for people."""
        return f"{self.named} in token {self.token_label!r}"


class TokenKey:
    """A `Signer`: one key of a token, and a module that is loaded for it alone.

    Args:
        options: Which key.
        secret: Returns the token's user PIN.

    Raises:
        ConfigError: There is not one key of the name.
        BackendError: The module or the token cannot be used, the PIN is refused, or the
            key is not fit for a CA.
    """

    def __init__(self, options: TokenKeyOptions, secret: Callable[[str], str]) -> None:
        self._options = options
        self.was_made = False
        """Whether the key was made now."""
        self._module = _calling(options, lambda: load_module(str(options.module)))
        try:
            _calling(options, lambda: self._open(secret))
        except BaseException:
            self.close()
            raise

    def public_key(self) -> CAPublicKey:
        """See `Signer.public_key`."""
        return self._public_key

    def check(self, *, timeout: float) -> None:
        """See `Signer.check`: the key signs a challenge, which is verified."""
        key = self.public_key()
        challenge = os.urandom(_CHALLENGE_BYTES)
        algorithm = algorithm_of(key)
        signature = self.sign(challenge, algorithm, timeout=timeout)
        try:
            require_signature(key, algorithm, signature, challenge)
        except InvalidSignature:
            raise BackendBrokenError(
                "the private key in the token is not that of the public key beside it",
                rule="pkcs11.key",
                detail=f"{self._options.searched}: give label and ID of the right key, "
                "or remove what is not used",
            ) from None

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        """See `Signer.sign`. The module is waited for, however long it takes."""
        return _calling(self._options, lambda: self._session.sign(tbs), signs=True)

    def device(self) -> Mapping[str, str]:
        """Return `serial`, `firmware` and `model` of the token, for the transcript."""
        token = self._token
        slot = token.slot
        major, minor = slot.firmware_version
        return {
            "serial": serial_of(token),
            "firmware": f"{major}.{minor}",
            "model": f"{token.manufacturer_id} {token.model}".strip(),
        }

    def close(self) -> None:
        """See `Signer.close`: logs out."""
        self._module.finish()

    def _open(self, secret: Callable[[str], str]) -> None:
        options = self._options
        self._token = find_token(
            self._module, options.token_label, options.token_serial
        )
        session = self._token.open(rw=options.make is not None)
        if self._token.flags & TokenFlag.LOGIN_REQUIRED:
            pin = secret(f"the user PIN of token {options.token_label!r}")
            _log_in(self._module, session, options, pin)
        self.was_made = options.make is not None and _make_key(session, options)
        private = _only(session, ObjectClass.PRIVATE_KEY, options)
        if wrong := unfit(private):
            raise BackendBrokenError(
                "the key in the token is not fit for a CA",
                rule="pkcs11.key",
                detail=f"{options.searched}: {', '.join(wrong)}: expected a key made "
                "in the token that is sensitive, cannot be extracted, may sign, and "
                "wants no PIN for each signature; make another one",
            )
        public = _only(session, ObjectClass.PUBLIC_KEY, options)
        self._public_key = _public_key(private, public)
        mechanism = mechanism_of(self._public_key, self._token.slot.get_mechanisms())
        self._session = KeySession(session, private, mechanism)


def open_key(
    options: Mapping[str, object], secret: Callable[[str], str], /
) -> TokenKey:
    """Open a key of a token. See `bridge.registry.SignerFactory`."""
    context = PluginContext(name="key", base=Path())
    key = TokenKey(parse_options(TokenKeyOptions, options, context), secret)
    try:
        key.check(timeout=0)
    except BaseException:
        key.close()
        raise
    return key


def _calling(
    options: TokenKeyOptions, call: Callable[[], _Result], *, signs: bool = False
) -> _Result:
    try:
        return call()
    except PKCS11Error as error:
        raise BackendUnavailableError(
            "the token does not answer as it should",
            rule="pkcs11.call",
            detail=f"{options.searched}: {words(error)}; is the HSM plugged in and "
            "reachable? Then run the command again",
            certificate_may_exist=signs,
        ) from error
    except ValueError as error:
        raise _bad(f"{options.searched}: {error}") from error


def _log_in(
    module: Module, session: Session, options: TokenKeyOptions, pin: str
) -> None:
    try:
        module.log_in(handle_of(session), pin.encode())
    except CryptokiError as error:
        if error.code not in PIN_REFUSED:
            raise
        raise BackendCredentialError(
            f"token {options.token_label!r} refused the PIN ({words(error)})",
            rule="pkcs11.pin",
            detail="It was tried once; a token locks after a few tries: make sure of "
            "the PIN and of the token before you run the command again",
        ) from error


def _make_key(session: Session, options: TokenKeyOptions) -> bool:
    if _found(session, ObjectClass.PRIVATE_KEY, options):
        return False
    kind = str(options.make)
    # A token in FIPS mode refuses a key that could do more than sign.
    wanted: dict[str, Any] = {
        "label": options.key_label,
        "id": None if options.key_id is None else bytes.fromhex(options.key_id),
        "store": True,
        "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
        "private_template": {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
    }
    if kind.startswith("rsa"):
        session.generate_keypair(KeyType.RSA, int(kind.removeprefix("rsa")), **wanted)
        return True
    key_type, parameters = KeyType.EC_EDWARDS, _EDWARDS25519
    if kind in CURVES:
        key_type = KeyType.EC
        parameters = encode_named_curve_parameters(CURVES[kind].name)
    session.create_domain_parameters(
        key_type, {Attribute.EC_PARAMS: parameters}, local=True
    ).generate_keypair(**wanted)
    return True


def _only(session: Session, kind: ObjectClass, options: TokenKeyOptions) -> Any:
    found = _found(session, kind, options)
    if len(found) == 1:
        return found[0]
    way_out = (
        "give --key-id as well (in a URI, id), or remove what is not used"
        if found
        else "make it with --make-key, or with the vendor's tool"
    )
    raise _bad(
        f"{options.named}: expected one {kind.name} in token "
        f"{options.token_label!r}, found {len(found)}: {way_out}"
    )


def _found(session: Session, kind: ObjectClass, options: TokenKeyOptions) -> list[Any]:
    wanted: dict[Attribute, Any] = {Attribute.CLASS: kind}
    if options.key_label is not None:
        wanted[Attribute.LABEL] = options.key_label
    if options.key_id is not None:
        wanted[Attribute.ID] = bytes.fromhex(options.key_id)
    return [*session.get_objects(wanted)]


def _public_key(private: Any, public: Any) -> CAPublicKey:
    key_type = private.key_type
    if key_type == KeyType.RSA:
        modulus, exponent = (
            int.from_bytes(public[name], "big")
            for name in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT)
        )
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    # An OCTET STRING around the point, as the standard says, or the point alone.
    if key_type == KeyType.EC_EDWARDS:
        point = public[Attribute.EC_POINT][-_ED25519_BYTES:]
        return ed25519.Ed25519PublicKey.from_public_bytes(point)
    if key_type == KeyType.EC:
        parameters = public[Attribute.EC_PARAMS]
        for curve in CURVES.values():
            if parameters == encode_named_curve_parameters(curve.name):
                size = 1 + 2 * ((curve.key_size + 7) // 8)
                point = public[Attribute.EC_POINT][-size:]
                return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    raise ValueError(f"expected a key of {' or '.join(KINDS)}")


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="pkcs11.key")
