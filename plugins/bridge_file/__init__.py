"""The backend `file`: an issuing CA whose key is in a file. For development.

Anybody who can read the file or this process's memory can copy the key unseen.
"""

from collections.abc import Mapping

from bridge.sdk import (
    CAPrivateKey,
    CAPublicKey,
    SignatureAlgorithm,
    WatchedFiles,
    WatchedSigningCA,
    signature_of,
)
from bridge.spi import (
    BackendUnavailableError,
    ConfigError,
    Description,
    PluginContext,
)
from bridge_file.material import load
from bridge_file.options import parse_options

__all__ = ["FileCA"]


class FileCA(WatchedSigningCA):
    """An issuing CA made of one state of its files. It reports changes of the files.

    Args:
        options: See `bridge_file.options.Options`.
        context: `chain` names the certificates when the option `key` is used.

    Raises:
        ConfigError: An option or a file cannot be used; the message says what was
            expected.
    """

    api_version = 2

    def __init__(
        self, options: Mapping[str, object], context: PluginContext, /
    ) -> None:
        files = parse_options(options, context)
        try:
            material = load(files)
        except ConfigError as error:
            raise files.placed(error) from error
        super().__init__(
            Description(
                certificate=material.certificate,
                intermediates=material.others,
                assurance="file",
                labels={"path": str(files.key)},
            ),
            FileSigner(material.key),
            WatchedFiles(files.paths, material.digest),
        )
        context.warn(
            f"issuing CA {context.name!r}: its key is in the file {files.key}; that is "
            "for development: anyone who copies the file is this CA"
        )


class FileSigner:
    """A `Signer`. OpenSSL's keys may sign from several threads at once."""

    def __init__(self, key: CAPrivateKey) -> None:
        self._public_key = key.public_key()
        self._key: CAPrivateKey | None = key

    def public_key(self) -> CAPublicKey:
        """See `Signer.public_key`."""
        return self._public_key

    def check(self, *, timeout: float) -> None:
        """See `Signer.check`."""
        self._require_open()

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        """See `Signer.sign`."""
        return signature_of(self._require_open(), algorithm, tbs)

    def _require_open(self) -> CAPrivateKey:
        key = self._key
        if key is None:
            raise BackendUnavailableError("the issuing CA is closed")
        return key

    def close(self) -> None:
        """See `Signer.close`."""
        self._key = None
