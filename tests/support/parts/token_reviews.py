"""An API server that reviews tokens as the real one does, until it is told otherwise.

For what a real API server cannot be made to do: hang, drip, close, lie.
"""

import json
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jwt.utils import base64url_decode

from tests.support.parts.scripted_http import ScriptedServer, json_answer, server_tls

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
OWN_TOKEN = "own-token"  # noqa: S105 - of a test
Fault = Callable[["ReviewServer", socket.socket], None]
"""What is done after a request was read; the connection is closed after it."""
Streamed = Callable[["ReviewServer", socket.socket, str], None]
"""As a `Fault`, and it is told the target of the request."""


def good_status(token: str, audiences: list[str]) -> dict[str, Any]:
    """Return the status of a review of a good token, by its payload."""
    claims = json.loads(base64url_decode(token.split(".")[1]))
    namespace = claims["kubernetes.io"]["namespace"]
    extra: dict[str, list[str]] = {}
    for kind in ("pod", "node"):
        for key, value in claims["kubernetes.io"].get(kind, {}).items():
            extra[f"authentication.kubernetes.io/{kind}-{key}"] = [value]
    return {
        "authenticated": True,
        "user": {
            "username": claims["sub"],
            "uid": "1",
            "groups": [
                "system:serviceaccounts",
                f"system:serviceaccounts:{namespace}",
                "system:authenticated",
            ],
            "extra": extra,
        },
        "audiences": [one for one in audiences if one in claims["aud"]],
    }


class ReviewServer(ScriptedServer):
    """A context manager.

    Args:
        folder: Gets its certificate.
    """

    def __init__(self, folder: Path) -> None:
        tls, self.ca_file = server_tls(folder)
        super().__init__(ReviewServer._reviews, tls)
        self.token_file = folder / "own-token"
        self.token_file.write_text(OWN_TOKEN)
        self.fault: Fault | None = None
        self.pod_fault: Fault | None = None
        """A fault of requests for pods alone."""
        self.event_fault: Fault | None = None
        """A fault of events, which have no other."""
        self.alter: Callable[[dict[str, Any]], object] = lambda status: status
        self.allowed: Mapping[str, object] = {"allowed": True}
        self.denied: set[str] = set()
        """The rights that the bridge lacks, as `watch pods`."""
        self.accepted = OWN_TOKEN
        self.objects: dict[str, object] = {}
        """By path, what it has."""
        self.streams: dict[str, Streamed] = {}
        """By path, what it says to a watch or a list; then the connection ends."""
        self.hanging = threading.Event()
        """Set when a fault holds a request."""

    @property
    def section(self) -> dict[str, object]:
        """The section `tokens` of a cluster whose API server this is."""
        return {
            "verify": "token_review",
            "server": self.url,
            "ca_file": str(self.ca_file),
            "token_file": str(self.token_file),
        }

    def reviews(self) -> int:
        return sum(REVIEWS.encode() in one for one in self.requests)

    def events(self) -> list[dict[str, Any]]:
        """Return the events that were sent to it, taken or not."""
        return [
            json.loads(body)
            for head, _, body in (one.partition(b"\r\n\r\n") for one in self.requests)
            if _path(head).endswith("/events")
        ]

    @staticmethod
    def _reviews(server: ScriptedServer, sock: socket.socket) -> None:
        assert isinstance(server, ReviewServer)
        while request := server.read(sock):
            head, _, body = request.partition(b"\r\n\r\n")
            fault = server.fault
            if head.startswith(b"GET "):
                fault = fault or server.pod_fault
            if _path(head).endswith("/events"):
                fault = server.event_fault
            if fault is not None:
                fault(server, sock)
                return
            stream = server.streams.get(_path(head))
            if stream is not None and server.accepts(head):
                stream(server, sock, _target(head))
                return
            sock.sendall(server._answer(head, body))

    def accepts(self, head: bytes) -> bool:
        return f"Authorization: Bearer {self.accepted}\r\n".encode() in head + b"\r\n"

    def _answer(self, head: bytes, body: bytes) -> bytes:
        if not self.accepts(head):
            return json_answer(b'{"message": "Unauthorized"}', 401)
        if ACCESS.encode() in head:
            spec = json.loads(body).get("spec")
            is_denied = bool(self.denied) and _right(spec) in self.denied
            said = {"allowed": False} if is_denied else self.allowed
            return _made("SelfSubjectAccessReview", said, spec)
        if _path(head).endswith("/events"):
            return json_answer(body, 201)
        if head.startswith(b"GET "):
            found = self.objects.get(_path(head))
            status = 404 if found is None else 200
            return json_answer(json.dumps(found).encode(), status)
        spec = json.loads(body)["spec"]
        review = self.alter(good_status(spec["token"], spec["audiences"]))
        return _made("TokenReview", review, spec)


def _right(spec: Mapping[str, Any]) -> str:
    kind = "nonResourceAttributes" if "nonResourceAttributes" in spec else ""
    wanted = spec[kind or "resourceAttributes"]
    return f"{wanted['verb']} {wanted['path' if kind else 'resource']}"


def _target(head: bytes) -> str:
    return head.split(b" ")[1].decode()


def _path(head: bytes) -> str:
    return _target(head).partition("?")[0]


def _made(kind: str, status: object, spec: object = None) -> bytes:
    made = {"kind": kind, "spec": spec, "status": status}
    return json_answer(json.dumps(made).encode(), 201)


def holding(start: bytes = b"") -> Fault:
    """Return a fault: the first bytes of an answer, and then nothing."""

    def fault(server: ReviewServer, sock: socket.socket) -> None:
        sock.sendall(start)
        server.hanging.set()
        server.over.wait()

    return fault


def dripping(start: bytes, piece: bytes) -> Fault:
    """Return a fault: a piece each 20 ms, without an end."""

    def fault(server: ReviewServer, sock: socket.socket) -> None:
        sock.sendall(start)
        while not server.over.wait(0.02):
            sock.sendall(piece)

    return fault


def saying(answer: bytes) -> Fault:
    """Return a fault: this answer, and the end of the connection."""
    return lambda _, sock: sock.sendall(answer)


def refusing(status: int, *headers: str) -> Fault:
    """Return a fault: this status."""
    # The answer says that the connection ends: a client may be quicker than its end.
    return saying(json_answer(b"{}", status, ["Connection: close", *headers]))


JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
FAULTS: dict[str, tuple[Fault, str]] = {
    "401": (refusing(401), "review.credential"),
    "403": (refusing(403), "review.rights"),
    "429": (refusing(429), "review.throttled"),
    "429 and when": (
        refusing(429, "Retry-After: 1"),
        "review.throttled",
    ),
    "500": (refusing(500), "review.failed"),
    "hangs": (holding(), "review.timeout"),
    "hangs after the head": (
        holding(JSON_HEAD + b"Content-Length: 9\r\n\r\n"),
        "review.timeout",
    ),
    "drips": (dripping(JSON_HEAD + b"X: ", b"a"), "review.timeout"),
    "closes": (saying(b""), "review.unavailable"),
}
"""What an API server may do to any call, and the rule of the call that is refused."""
_STATUS = json_answer(b'{"kind": "Status"}', headers=["Connection: close"])
OTHER_OBJECT = saying(_STATUS), "review.answer"
