"""Works on the keys of one PKCS#11 token, in a process of its own.

`python -m tests.support.parts.token_keys` takes one order as JSON from its standard
input and writes the answer as JSON. A PKCS#11 module is never loaded by the test runner
itself: it has threads, locks and a handler for forks.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

from asn1crypto.core import OctetString
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_SECONDS = 120
"""A key of 4,096 bits takes long on a busy machine."""
_EDWARDS25519 = bytes.fromhex("06032b6570")
"""The OID 1.3.101.112, in DER."""
_CURVES = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1()}


class TokenError(Exception):
    """The token did not do what was ordered."""


def order(environment: Mapping[str, str], **values: Any) -> dict[str, Any]:
    """Have the order carried out in a child process; return its answer.

    Args:
        environment: Of the child, such as with SOFTHSM2_CONF.
        values: `do` names the operation; `module`, `serial` and `pin` the token; the
            others are the operation's own.

    Raises:
        TokenError: It fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.parts.token_keys"],
        cwd=Path(__file__).resolve().parents[3],
        env=dict(environment),
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        raise TokenError(f"{values['do']} of a key failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _generate(session: Any, values: Mapping[str, Any]) -> dict[str, str]:
    from pkcs11 import Attribute, KeyType  # noqa: PLC0415 - only in the child
    from pkcs11.util.ec import encode_named_curve_parameters  # noqa: PLC0415

    kind = values["kind"]
    source = session
    size: tuple[Any, ...] = ()
    if kind.startswith("rsa"):
        size = (KeyType.RSA, int(kind.removeprefix("rsa")))
    elif kind == "ed25519":
        source = session.create_domain_parameters(
            KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: _EDWARDS25519}, local=True
        )
    else:
        curve = encode_named_curve_parameters(_CURVES[kind].name)
        source = session.create_domain_parameters(
            KeyType.EC, {Attribute.EC_PARAMS: curve}, local=True
        )
    named = {Attribute.LABEL: values["key"], Attribute.ID: bytes.fromhex(values["id"])}
    public, _ = source.generate_keypair(
        *size,
        store=True,
        public_template=named | {Attribute.TOKEN: values["public"]},
        private_template=named
        | {
            Attribute.SENSITIVE: not values["extractable"],
            Attribute.EXTRACTABLE: values["extractable"],
            Attribute.SIGN: True,
        },
    )
    return {"spki": _spki(public, kind).hex()}


def _spki(public: Any, kind: str) -> bytes:
    from pkcs11 import Attribute  # noqa: PLC0415 - only in the child

    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
    if kind.startswith("rsa"):
        modulus, exponent = (
            int.from_bytes(public[name], "big")
            for name in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT)
        )
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    else:
        point = OctetString.load(public[Attribute.EC_POINT]).native
        if kind == "ed25519":
            key = ed25519.Ed25519PublicKey.from_public_bytes(point)
        else:
            curve = _CURVES[kind]
            key = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _sign(session: Any, values: Mapping[str, Any]) -> dict[str, str]:
    from pkcs11 import (  # noqa: PLC0415 - only in the child
        Attribute,
        KeyType,
        Mechanism,
        ObjectClass,
    )
    from pkcs11.util.ec import (  # noqa: PLC0415
        encode_ecdsa_signature,
        encode_named_curve_parameters,
    )

    label, tbs = values["key"], bytes.fromhex(values["tbs"])
    key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label=label)
    if key.key_type == KeyType.RSA:
        signature = key.sign(tbs, mechanism=Mechanism.SHA256_RSA_PKCS)
    elif key.key_type == KeyType.EC_EDWARDS:
        signature = key.sign(tbs, mechanism=Mechanism.EDDSA)
    else:
        is_p256 = key[Attribute.EC_PARAMS] == encode_named_curve_parameters("secp256r1")
        digest = (sha256 if is_p256 else sha384)(tbs).digest()
        raw = key.sign(digest, mechanism=Mechanism.ECDSA)
        signature = encode_ecdsa_signature(raw)
    return {"signature": signature.hex()}


def _delete(session: Any, values: Mapping[str, Any]) -> dict[str, str]:
    from pkcs11 import Attribute  # noqa: PLC0415 - only in the child

    found = list(session.get_objects({Attribute.LABEL: values["key"]}))
    if not found:
        raise TokenError(f"no key {values['key']!r} to delete")
    for one in found:
        one.destroy()
    return {}


def _rename(session: Any, values: Mapping[str, Any]) -> dict[str, str]:
    from pkcs11 import Attribute  # noqa: PLC0415 - only in the child

    found = list(session.get_objects({Attribute.LABEL: values["key"]}))
    if not found:
        raise TokenError(f"no key {values['key']!r} to rename")
    for one in found:
        one[Attribute.LABEL] = values["new"]
    return {}


_OPERATIONS = {
    "generate": _generate,
    "sign": _sign,
    "delete": _delete,
    "rename": _rename,
}


def main() -> None:
    """Carry out the order on standard input."""
    import pkcs11  # noqa: PLC0415 - never in the test runner

    values = json.load(sys.stdin)
    library = pkcs11.lib(values["module"])
    # Labels may repeat; a serial number does not.
    token = library.get_token(token_serial=values["serial"].encode("ascii"))
    with token.open(rw=True, user_pin=values["pin"]) as session:
        answer = _OPERATIONS[values["do"]](session, values)
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
