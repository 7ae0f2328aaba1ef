"""Makes the CSR of an issuing CA's key in a token, and the key too where it is wanted.

`python -m bridge_pkcs11.csr --help`. It works with any PKCS#11 module. An operator runs
it, so it logs in once with the PIN that it is given, and does not ask the latch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bridge.sdk import algorithm_of, csr_of
from bridge.spi import BackendCredentialError, BackendError, ConfigError
from bridge_pkcs11.operator_key import KINDS, TokenKey, TokenKeyOptions
from bridge_pkcs11.token import read_pin


def main(given: Sequence[str] | None = None) -> int:
    """Make the CSR that the command line asks for; return the exit status."""
    order = arguments().parse_args(given)
    if order.out.exists():
        return _failed(f"{order.out}: expected a new file: nothing is overwritten")
    try:
        csr = make_csr(order)
        with order.out.open("xb") as file:
            file.write(csr.public_bytes(Encoding.PEM))
    except ConfigError as error:
        return _failed(str(error))
    except BackendCredentialError as error:
        return _failed(f"{order.pin_file}: {error}. {error.detail}")
    except BackendError as error:
        return _failed(f"{error}: {error.detail}" if error.detail else str(error))
    except OSError as error:
        return _failed(f"{order.out}: cannot be written: {error.strerror}")
    _say(f"{order.out}: the CSR of the key {order.key_label!r}")
    return 0


def make_csr(order: argparse.Namespace) -> x509.CertificateSigningRequest:
    """Log in, make the key where that is wanted, and have it sign a CSR.

    Raises:
        ConfigError: There is not one key of the label, or no PIN is given.
        BackendError: Module, token or PIN file cannot be used, or the PIN is refused.
    """
    options = TokenKeyOptions(
        module=order.module,
        token_label=order.token_label,
        token_serial=order.token_serial,
        key_label=order.key_label,
        key_id=None if order.key_id is None else order.key_id.hex(),
        make=order.make_key,
    )
    key = TokenKey(options, lambda what: _pin(order.pin_file, what))
    try:
        if order.make_key is not None and not key.was_made:
            _say(f"the key {order.key_label!r} is there already, and none is made")
        subject = order.subject or x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, order.key_label)]
        )
        public_key = key.public_key()
        algorithm = algorithm_of(public_key)
        return csr_of(
            public_key, subject, lambda data: key.sign(data, algorithm, timeout=0)
        )
    except ValueError as error:
        raise _bad(f"{order.key_label!r}: {error}") from error
    finally:
        key.close()


def _pin(file: Path | None, what: str) -> str:
    if file is None:
        raise _bad(f"{what} is needed: give it with --pin-file")
    return read_pin(file, allow_group_read=False).decode()


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
        choices=KINDS,
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
