"""What a scripted API server has of pods, accounts and nodes: to list and to watch."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

from bridge.kubernetes.informer import RESOURCES
from tests.support.parts.scripted_http import json_answer
from tests.support.parts.token_reviews import Fault, ReviewServer
from tests.support.parts.tokens import TokenIssuer

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ISTIO = "istio-system"
_POLL_SECONDS = 0.1


class WatchedObjects:
    """The objects of a `ReviewServer`, and its keys.

    Args:
        server: Answers with them.
        issuer: Whose key it shows.
    """

    def __init__(self, server: ReviewServer, issuer: TokenIssuer) -> None:
        self._server = server
        self._changed = threading.Condition()
        self._events: dict[str, list[tuple[str, dict[str, Any]]]] = {
            one.path: [] for one in RESOURCES.values()
        }
        self._version = 10
        self.fault: Fault | None = None
        """What is done in place of each list and watch."""
        server.objects["/openid/v1/jwks"] = issuer.jwks()
        for path in self._events:
            server.streams[path] = self._stream

    def put(self, kind: str, namespace: str, name: str, uid: str, **spec: str) -> None:
        """Make an object."""
        metadata = {"namespace": namespace, "name": name, "uid": uid}
        self._tell("ADDED", kind, {"metadata": metadata, "spec": spec})

    def put_pod(self, namespace: str, name: str, uid: str, account: str) -> None:
        """Make a pod on the node that tokens name."""
        spec = {"serviceAccountName": account, "nodeName": "node-1"}
        self.put("pods", namespace, name, uid, **spec)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object."""
        metadata = {"namespace": namespace, "name": name, "uid": "gone"}
        self._tell("DELETED", kind, {"metadata": metadata})

    def _tell(self, what: str, kind: str, found: dict[str, Any]) -> None:
        path, metadata = RESOURCES[kind].path, found["metadata"]
        place = f"/api/v1/namespaces/{metadata['namespace']}/{kind}/{metadata['name']}"
        with self._changed:
            self._version += 1
            metadata["resourceVersion"] = str(self._version)
            self._server.objects[place] = found | {"kind": "Pod"}
            if what == "DELETED":
                del self._server.objects[place]
            self._events[path].append((what, found))
            self._changed.notify_all()

    def _stream(self, server: ReviewServer, sock: socket.socket, target: str) -> None:
        if self.fault is not None:
            self.fault(server, sock)
            return
        if "watch=true" not in target:  # whether the store was restored
            version = {"resourceVersion": str(self._version)}
            sock.sendall(json_answer(json.dumps({"metadata": version}).encode()))
            return
        sock.sendall(HEAD)
        path, is_list = target.partition("?")[0], "sendInitialEvents" in target
        for event in self._told(path, server, is_list=is_list):
            sock.sendall(chunk(event))

    def _told(
        self, path: str, server: ReviewServer, *, is_list: bool
    ) -> Iterator[bytes]:
        seen = 0
        while not (server.over.is_set() or self.fault):
            with self._changed:
                events, version = [*self._events[path]], self._version
                if len(events) == seen and not is_list:
                    self._changed.wait(_POLL_SECONDS)
            for what, found in events[seen:]:
                yield event(what, found)
            seen = len(events)
            if is_list:
                is_list = False
                yield end_of_list(version)


def event(what: str, found: object) -> bytes:
    """Return a line of a watch."""
    return json.dumps({"type": what, "object": found}).encode() + b"\n"


def end_of_list(version: int) -> bytes:
    """Return the bookmark that ends the initial events."""
    done = {"k8s.io/initial-events-end": "true"}
    metadata = {"resourceVersion": str(version), "annotations": done}
    return event("BOOKMARK", {"metadata": metadata})


def chunk(data: bytes) -> bytes:
    """Return a chunk of an answer."""
    return b"%x\r\n%s\r\n" % (len(data), data)
