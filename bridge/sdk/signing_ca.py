"""An issuing CA that is a key which signs bytes: the bridge builds each certificate."""

import hashlib
from collections.abc import Callable

from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import BackendUnavailableError, ConfigError
from bridge.sdk.chain_file import WatchedFiles
from bridge.spi import Description, IssuedChain, LeafRequest, Prepared, Signer
from bridge.x509.der import splice
from bridge.x509.leaf_profile import LeafProfile


class SigningCA:
    """An `IssuingCA` whose key is a `Signer`, which no call reaches after `close`.

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
        self._is_closed = False
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
        self._require_use(timeout)
        algorithm = self._profile.algorithm
        signature = self._signer.sign(prepared.tbs, algorithm, timeout=timeout)
        leaf = splice(prepared.tbs, algorithm.der, signature)
        return IssuedChain(leaf, self._intermediates)

    def check(self, *, timeout: float) -> None:
        """See `IssuingCA.check`: the signer is asked."""
        self._require_use(timeout)
        self._signer.check(timeout=timeout)

    def close(self) -> None:
        """See `IssuingCA.close`."""
        self._is_closed = True
        self._signer.close()

    def _require_use(self, timeout: float) -> None:
        if self._is_closed:
            raise BackendUnavailableError("the issuing CA is closed")
        if timeout <= 0:
            raise BackendUnavailableError("no time is left to ask the issuing CA")


class WatchedSigningCA(SigningCA):
    """A `SigningCA` and `Watcher` that is made of files.

    Args:
        description: See `SigningCA`.
        signer: See `SigningCA`.
        files: What its certificate and its options were read from.
    """

    def __init__(
        self, description: Description, signer: Signer, files: WatchedFiles
    ) -> None:
        super().__init__(description, signer)
        self._files = files

    def watch(self, changed: Callable[[], None]) -> None:
        """See `Watcher.watch`; `changed` may close this object.

        Raises:
            RuntimeError: The files are watched already, or closed.
        """
        self._files.watch(changed)

    def close(self) -> None:
        """See `IssuingCA.close`."""
        self._files.close()
        super().close()
