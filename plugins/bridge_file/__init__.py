"""The backend `file`: an issuing CA whose key is in a file. For development.

Anybody who can read the file or this process's memory can copy the key unseen.
"""

import threading
from collections.abc import Callable, Mapping

from bridge.sdk import (
    CAPrivateKey,
    CAPublicKey,
    FileWatch,
    SignatureAlgorithm,
    SigningCA,
    signature_of,
)
from bridge.spi import (
    BackendUnavailableError,
    ConfigError,
    Description,
    IssuedChain,
    LeafRequest,
    PluginContext,
    Prepared,
)
from bridge_file.material import load
from bridge_file.options import parse_options

__all__ = ["FileCA"]


class FileCA:
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
        self._paths = files.paths
        self._digest = material.digest
        self._signer = _FileSigner(material.key)
        self._watch: FileWatch | None = None
        self._is_closed = False
        self._watch_lock = threading.Lock()
        self._ca = SigningCA(
            Description(
                certificate=material.certificate,
                intermediates=material.intermediates,
                assurance="file",
                labels={"path": str(files.key)},
            ),
            self._signer,
        )
        for warning in material.warnings:
            context.warn(warning)
        context.warn(
            f"issuing CA {context.name!r}: its key is in the file {files.key}; that is "
            "for development: anyone who copies the file is this CA"
        )

    def describe(self) -> Description:
        """See `IssuingCA.describe`."""
        return self._ca.describe()

    def prepare(self, request: LeafRequest) -> Prepared:
        """See `IssuingCA.prepare`: the TBSCertificate is the bridge's own."""
        return self._ca.prepare(request)

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        """See `IssuingCA.issue`. A signature takes at most some milliseconds."""
        return self._ca.issue(prepared, timeout=timeout)

    def check(self, *, timeout: float) -> None:
        """See `IssuingCA.check`: the key was read when the CA was built."""
        self._ca.check(timeout=timeout)

    def watch(self, changed: Callable[[], None]) -> None:
        """See `Watcher.watch`; `changed` may close this object.

        Raises:
            RuntimeError: The object is watched already, or closed.
        """
        with self._watch_lock:
            if self._watch is not None or self._is_closed:
                raise RuntimeError("the files are watched already, or closed")
            self._watch = FileWatch(self._paths, self._digest, changed)
            self._watch.start()

    def close(self) -> None:
        """See `IssuingCA.close`."""
        with self._watch_lock:
            watch, self._is_closed = self._watch, True
        if watch is not None:
            watch.close()
        self._ca.close()


class _FileSigner:
    # A `Signer`. OpenSSL's keys may sign from several threads at once.
    def __init__(self, key: CAPrivateKey) -> None:
        self._public_key = key.public_key()
        self._key: CAPrivateKey | None = key

    def public_key(self) -> CAPublicKey:
        return self._public_key

    def check(self, *, timeout: float) -> None:
        self.require_open()

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        return signature_of(self.require_open(), algorithm, tbs)

    def require_open(self) -> CAPrivateKey:
        key = self._key
        if key is None:
            raise BackendUnavailableError("the issuing CA is closed")
        return key

    def close(self) -> None:
        self._key = None
