"""What the bridge shows to an API server, and what it trusts: all that is replaced.

A token's file is read again every minute, and when the API server refuses the token. A
client certificate and the trust anchors are read again when their files change, and so
is a kubeconfig. What cannot be read while a file is being replaced leaves what was read
before in use. A private key is given to OpenSSL in memory, never in a file.
"""

import logging
import os
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bridge.errors import ConfigError
from bridge.kubernetes.exec_plugin import Command, ExecCredential, ExecPlugin
from bridge.system.files import read_public, read_secret, stamp_of
from bridge.system.http_client import HTTPPeer

_TOKEN_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
"""RFC 6750, section 2.1."""
_IN_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class APIAccess:
    """How one API server is reached. A path is a file; other values are content."""

    server: str
    """`https://HOST`, or with a port."""
    server_name: str = ""
    """The name in the certificate of the API server; by default the host."""
    ca: Path | bytes | None
    """Trust anchors in PEM; None for those of the system."""
    token: Path | str = field(default="", repr=False)
    certificate: Path | bytes | None = None
    key: Path | bytes | None = field(default=None, repr=False)
    command: Command | None = None
    """A program that makes the token or the client certificate."""

    @property
    def place(self) -> object:
        """What differs once it is another API server."""
        return self.server, self.server_name, self.ca

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that it names."""
        parts = (self.ca, self.token, self.certificate, self.key)
        return tuple(one for one in parts if isinstance(one, Path))


class AccessSource(Protocol):
    """Where the access to an API server is described: a kubeconfig, a secret."""

    keeps: bool
    """Whether what was read before stays in use when the source cannot be read."""

    def stamp(self) -> Hashable:
        """Return what differs once the source has changed. Does not wait."""

    def access(self) -> APIAccess:
        """Read the source. Does not wait.

        Raises:
            ConfigError: It is not there, or cannot be used.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What one request is sent with. Another object once anything has changed."""

    peer: HTTPPeer
    token: str = field(repr=False)

    @property
    def place(self) -> str:
        """Host and port, as the head of a request has them."""
        host = f"[{self.peer.host}]" if ":" in self.peer.host else self.peer.host
        return f"{host}:{self.peer.port}"


def in_cluster() -> APIAccess:
    """Return the access to the API server of this pod's cluster.

    Raises:
        ConfigError: This process runs in no pod.
    """
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    if not host:
        raise ConfigError(
            "expected server, ca_file and token_file, or kubeconfig: this is no pod, "
            "since KUBERNETES_SERVICE_HOST is not set"
        )
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return APIAccess(server=url, ca=_IN_POD / "ca.crt", token=_IN_POD / "token")


class Credentials:
    """Reads what is shown to one API server, again and again. Safe between threads.

    Args:
        source: Where the access is described, or the access itself.
    """

    def __init__(self, source: AccessSource | APIAccess) -> None:
        self._source = _Constant(source) if isinstance(source, APIAccess) else source
        self._lock = threading.Lock()
        # What follows is read and written under the lock.
        self._access: APIAccess | None = None
        self._source_stamp: Hashable = None
        self._plugin: ExecPlugin | None = None
        self._made: ExecCredential | None = None
        self._shown: Shown | None = None
        self._stamp: Hashable = None
        self._source_at = self._looked_at = 0.0
        self._read_at = 0.0
        self._trouble = ""

    def shown(self, until: float, refused: Shown | None = None) -> Shown:
        """Return what the next request is sent with.

        Args:
            until: Of `time.monotonic`: a program that makes credentials is awaited no
                longer.
            refused: What the API server refused: the token is read again.

        Raises:
            ConfigError: It cannot be used, and could not before.
            TimeoutError: A program that makes credentials has not ended.
        """
        with self._lock:
            access, plugin = self._looked(time.monotonic())
            was_refused = refused is not None and refused is self._shown
            old = self._made if was_refused else None
        made = None if plugin is None else plugin.credential(until, old)
        with self._lock:
            if access is self._access:
                self._shown = self._current(access, made, is_refused=was_refused)
                return self._shown
        return self.shown(until)  # the source changed while the program ran

    def _looked(self, now: float) -> tuple[APIAccess, ExecPlugin | None]:
        # The access, read again if its source has changed.
        # What keeps nothing is looked at each time: it takes its credentials with it.
        is_looked = self._source.keeps and now - self._source_at < _LOOK_SECONDS
        if self._access is not None and is_looked:
            return self._access, self._plugin
        self._source_at, stamp = now, self._source.stamp()
        if self._access is None or stamp != self._source_stamp:
            try:
                access = self._source.access()
            except ConfigError as error:
                if self._access is None or not self._source.keeps:
                    self._access = self._shown = None
                    raise
                self._tell(error)
            else:
                if access != self._access:
                    self._access, self._made, self._stamp = access, None, None
                    self._shown = None
                    command = access.command
                    self._plugin = None if command is None else ExecPlugin(command)
                self._source_stamp = stamp
        assert self._access is not None  # noqa: S101 - for the type checker
        return self._access, self._plugin

    def _current(
        self, access: APIAccess, made: ExecCredential | None, *, is_refused: bool
    ) -> Shown:
        now, shown = time.monotonic(), self._shown
        is_other = shown is None or made is not self._made
        looks = is_other or now - self._looked_at >= _LOOK_SECONDS
        is_due = is_other or is_refused or now - self._read_at >= _TOKEN_SECONDS
        if shown is not None and not looks and not is_due:
            return shown
        context, token = (shown.peer.tls, shown.token) if shown else (None, "")
        if looks:
            self._looked_at, stamp = now, stamp_of(access.files)
            if is_other or stamp != self._stamp:
                with self._kept(shown):
                    context = _context(access, made)
                    self._stamp = stamp
        if is_due:
            with self._kept(shown):
                token = _token(access, made)
                self._read_at = now
        self._made = made
        if shown and shown.peer.tls is context and shown.token == token:
            return shown
        assert context is not None  # noqa: S101 - else `_kept` has raised
        parts = urllib.parse.urlsplit(access.server)
        host = parts.hostname or ""
        name = access.server_name or host
        return Shown(HTTPPeer(host, parts.port or 443, context, name), token)

    @contextmanager
    def _kept(self, shown: Shown | None) -> Iterator[None]:
        # What was read before stays in use where something cannot be read.
        try:
            yield
        except ConfigError as error:
            if shown is None:
                raise
            self._tell(error)

    def _tell(self, error: ConfigError) -> None:
        # Once for each trouble: it is looked at again and again.
        if (trouble := str(error)) != self._trouble:
            self._trouble = trouble
            _log.warning("what was read before stays in use: %s", trouble)


class _Constant:
    keeps = True

    def __init__(self, access: APIAccess) -> None:
        self._access = access

    def stamp(self) -> Hashable:
        return None

    def access(self) -> APIAccess:
        return self._access


def _token(access: APIAccess, made: ExecCredential | None) -> str:
    token, place = access.token, "token"
    if made is not None:
        token, place = made.token, "the token of the exec plugin"
    if isinstance(token, Path):
        place = str(token)
        token = read_public(token).decode("ascii", "replace").strip()
    elif not token:
        return ""
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{place}: expected one token and nothing else")
    return token


def _context(access: APIAccess, made: ExecCredential | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if access.ca is not None:
        place = access.ca if isinstance(access.ca, Path) else "certificate authority"
        context = _trusting(_content(access.ca), str(place))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # An intermediate may be the anchor, as it may for every program in Go.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    certificate, key = access.certificate, access.key
    if made is not None and made.key:
        certificate, key = made.certificate, made.key
    if certificate is not None and key is not None:
        secret = (
            read_secret(key, allow_group_read=True) if isinstance(key, Path) else key
        )
        try:
            _load(context, _content(certificate) + b"\n" + secret)
        except (ssl.SSLError, OSError, ValueError) as error:
            place, beside = (
                str(one) if isinstance(one, Path) else "what was given"
                for one in (certificate, key)
            )
            raise ConfigError(
                f"{place}: expected a certificate in PEM with its key in {beside}: "
                f"{error}"
            ) from error
    return context


def _content(given: Path | bytes) -> bytes:
    return read_public(given) if isinstance(given, Path) else given


def _trusting(anchors: bytes, place: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cadata=anchors.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{place}: expected certificates in PEM: {error}") from error


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    # OpenSSL reads a file. This one has no name in any folder, and its memory is gone
    # when it is closed.
    file = os.memfd_create("meshca-key", os.MFD_CLOEXEC)
    try:
        os.write(file, pem)
        context.load_cert_chain(f"/proc/self/fd/{file}", password=_no_password)
    finally:
        os.close(file)


def _no_password() -> str:
    # Without it, OpenSSL would ask at the terminal.
    raise ValueError("expected a private key without a passphrase")
