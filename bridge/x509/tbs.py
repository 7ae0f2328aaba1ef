"""CA keys that sign nothing: pyca builds a TBSCertificate or a CSR with them.

The bytes exist before the signature does. They can be recorded, compared, and sent to
a key in another place; what is spliced together afterwards holds them unchanged.

Source:
    pyca/cryptography issue 11616: `CertificateBuilder.sign` takes any subclass.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificateIssuerPublicKeyTypes,
)

from bridge.x509.algorithm import algorithm_of
from bridge.x509.der import splice

_ANY_ECDSA_SIGNATURE = bytes.fromhex("3006020101020101")
_ANY_ED25519_SIGNATURE = bytes(64)


def recorder_of(
    public_key: CertificateIssuerPublicKeyTypes,
) -> CertificateIssuerPrivateKeyTypes:
    """Return a stand-in for the private half of `public_key`.

    It returns a placeholder for a signature; what was to be signed is then read from
    the certificate that the builder returns.

    Raises:
        TypeError: The key is neither RSA, EC nor Ed25519.
    """
    if isinstance(public_key, rsa.RSAPublicKey):
        return _RSARecorder(public_key)
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return _ECRecorder(public_key)
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return _Ed25519Recorder(public_key)
    raise TypeError(f"no recorder for {type(public_key).__name__}")


def csr_of(
    public_key: CertificateIssuerPublicKeyTypes,
    subject: x509.Name,
    sign: Callable[[bytes], bytes],
) -> x509.CertificateSigningRequest:
    """Make the CSR of a CA key that is held in another place.

    Args:
        public_key: The key.
        subject: The name that the CSR asks for; it asks for no extension.
        sign: Signs with the private half, as `algorithm_of` says; ECDSA signatures are
            in DER.

    Raises:
        ConfigError: The key is none of a CA.
        ValueError: The signature is not that of the key.
    """
    algorithm = algorithm_of(public_key)
    unsigned = x509.CertificateSigningRequestBuilder(subject).sign(
        recorder_of(public_key), algorithm.hash
    )
    info = unsigned.tbs_certrequest_bytes
    signed = x509.load_der_x509_csr(splice(info, algorithm.der, sign(info)))
    if not signed.is_signature_valid:
        raise ValueError("the CSR was signed by another key")
    return signed


def _has_no_private_half(*_: Any, **__: Any) -> NoReturn:
    raise TypeError("this key has no private half")


class _RSARecorder(rsa.RSAPrivateKey):
    def __init__(self, public_key: rsa.RSAPublicKey) -> None:
        self._public_key = public_key

    def public_key(self) -> rsa.RSAPublicKey:
        return self._public_key

    @property
    def key_size(self) -> int:
        return self._public_key.key_size

    def sign(self, *_: Any, **__: Any) -> bytes:
        return b"\x00"

    decrypt = private_numbers = private_bytes = _has_no_private_half
    __copy__ = __deepcopy__ = _has_no_private_half


class _ECRecorder(ec.EllipticCurvePrivateKey):
    def __init__(self, public_key: ec.EllipticCurvePublicKey) -> None:
        self._public_key = public_key

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        return self._public_key.key_size

    def sign(self, *_: Any, **__: Any) -> bytes:
        return _ANY_ECDSA_SIGNATURE

    exchange = private_numbers = private_bytes = _has_no_private_half
    __copy__ = __deepcopy__ = _has_no_private_half


class _Ed25519Recorder(ed25519.Ed25519PrivateKey):
    def __init__(self, public_key: ed25519.Ed25519PublicKey) -> None:
        self._public_key = public_key

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return self._public_key

    def sign(self, *_: Any, **__: Any) -> bytes:
        return _ANY_ED25519_SIGNATURE

    private_bytes = private_bytes_raw = _has_no_private_half
    __copy__ = __deepcopy__ = _has_no_private_half
