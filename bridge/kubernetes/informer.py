"""Follow a resource of an API server: list it, watch it, and list it again if need be.

What the API server has is published whole, never in part: the initial events of a list
are collected aside until the API server says that they are all. What is published stays
in use while a list is made again.

Source:
    Kubernetes API concepts, "Efficient detection of changes", "Streaming lists" and
    "Watch bookmarks"; KEP-3157; KEP-5504 (resource versions can be compared).
"""

import http.client
import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.errors import ReviewError
from bridge.kubernetes.api import (
    LONGEST_RETRY_SECONDS,
    METADATA,
    METADATA_LIST,
    APIServer,
    Query,
    endless,
    gone,
)
from bridge.kubernetes.objects import ACCOUNTS, KINDS, PODS, ClusterObject, ObjectIndex
from bridge.resilience.budget import Budget
from bridge.system.logs import on_one_line

_WATCH_SECONDS = (300.0, 600.0)
"""How long one watch lasts, by lot: those of many replicas end apart."""
_SPREAD_SECONDS = (0.0, 1.0)
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 15.0
_SPREAD = (0.5, 1.5)
_PAGE = 250
_LARGEST_PAGE = 8 << 20
"""Read as JSON, it may take 30 times as much memory."""
_CHECK_SECONDS = 10.0
_LONGEST_VERSION = 128
_INITIAL_END = "k8s.io/initial-events-end"
_WITHOUT_STREAMS = (http.client.BAD_REQUEST, http.client.UNPROCESSABLE_ENTITY)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What an API server may do to its informer. It may be another's, and mean harm."""

    silence: float = 90.0
    """A watch that says nothing for so many seconds is dead. A quiet resource has a
    bookmark about every minute."""
    objects: int = 150_000
    """How many there may be of a resource: a cluster of Kubernetes is made for as many
    pods. After as many changes, all is listed again."""
    list_seconds: float = 300.0
    """How long a list may take."""


_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of all namespaces."""

    kind: str
    path: str
    accept: str
    """The form of an event's object."""
    accept_list: str
    """The form of a page of a list."""


_JSON = "application/json"
RESOURCES = {
    # The metadata of a pod has neither its account nor its node.
    PODS: Resource(PODS, "/api/v1/pods", _JSON, _JSON),
    ACCOUNTS: Resource(ACCOUNTS, "/api/v1/serviceaccounts", METADATA, METADATA_LIST),
}
"""Those of `KINDS`."""
assert tuple(RESOURCES) == KINDS  # noqa: S101


class Sink:
    """Takes over what a resource of one cluster has, into the index.

    Once it `is_over`, it takes over nothing more, and whoever follows is told.

    Args:
        index: Takes all of it.
        source: What the cluster is called in it.
        kind: One of `KINDS`.
    """

    def __init__(self, index: ObjectIndex, source: str, kind: str) -> None:
        self._index = index
        self._source = source
        self._kind = kind
        self.is_over = False
        """Set once nobody looks there any more."""

    def publish(self, objects: Iterable[ClusterObject]) -> None:
        """Replace everything."""
        self._require_open()
        self._index.publish(self._source, self._kind, objects, time.monotonic())

    def put(self, found: ClusterObject) -> None:
        """Take over a new object, or one that has changed."""
        self._require_open()
        self._index.put(self._source, self._kind, found, time.monotonic())

    def remove(self, gone: ClusterObject) -> None:
        """Forget an object."""
        self._require_open()
        self._index.remove(self._source, self._kind, gone, time.monotonic())

    def confirm(self) -> None:
        """Note that nothing has changed until now."""
        self._require_open()
        self._index.confirm(self._source, self._kind, time.monotonic())

    def trouble(self, text: str) -> None:
        """Note why the resource cannot be followed."""
        if not self.is_over:
            self._index.trouble(self._source, self._kind, text)

    def _require_open(self) -> None:
        if self.is_over:
            raise ReviewError("this watch is over", rule="review.gone")


_LOST = ("review.timeout", "review.unavailable")
"""Rules of a connection that was silent, or was lost."""


class Informer:
    """Follows one resource of one cluster. For one thread: see `BackgroundLoop`.

    Args:
        server: The API server.
        resource: What is followed.
        sink: Takes over what there is.
        bounds: What the API server may do to it.
        lot: Returns a number between two.
    """

    def __init__(
        self,
        server: APIServer,
        resource: Resource,
        sink: Sink,
        *,
        bounds: Bounds = _BOUNDS,
        lot: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._server = server
        self._resource = resource
        self._name = f"watch of {resource.kind}"
        self._sink = sink
        self._bounds = bounds
        self._lot = lot
        self._version = ""
        self._aside: dict[tuple[str, str], ClusterObject] | None = None
        self._until = 0.0
        self._changes = 0
        self._streams_lists = True
        self._failures = 0
        self._pause = 0.0
        self._trouble = ""

    def pause(self) -> float:
        """Return the seconds to wait before the next `follow`."""
        return self._pause

    def follow(self) -> None:
        """List the resource or go on watching it, until the stream ends."""
        try:
            if self._version:
                self._require_not_restored()
            if self._version:
                self._aside = None
                self._stream(resourceVersion=self._version)
            else:
                self._list()
        except ReviewError as error:
            self._failed(error)
        else:
            self._pause = self._lot(*_SPREAD_SECONDS)

    def _list(self) -> None:
        self._changes = 0
        self._until = time.monotonic() + self._bounds.list_seconds
        if self._streams_lists:
            self._aside = {}
            try:
                self._stream(
                    sendInitialEvents="true", resourceVersionMatch="NotOlderThan"
                )
            except ReviewError as error:
                if self._version or error.status not in _WITHOUT_STREAMS:
                    raise
                self._streams_lists = False
            else:
                if not self._version:
                    raise ReviewError(
                        "the API server of this cluster ended a list early",
                        rule="review.failed",
                    )
                return
        self._aside = None
        objects, version = self._pages()
        self._sink.publish(objects)
        self._go_on(version)
        self._stream(resourceVersion=self._version)

    def _pages(self) -> tuple[list[ClusterObject], str]:
        # Without a resource version the list is consistent. With `resourceVersion=0`
        # the API server would ignore the limit.
        objects: list[ClusterObject] = []
        query: dict[str, str | int] = {"limit": _PAGE}
        while True:
            with self._server.stream(
                self._resource.path,
                query,
                accept=self._resource.accept_list,
                silence=self._bounds.silence,
            ) as stream:
                page = json.loads(stream.body(_LARGEST_PAGE))
                metadata = _member(page, "metadata")
                items = page.get("items") or []
                if not isinstance(items, list):
                    raise ValueError("expected a list of objects")  # noqa: TRY004 - of what was read
                for one in items:
                    objects.append(ClusterObject.of(_mapping(one)))
                    self._require_bounded(len(objects))
                version = _version(metadata)
            self._require_bounded(len(objects))
            if not (further := metadata.get("continue")):
                return objects, version
            query["continue"] = str(further)

    def _stream(self, **query: str) -> None:
        whole: Query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": int(self._lot(*_WATCH_SECONDS)),
            **query,
        }
        with self._server.stream(
            self._resource.path,
            whole,
            accept=self._resource.accept,
            silence=self._bounds.silence,
        ) as stream:
            for line in stream.lines():
                event = _mapping(json.loads(line))
                self._take(event.get("type"), _member(event, "object"))

    def _take(self, kind: object, found: Mapping[str, Any]) -> None:
        if kind == "ERROR":
            raise _event_error(found)
        if self._aside is not None:
            self._require_bounded(len(self._aside))
        else:
            self._changes += 1
            if self._changes > self._bounds.objects:
                # Each may be of an object of its own. A list holds them to the bound.
                raise gone(f"there were more than {self._bounds.objects} changes")
        metadata = _member(found, "metadata")
        if kind == "BOOKMARK":
            self._bookmark(metadata)
        elif kind in {"ADDED", "MODIFIED", "DELETED"}:
            self._event(ClusterObject.of(found), metadata, is_gone=kind == "DELETED")
        else:
            raise ValueError(f"expected an event of a watch (found {str(kind)[:40]!r})")

    def _bookmark(self, metadata: Mapping[str, Any]) -> None:
        if self._aside is None:
            self._go_on(_version(metadata))
            self._sink.confirm()
        elif _mapping(metadata.get("annotations") or {}).get(_INITIAL_END) == "true":
            aside, self._aside = self._aside, None
            self._sink.publish(aside.values())
            self._go_on(_version(metadata))

    def _event(
        self, found: ClusterObject, metadata: Mapping[str, Any], *, is_gone: bool
    ) -> None:
        if self._aside is not None:
            # No resource version is taken from these: they are in no order.
            key = found.namespace, found.name
            if is_gone:
                self._aside.pop(key, None)
            else:
                self._aside[key] = found
            return
        version = _version(metadata)
        (self._sink.remove if is_gone else self._sink.put)(found)
        self._go_on(version)

    def _require_bounded(self, count: int) -> None:
        # An API server that is another's may list without an end.
        if count > self._bounds.objects:
            raise endless(
                f"it has more than {self._bounds.objects} {self._resource.kind}"
            )
        if time.monotonic() > self._until:
            raise endless(f"it has no end after {self._bounds.list_seconds:.0f} s")

    def _go_on(self, version: str) -> None:
        if _is_before(version, self._version):
            raise gone("its resource versions went back")
        self._version = version
        self._failures = 0
        if self._trouble:
            _log.info("%s: watched again, after: %s", self._name, self._trouble)
            self._trouble = ""

    def _require_not_restored(self) -> None:
        # A watch from a version that the API server has not reached is silent, and
        # what was taken back with its store would stay in use.
        budget = Budget.of_seconds(_CHECK_SECONDS)
        path, accept = self._resource.path, METADATA_LIST
        page = self._server.get(path, {"limit": 1}, budget, accept=accept)
        metadata = (page or {}).get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else ""
        if not isinstance(version, str) or _is_before(version, self._version):
            _log.warning("%s: listed again: its store was restored", self._name)
            self._version = ""

    def _failed(self, error: ReviewError) -> None:
        self._aside = None
        if error.status == http.client.GONE or error.rule in _LOST:
            # What was missed, nobody knows. An API server that was away may come back
            # with an older store, which has passed the version of the watch by then.
            self._version = ""
        longest = _FIRST_WAIT_SECONDS * 2**self._failures
        self._failures = min(self._failures + 1, 10)
        wait = min(longest, _LONGEST_WAIT_SECONDS) * self._lot(*_SPREAD)
        # Not all of those who were asked to wait come back at one moment.
        self._pause = max(wait, error.retry_after + self._lot(*_SPREAD_SECONDS))
        trouble = f"{self._name}: {error}: {error.detail}"
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("%s; tried again in %.1f s", trouble, self._pause)
        self._sink.trouble(trouble)


def _event_error(status: Mapping[str, Any]) -> ReviewError:
    code = status.get("code")
    said = on_one_line(f"{str(code)[:20]}: {str(status.get('message') or '')[:200]}")
    if code == http.client.GONE:
        return gone(said)
    error = ReviewError(
        "the API server of this cluster broke off a watch",
        rule="review.failed",
        detail=said,
    )
    details = status.get("details")
    seconds = details.get("retryAfterSeconds") if isinstance(details, dict) else None
    if isinstance(seconds, int):
        error.retry_after = float(min(seconds, LONGEST_RETRY_SECONDS))
    return error


def _is_before(version: str, other: str) -> bool:
    # By their lengths first. `int` reads no more than 4,300 digits.
    if not all(one.isascii() and one.isdecimal() for one in (version, other)):
        return False
    return (len(version), version) < (len(other), other)


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004 - of what was read
    return value


def _member(value: object, name: str) -> Mapping[str, Any]:
    return _mapping(_mapping(value).get(name))


def _version(metadata: Mapping[str, Any]) -> str:
    version = metadata.get("resourceVersion")
    if not isinstance(version, str) or not 0 < len(version) <= _LONGEST_VERSION:
        raise ValueError("expected a resource version")
    return version
