"""The SDK for plugin authors: an issuing CA made of a signer, and access to files.

A plugin for a backend that holds a key (a file, a PKCS#11 token, Vault's Transit)
implements `Signer`. The bridge makes the certificate's profile, bytes and digest.
Secrets are read with `read_secret`, and `FileWatch` reports changes of files.
"""

import hashlib

from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import BackendUnavailableError, ConfigError
from bridge.spi import Description, IssuedChain, LeafRequest, Prepared, Signer
from bridge.system.file_watch import FileWatch
from bridge.system.files import (
    digest_of,
    digest_of_contents,
    read_public,
    read_secret,
    stamp_of,
)
from bridge.x509.algorithm import (
    CA_KEYS,
    CURVES,
    RSA_BITS,
    CAPrivateKey,
    CAPublicKey,
    SignatureAlgorithm,
    algorithm_of,
    signature_of,
)
from bridge.x509.der import splice
from bridge.x509.leaf_profile import LeafProfile
from bridge.x509.pem import parse_certificates

__all__ = [
    "CA_KEYS",
    "CURVES",
    "RSA_BITS",
    "CAPrivateKey",
    "CAPublicKey",
    "FileWatch",
    "SignatureAlgorithm",
    "SigningCA",
    "algorithm_of",
    "digest_of",
    "digest_of_contents",
    "parse_certificates",
    "read_public",
    "read_secret",
    "signature_of",
    "stamp_of",
]


class SigningCA:
    """An `IssuingCA` whose key is a `Signer`.

    Args:
        description: Certificate and intermediates, which do not change.
        signer: Holds the private half of `description.certificate`'s key.

    Raises:
        ConfigError: The signer has another key, or its key cannot sign certificates.
    """

    def __init__(self, description: Description, signer: Signer) -> None:
        if description.certificate.public_key() != signer.public_key():
            raise ConfigError(
                "the key is not that of the issuing CA's certificate",
                rule="issuer.key-mismatch",
            )
        self._description = description
        self._signer = signer
        self._profile = LeafProfile(description.certificate)
        self._intermediates = tuple(
            certificate.public_bytes(Encoding.DER)
            for certificate in (description.certificate, *description.intermediates)
        )

    def describe(self) -> Description:
        """See `IssuingCA.describe`."""
        return self._description

    def prepare(self, request: LeafRequest) -> Prepared:
        """See `IssuingCA.prepare`: the TBSCertificate is the bridge's own."""
        tbs = self._profile.tbs(
            request.public_key,
            request.names,
            request.serial,
            request.not_before,
            request.not_after,
        )
        return Prepared(
            request=request, tbs=tbs, tbs_sha256=hashlib.sha256(tbs).hexdigest()
        )

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        """See `IssuingCA.issue`."""
        if timeout <= 0:
            raise BackendUnavailableError("no time is left to sign")
        algorithm = self._profile.algorithm
        signature = self._signer.sign(prepared.tbs, algorithm, timeout=timeout)
        leaf = splice(prepared.tbs, algorithm.der, signature)
        return IssuedChain(leaf, self._intermediates)

    def check(self, *, timeout: float) -> None:
        """See `IssuingCA.check`: the signer is asked."""
        if timeout <= 0:
            raise BackendUnavailableError("no time is left to look at the key")
        self._signer.check(timeout=timeout)

    def close(self) -> None:
        """See `IssuingCA.close`."""
        self._signer.close()
