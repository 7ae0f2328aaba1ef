"""Reads the CSR of an issuing CA whose key stays where it was made, as in an HSM.

A workload's CSR is read by `bridge.x509.csr`. A CA may have other keys, and its CSR
comes from an operator's file, in the form that the HSM's tools write.
"""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from bridge.errors import ConfigError, CSRError
from bridge.system.files import read_public
from bridge.x509.algorithm import CA_KEYS, CAPublicKey
from bridge.x509.certificate import UNREADABLE
from bridge.x509.key_quality import require_good_ca_key
from bridge.x509.pem import parse_one

_PEM_LABEL = "CERTIFICATE REQUEST"
_DER_START = b"\x30"
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


def read_issuing_key(path: Path) -> CAPublicKey:
    """Return the public key of a CSR whose private half signed the CSR.

    Args:
        path: One CSR (PKCS#10), in PEM or DER.

    Raises:
        ConfigError: The file cannot be read, or see `issuing_key_of`.
    """
    return issuing_key_of(read_public(path), path)


def issuing_key_of(content: bytes, path: Path) -> CAPublicKey:
    """Return the public key of a CSR whose private half signed the CSR.

    Nothing else is taken from the CSR: subject, constraints and validity of an issuing
    CA are decided by whoever signs its certificate.

    Args:
        content: One CSR (PKCS#10), in PEM or DER.
        path: Its file, for people.

    Raises:
        ConfigError: The file holds no CSR, the key is of a kind or strength that no CA
            may have, or the signature is not that of the key.
    """
    request = _parsed(content, path)
    try:
        key = request.public_key()
        require_good_ca_key(key)
        digest = request.signature_hash_algorithm
        is_proven = request.is_signature_valid
    except CSRError as error:
        raise _bad(f"{path}: {error}") from None
    except UNREADABLE as error:
        raise _bad(
            f"{path}: its key or its signature is of no kind that a CA may have: "
            f"expected {CA_KEYS}",
            str(error),
        ) from error
    if digest is not None and not isinstance(digest, _HASHES):
        raise _bad(
            f"{path}: expected a CSR signed with SHA-256, SHA-384 or SHA-512 (found "
            f"{digest.name})"
        )
    if not isinstance(key, CAPublicKey) or not is_proven:
        raise _bad(
            f"{path}: the CSR's signature is not that of its key: expected proof that "
            "whoever asks has the private half; make the CSR anew"
        )
    return key


def require_key_of_file(name: str, key: CAPublicKey, csr: Path, planned: Path) -> None:
    """Refuse a CSR with another key, given in place of the hierarchy file's.

    Where the file's own CSR is not on this machine, nothing is compared.

    Args:
        name: The CA.
        key: Of the CSR that was given.
        csr: Its file, for people.
        planned: The CSR that the hierarchy file names.

    Raises:
        ConfigError: The keys differ, or the file's CSR cannot be read.
    """
    if planned.exists() and read_issuing_key(planned) != key:
        raise _bad(
            f"{csr}: its key is not the planned one, which is that of {planned}, as in "
            f"cas.{name}.key.path: leave --csr out, or correct the plan and have it "
            "agreed again"
        )


def _parsed(data: bytes, path: Path) -> x509.CertificateSigningRequest:
    expected = f"{path}: expected one CSR (PKCS#10), in PEM or DER"
    if not data.startswith(_DER_START):
        try:
            data = parse_one(data.decode("ascii"), _PEM_LABEL)
        except UnicodeDecodeError:
            raise _bad(f"{expected} (found neither)") from None
        except ValueError as error:
            raise _bad(f"{expected} ({error})") from None
    try:
        return x509.load_der_x509_csr(data)
    except UNREADABLE as error:
        raise _bad(f"{expected} (found other or damaged DER)", str(error)) from error


def _bad(message: str, detail: str = "") -> ConfigError:
    return ConfigError(message, rule="hierarchy.csr", detail=detail)
