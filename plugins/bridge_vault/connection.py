"""The requests to one address of Vault, and what an error of one leaves open."""

import re
import ssl
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from urllib.parse import urlsplit

from bridge.sdk import HTTPAnswer, HTTPClient, HTTPPeer

_PORTS = {"http": 80, "https": 443}
_LINE = re.compile(r"[ -~]*")
_PATH = re.compile(r"/[!-~]*")


class VaultError(Exception):
    """A call did not succeed.

    Attributes:
        status: Of Vault's answer; 0 where there is none, or not one of Vault's API.
        http_status: Of whatever answered; 0 where nothing did.
        errors: What Vault says, perhaps nothing.
        retry_after: Seconds, an hour at most; 0 where the server does not say.
        request_id: By which Vault's log has the request; "" where it is unknown.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int,
        http_status: int | None = None,
        errors: Sequence[str] = (),
        retry_after: float = 0.0,
        request_id: str = "",
    ) -> None:
        super().__init__(text)
        self.status = status
        self.http_status = status if http_status is None else http_status
        self.errors = tuple(errors)
        self.retry_after = retry_after
        self.request_id = request_id


class NoAnswerError(VaultError):
    """No answer came.

    Args:
        text: What happened, for the operator.
        is_sent: The request may have reached the server whole.
        is_late: The time was spent.
    """

    def __init__(self, text: str, *, is_sent: bool, is_late: bool) -> None:
        super().__init__(text, status=0)
        self.is_sent = is_sent
        self.is_late = is_late


class Connections:
    """The connections to one address of a server. Safe between threads.

    Args:
        address: `https://host:port`, perhaps with a path before the API's.
        tls: How the server is verified; None for plain HTTP.
    """

    def __init__(self, address: str, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(address)
        self.address = address
        """As it was given."""
        self._prefix = parts.path.rstrip("/")
        self._authority = parts.netloc
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        self._peer = HTTPPeer(host, port, tls, host)
        self._client = HTTPClient()

    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
        connected_by: float,
    ) -> HTTPAnswer:
        """Send a request and read the whole answer.

        Args:
            method: In upper case.
            path: Begins with `/v1/`.
            headers: Of this request.
            body: JSON, or None.
            deadline: A value of `time.monotonic()`.
            connected_by: The same, for a new connection.

        Raises:
            NoAnswerError: There was no answer in time.
        """
        request = self._written(method, path, headers, body)
        if self._client.is_closed:
            text = f"{self.address}: the connections are closed"
            raise NoAnswerError(text, is_sent=False, is_late=False)
        try:
            sent = self._client.sent(request, self._peer, deadline, connected_by)
        except (OSError, ValueError) as error:
            is_late = isinstance(error, TimeoutError)
            text = f"{self.address}: {_text(error)}"
            raise NoAnswerError(text, is_sent=False, is_late=is_late) from error
        try:
            return self._client.answer(sent, deadline)
        except TimeoutError as error:
            text = "no answer in time"
            raise NoAnswerError(text, is_sent=True, is_late=True) from error
        except OSError as error:
            text = f"the connection was cut: {_text(error)}"
            raise NoAnswerError(text, is_sent=True, is_late=False) from error
        except HTTPException as error:
            # Its text has the server's bytes.
            text = f"the answer is not whole, or no HTTP ({type(error).__name__})"
            raise NoAnswerError(text, is_sent=True, is_late=False) from error
        except ValueError as error:
            raise NoAnswerError(str(error), is_sent=True, is_late=False) from error

    def close(self) -> None:
        """Close the idle connections; those in use are closed after their answer."""
        self._client.close()

    def _written(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> bytes:
        # In one piece: head and body in two cost a packet and a system call more.
        path = self._prefix + path
        lines = [
            f"Host: {self._authority}",
            "Accept-Encoding: identity",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if not _PATH.fullmatch(path) or not all(map(_LINE.fullmatch, lines)):
            # It may be the token, so it is not told.
            text = "the path or a header has characters that HTTP does not permit"
            raise NoAnswerError(text, is_sent=False, is_late=False)
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""])
        return head.encode("ascii") + (body or b"")


def _text(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"certificate verify failed: {error.verify_message}: compare "
            "ca_file and the host name of the address with it"
        )
    text = getattr(error, "strerror", None) or str(error)
    return text or type(error).__name__
