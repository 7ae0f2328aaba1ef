"""What the bridge shows to an API server, and what it trusts: files that are replaced.

A token's file is read again every minute, and when the API server refuses the token. A
client certificate and the trust anchors are read again when their files change. What
cannot be read while a file is being replaced leaves what was read before in use.
"""

import logging
import os
import re
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import ConfigError
from bridge.system.files import Stamp, failure_text, read_public, read_secret, stamp_of

_TOKEN_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/=-]+")
"""RFC 6750, section 2.1."""
_IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialFiles:
    """The files of one cluster's credentials. A token or a client certificate."""

    ca_file: Path
    token_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @property
    def of_tls(self) -> tuple[Path, ...]:
        """Those that a TLS context is made of."""
        files = (self.ca_file, self.certificate_file, self.key_file)
        return tuple(path for path in files if path is not None)


def in_cluster() -> tuple[str, CredentialFiles]:
    """Return the URL of the API server of this pod's cluster, and the pod's files.

    Raises:
        ConfigError: This process runs in no pod.
    """
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    if not host:
        raise ConfigError(
            "expected server, ca_file and token_file: this is no pod, since "
            "KUBERNETES_SERVICE_HOST is not set"
        )
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return url, CredentialFiles(
        ca_file=_IN_POD / "ca.crt", token_file=_IN_POD / "token"
    )


class Credentials:
    """Reads the files, and reads them again. Safe between threads.

    Args:
        files: Where they are.
    """

    def __init__(self, files: CredentialFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._stamp: Stamp = ()
        self._looked_at = 0.0
        self._token = ""
        self._read_at = 0.0
        self._trouble = ""

    def context(self) -> ssl.SSLContext:
        """Return the TLS context; another object once a file has changed.

        Raises:
            ConfigError: A file cannot be used, and none could before.
        """
        with self._lock:
            now = time.monotonic()
            if self._context is not None and now - self._looked_at < _LOOK_SECONDS:
                return self._context
            self._looked_at = now
            stamp = stamp_of(self._files.of_tls)
            if self._context is not None and stamp == self._stamp:
                return self._context
            try:
                self._context = _context(self._files)
                self._stamp = stamp
            except ConfigError as error:
                if self._context is None:
                    raise
                self._tell(error)
            return self._context

    def token(self, refused: str = "") -> str:
        """Return the token, without white space around it; empty if there is no file.

        Args:
            refused: A token that the API server refused: the file is read again.

        Raises:
            ConfigError: The file cannot be used, and could not before.
        """
        path = self._files.token_file
        if path is None:
            return ""
        with self._lock:
            now = time.monotonic()
            is_old = not self._token or now - self._read_at >= _TOKEN_SECONDS
            if is_old or refused == self._token:
                try:
                    self._token = _token(path)
                    self._read_at = now
                except ConfigError as error:
                    if not self._token:
                        raise
                    self._tell(error)
            return self._token

    def _tell(self, error: ConfigError) -> None:
        # Once for each trouble: it is looked at again and again.
        if (trouble := str(error)) != self._trouble:
            self._trouble = trouble
            _log.warning("what was read before stays in use: %s", trouble)


def _token(path: Path) -> str:
    token = read_public(path).strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{path}: expected one token and nothing else")
    return token.decode("ascii")


def _context(files: CredentialFiles) -> ssl.SSLContext:
    anchors = read_public(files.ca_file)
    try:
        context = ssl.create_default_context(cadata=anchors.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{files.ca_file}: expected certificates in PEM: {error}"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # An intermediate may be the anchor, as it may for every program in Go.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if files.certificate_file is not None and files.key_file is not None:
        # The mode is checked; OpenSSL reads the file itself.
        read_secret(files.key_file, allow_group_read=True)
        try:
            context.load_cert_chain(files.certificate_file, files.key_file)
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = (
                failure_text(files.certificate_file, error)
                if isinstance(error, OSError) and not isinstance(error, ssl.SSLError)
                else str(error)
            )
            raise ConfigError(
                f"{files.certificate_file}: expected a certificate in PEM with its key "
                f"in {files.key_file}: {reason}"
            ) from error
    return context
