"""The sources of a cluster's keys: a file, a URL, or OpenID Connect discovery.

A source only reads. The keyring decides when to read, and how long keys stay valid if
the source fails.

Source:
    OpenID Connect Discovery 1.0, section 4.
"""

import http.client
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from bridge.errors import ConfigError, ReviewError
from bridge.identity import jose
from bridge.system.files import Stamp, failure_text, read_public, stamp_of
from bridge.system.logs import on_one_line

_LARGEST: Final = 1024 * 1024
_CHUNK = 64 * 1024
_ANSWER_SECONDS = 5.0
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/=-]+")
"""RFC 6750, section 2.1."""
_REFUSED = (401, 403)
_WITHOUT_TOKEN = "it asks for a token: see tokens.token_file"  # noqa: S105 - a text
_WITH_TOKEN = (
    "it refuses the token of token_file: is its audience that of the API server, and "  # noqa: S105 - a text
    "has its account the cluster role system:service-account-issuer-discovery?"
)


class KeySource(Protocol):
    """A source of a JWK Set."""

    is_local: bool
    """Whether `read` is fast, so that a request may wait for it."""

    def changed(self) -> bool:
        """Return whether the document may have changed since it was read. Fast."""

    def origin(self) -> str:
        """Return what differs once another server is asked. Fast.

        Keys that were read before from another one are used no more.
        """

    def read(self) -> bytes:
        """Return the document.

        Raises:
            ConfigError: The source is wrong: unreadable, too large or malformed.
            ReviewError: The URL does not answer now.
        """


class KeyFile:
    """A key file, for example in a mounted ConfigMap. See KeySource.

    One thread at a time may use it.
    """

    is_local = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: Stamp | None = None

    def changed(self) -> bool:
        """See KeySource.changed: compares the stamps of the file."""
        return stamp_of((self._path,)) != self._seen

    def origin(self) -> str:
        """See KeySource.origin: the configuration names the file."""
        return ""

    def read(self) -> bytes:
        """See KeySource.read."""
        # The stamp is taken before the read, so a write in between is a change again.
        stamp = stamp_of((self._path,))
        try:
            with self._path.open("rb") as file:
                data = file.read(_LARGEST + 1)
        except OSError as error:
            reason = failure_text(self._path, error)
            raise ConfigError(f"cannot be read: {reason}") from error
        if len(data) > _LARGEST:
            raise ConfigError(f"expected at most {_LARGEST} bytes")
        self._seen = stamp
        return data


class URLSource:
    """A JWK Set behind a URL. See KeySource.

    Args:
        url: The URL of the key set; empty for discovery.
        issuers: For discovery, `<issuer>/.well-known/openid-configuration` of the first
            has the URL. The document may name any of them: while the issuer is being
            changed, it names the other one.
        ca_file: Trust anchors in PEM; the system's if None. Read again when it changes.
        token_file: Has a bearer token, read for each request; None: none is sent.
        seconds: The time limit of one answer.

    Raises:
        ConfigError: `ca_file` cannot be used.
    """

    is_local = False

    def __init__(
        self,
        url: str,
        issuers: Sequence[str],
        *,
        ca_file: Path | None = None,
        token_file: Path | None = None,
        seconds: float = _ANSWER_SECONDS,
    ) -> None:
        self._url = url
        self._issuers = issuers
        self._ca_file = ca_file
        self._token_file = token_file
        self._seconds = seconds
        self._seen = self._stamp()
        self._opener = _opener(_tls(ca_file))

    def changed(self) -> bool:
        """See KeySource.changed: always, because only a fetch can tell."""
        return True

    def origin(self) -> str:
        """See KeySource.origin: the configuration names the URL."""
        return ""

    def read(self) -> bytes:
        """See KeySource.read."""
        if (stamp := self._stamp()) != self._seen:
            self._opener = _opener(_tls(self._ca_file))
            self._seen = stamp
        return self._get(self._url or self._discovered())

    def _stamp(self) -> Stamp:
        return stamp_of(() if self._ca_file is None else (self._ca_file,))

    def _discovered(self) -> str:
        place = f"{self._issuers[0].rstrip('/')}/.well-known/openid-configuration"
        try:
            document = jose.json_object(self._get(place))
        except ValueError as error:
            raise ConfigError(f"{place}: expected JSON: {error}") from None
        if document.get("issuer") not in self._issuers:
            raise ConfigError(
                f"{place}: expected the issuer {' or '.join(map(repr, self._issuers))} "
                f"(found {str(document.get('issuer'))[:200]!r})"
            )
        url = document.get("jwks_uri")
        if not isinstance(url, str) or not url.startswith("https://"):
            raise ConfigError(f"{place}: expected a jwks_uri that starts with https://")
        return url

    def _get(self, url: str) -> bytes:
        ends = time.monotonic() + self._seconds
        request = urllib.request.Request(url, headers=self._headers())  # noqa: S310 - the opener has no scheme but https:
        try:
            with self._opener.open(request, timeout=self._seconds) as answer:
                return _body(answer, ends)
        except urllib.error.HTTPError as error:
            with error:
                raise _silent(url, self._status(error.code)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise _silent(url, str(reason) or type(error).__name__) from error

    def _status(self, code: int) -> str:
        said = f"HTTP status {code}"
        if code not in _REFUSED:
            return said
        return f"{said}: {_WITH_TOKEN if self._token_file else _WITHOUT_TOKEN}"

    def _headers(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        token = read_public(self._token_file).strip()
        if not _TOKEN.fullmatch(token):
            raise ConfigError(
                f"{self._token_file}: expected one token and nothing else"
            )
        return {"Authorization": f"Bearer {token.decode('ascii')}"}


def _body(answer: http.client.HTTPResponse, ends: float) -> bytes:
    # The timeout of a socket limits one read, and not an answer that comes slowly.
    chunks: list[bytes] = []
    size = 0
    while chunk := answer.read1(_CHUNK):
        size += len(chunk)
        if size > _LARGEST:
            raise ValueError(f"the answer has more than {_LARGEST} bytes")
        if time.monotonic() > ends:
            raise TimeoutError("the answer takes too long")
        chunks.append(chunk)
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(chunks)


def _silent(url: str, reason: str) -> ReviewError:
    return ReviewError(
        "the keys of this cluster cannot be fetched",
        rule="cluster.keys",
        detail=on_one_line(f"{url}: {reason[:200]}"),
    )


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        reason = failure_text(Path(error.filename or ca_file or ""), error)
        raise ConfigError(f"{ca_file}: cannot be read: {reason}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{ca_file}: not PEM certificates: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class _SameHost(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: object,
        code: int,
        msg: str,
        headers: object,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = (urllib.parse.urlsplit(url) for url in (req.full_url, newurl))
        if (new.scheme, new.netloc) != (old.scheme, old.netloc):
            return None  # urllib then raises the redirect as an HTTPError
        return urllib.request.Request(newurl, headers=req.headers)  # noqa: S310 - the scheme is the old one


def _opener(context: ssl.SSLContext) -> urllib.request.OpenerDirector:
    # Not build_opener: it also opens file:, ftp: and plain http:.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _SameHost(),
    ):
        opener.add_handler(handler)
    return opener
