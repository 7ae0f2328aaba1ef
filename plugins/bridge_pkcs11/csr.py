"""Makes the CSR of an issuing CA's key in a token, and the key too where it is wanted.

`python -m bridge_pkcs11.csr --help`. It works with any PKCS#11 module. An operator runs
it, so it logs in once with the PIN that it is given, and does not ask the latch.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass, Session
from pkcs11.exceptions import PKCS11Error
from pkcs11.util.ec import encode_named_curve_parameters

from bridge.sdk import CAPublicKey, csr_of
from bridge.spi import BackendError, ConfigError
from bridge_pkcs11.cryptoki import (
    PIN_REFUSED,
    CryptokiError,
    Module,
    load_module,
    words,
)
from bridge_pkcs11.mechanism import mechanism_of
from bridge_pkcs11.token import KeySession, find_token, handle_of, read_pin

_EDWARDS25519 = bytes.fromhex("06032b6570")
"""The OID 1.3.101.112, in DER."""
_CURVES: dict[str, ec.EllipticCurve] = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1()}
_KINDS = (*_CURVES, "rsa2048", "rsa3072", "rsa4096", "ed25519")
_ED25519_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CSROrder:
    """The arguments. Those of token and key have the names of the options."""

    module: Path
    token_label: str
    token_serial: str | None
    key_label: str
    key_id: bytes | None
    pin_file: Path | None
    make_key: str | None
    subject: x509.Name | None
    out: Path


def main(given: Sequence[str] | None = None) -> int:
    """Make the CSR that the command line asks for; return the exit status."""
    order = CSROrder(**vars(arguments().parse_args(given)))
    if order.out.exists():
        return _failed(f"{order.out}: expected a new file: nothing is overwritten")
    try:
        csr = make_csr(order)
        with order.out.open("xb") as file:
            file.write(csr.public_bytes(Encoding.PEM))
    except ConfigError as error:
        return _failed(str(error))
    except BackendError as error:
        return _failed(f"{error}: {error.detail}" if error.detail else str(error))
    except PKCS11Error as error:
        return _failed(f"{order.module}: {words(error)}")
    except OSError as error:
        return _failed(f"{order.out}: cannot be written: {error.strerror}")
    _say(f"{order.out}: the CSR of the key {order.key_label!r}")
    return 0


def make_csr(order: CSROrder) -> x509.CertificateSigningRequest:
    """Log in, make the key where that is wanted, and have it sign a CSR.

    Raises:
        ConfigError: The PIN is refused, or there is not one key of the label.
        BackendError: Module, token or PIN file cannot be used.
        PKCS11Error: A call failed.
    """
    module = load_module(str(order.module))
    try:
        token = find_token(module, order.token_label, order.token_serial)
        session = token.open(rw=order.make_key is not None)
        _log_in(module, session, order)
        if order.make_key is not None:
            _make_key(session, order, order.make_key)
        private = _only(session, ObjectClass.PRIVATE_KEY, order)
        public_key = _public_key(private, _only(session, ObjectClass.PUBLIC_KEY, order))
        mechanism = mechanism_of(public_key, token.slot.get_mechanisms())
        subject = order.subject or x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, order.key_label)]
        )
        return csr_of(public_key, subject, KeySession(session, private, mechanism).sign)
    except ValueError as error:
        raise _bad(f"{order.key_label!r}: {error}") from error
    finally:
        module.finish()


def _log_in(module: Module, session: Session, order: CSROrder) -> None:
    if order.pin_file is None:
        return
    pin = read_pin(order.pin_file, allow_group_read=False)
    try:
        module.log_in(handle_of(session), pin)
    except CryptokiError as error:
        if error.code not in PIN_REFUSED:
            raise
        raise _bad(
            f"{order.pin_file}: token {order.token_label!r} refused the PIN "
            f"({words(error)}). It was tried once; a token locks after a few tries: "
            "correct the file before the next one"
        ) from error


def _make_key(session: Session, order: CSROrder, kind: str) -> None:
    if _found(session, ObjectClass.PRIVATE_KEY, order):
        _say(f"the key {order.key_label!r} is there already, and none is made")
        return
    # A token in FIPS mode refuses a key that could do more than sign.
    wanted: dict[str, Any] = {
        "label": order.key_label,
        "id": order.key_id,
        "store": True,
        "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
        "private_template": {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
    }
    if kind.startswith("rsa"):
        session.generate_keypair(KeyType.RSA, int(kind.removeprefix("rsa")), **wanted)
        return
    key_type, parameters = KeyType.EC_EDWARDS, _EDWARDS25519
    if kind in _CURVES:
        key_type = KeyType.EC
        parameters = encode_named_curve_parameters(_CURVES[kind].name)
    session.create_domain_parameters(
        key_type, {Attribute.EC_PARAMS: parameters}, local=True
    ).generate_keypair(**wanted)


def _only(session: Session, kind: ObjectClass, order: CSROrder) -> Any:
    found = _found(session, kind, order)
    if len(found) == 1:
        return found[0]
    way_out = (
        "give --key-id as well, or remove what is not used"
        if found
        else "make it with --make-key, or make the CSR with the vendor's tool"
    )
    raise _bad(
        f"key_label {order.key_label!r}: expected one {kind.name} in token "
        f"{order.token_label!r}, found {len(found)}: {way_out}"
    )


def _found(session: Session, kind: ObjectClass, order: CSROrder) -> list[Any]:
    wanted: dict[Attribute, Any] = {
        Attribute.CLASS: kind,
        Attribute.LABEL: order.key_label,
    }
    if order.key_id is not None:
        wanted[Attribute.ID] = order.key_id
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
        for curve in _CURVES.values():
            if parameters == encode_named_curve_parameters(curve.name):
                size = 1 + 2 * ((curve.key_size + 7) // 8)
                point = public[Attribute.EC_POINT][-size:]
                return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    raise ValueError(f"expected a key of {' or '.join(_KINDS)}")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_pkcs11.csr",
        description="Make the CSR of a key in a PKCS#11 token. The options that "
        "bridge.yaml has too have the same names there.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--module", type=Path, required=True, help="the vendor's shared object")
    add("--token-label", required=True)
    add("--token-serial", help="where several tokens have the label")
    add("--key-label", required=True)
    add("--key-id", type=bytes.fromhex, metavar="HEX")
    add("--pin-file", type=Path, help="the user PIN; only its owner may read the file")
    add(
        "--make-key",
        choices=_KINDS,
        help="make the key in the token, if there is none of the label; it cannot be "
        "extracted, and signs only",
    )
    add(
        "--subject",
        type=x509.Name.from_rfc4514_string,
        metavar="NAME",
        help="as in RFC 4514, such as 'CN=Issuing CA eu,O=Example' (the key's label)",
    )
    add("--out", type=Path, required=True, help="a new file, in PEM")
    return parser


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="pkcs11.csr")


def _failed(text: str) -> int:
    _say(text)
    return 1


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
