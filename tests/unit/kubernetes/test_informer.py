"""A resource is followed whatever the API server does, and published whole."""

import json
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from bridge.kubernetes.api import APIServer
from bridge.kubernetes.credentials import APIAccess, Credentials
from bridge.kubernetes.informer import RESOURCES, Bounds, Informer
from bridge.kubernetes.objects import PODS, ClusterObject
from tests.support.parts.scripted_http import json_answer
from tests.support.parts.token_reviews import ReviewServer

PATH = "/api/v1/pods"
END = {"k8s.io/initial-events-end": "true"}
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LIST = {
    "watch": "true",
    "allowWatchBookmarks": "true",
    "timeoutSeconds": "300",
    "sendInitialEvents": "true",
    "resourceVersionMatch": "NotOlderThan",
}


def pod(name: str, version: int, **spec: str) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "shop",
        "uid": f"uid-{name}",
        "resourceVersion": str(version),
    }
    return {"metadata": metadata, "spec": spec}


def event(kind: str, found: object) -> bytes:
    return json.dumps({"type": kind, "object": found}).encode() + b"\n"


def added(name: str, version: int = 1) -> bytes:
    return event("ADDED", pod(name, version))


def deleted(name: str, version: int) -> bytes:
    return event("DELETED", pod(name, version))


def bookmark(version: int, **annotations: str) -> bytes:
    metadata = {"resourceVersion": str(version), "annotations": annotations}
    return event("BOOKMARK", {"metadata": metadata})


def error(code: int, **details: object) -> bytes:
    status = {"kind": "Status", "code": code, "message": "a test", "details": details}
    return event("ERROR", status)


def ending(*lines: bytes) -> bytes:
    """Return a stream that ends in order."""
    return HEAD + b"".join(b"%x\r\n%s\r\n" % (len(x), x) for x in (*lines, b""))


def broken(*lines: bytes) -> bytes:
    """Return a stream whose connection is lost."""
    return ending(*lines).removesuffix(b"0\r\n\r\n")


LISTED = (added("b", 9), added("a", 3), bookmark(10, **END))


class Said:
    """A server that says one thing after the other to those who list or watch."""

    def __init__(self, server: ReviewServer) -> None:
        self._server = server
        self.answers: list[bytes | float] = []
        """What is said, in order; a number holds the answer that is before it."""
        server.streams[PATH] = self._say

    def _say(self, server: ReviewServer, sock: socket.socket, _: str) -> None:
        answer = self.answers.pop(0)
        assert isinstance(answer, bytes)
        sock.sendall(answer)
        if self.answers and isinstance(self.answers[0], float):
            self.answers.pop(0)
            server.over.wait()

    def queries(self) -> list[dict[str, str]]:
        """Return what was asked for."""
        heads = [one.split(b" ")[1].decode() for one in self._server.requests]
        return [dict(parse_qsl(one.partition("?")[2])) for one in heads]


class Sink:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def publish(self, objects: Iterable[ClusterObject]) -> None:
        self.told.append(sorted(one.name for one in objects))

    def put(self, found: ClusterObject) -> None:
        self.told.append(f"put {found.name}")

    def remove(self, gone: ClusterObject) -> None:
        self.told.append(f"remove {gone.name}")

    def confirm(self) -> None:
        self.told.append("confirm")

    def trouble(self, text: str) -> None:
        self.told.append(f"trouble: {text}")

    def troubles(self) -> list[str]:
        return [one for one in self.told if str(one).startswith("trouble")]  # type: ignore[misc]


class Followed:
    def __init__(
        self,
        server: ReviewServer,
        api: APIServer,
        list_seconds: float = 60.0,
        silence: float = 0.3,
        lot: Callable[[float, float], float] = min,
    ) -> None:
        self.said = Said(server)
        self.sink = Sink()
        self.informer = Informer(
            api,
            RESOURCES[PODS],
            self.sink,  # type: ignore[arg-type]
            bounds=Bounds(silence=silence, objects=4, list_seconds=list_seconds),
            lot=lot,
        )

    def follow(self, *answers: bytes | float, times: int = 1) -> list[object]:
        """Follow; return what the sink is told meanwhile."""
        before = len(self.sink.told)
        self.said.answers += answers
        for _ in range(times):
            self.informer.follow()
        assert self.said.answers == []
        return self.sink.told[before:]


@pytest.fixture
def api(server: ReviewServer) -> Iterator[APIServer]:
    access = APIAccess(server=server.url, ca=server.ca_file, token=server.token_file)
    with closing(APIServer(Credentials(access), seconds=5, calls=1)) as made:
        yield made
        server.over.set()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    with ReviewServer(tmp_path) as running, running.ending_after(60):
        yield running


@pytest.fixture
def followed(server: ReviewServer, api: APIServer) -> Followed:
    return Followed(server, api)


@pytest.fixture
def hasty(server: ReviewServer, api: APIServer) -> Followed:
    """Return one whose lists have no time."""
    return Followed(server, api, list_seconds=0.0)


def page(*names: str, version: int | str, further: str = "") -> bytes:
    items = [pod(name, 1) for name in names]
    metadata = {"resourceVersion": str(version), "continue": further}
    return json_answer(json.dumps({"metadata": metadata, "items": items}).encode())


def test_the_objects_are_published_at_once_and_then_followed(
    followed: Followed,
) -> None:
    told = followed.follow(
        ending(
            *LISTED,
            event("MODIFIED", pod("a", 11)),
            added("c", 12),
            deleted("b", 13),
            bookmark(14),
        )
    )
    assert told == [["a", "b"], "put a", "put c", "remove b", "confirm"]
    # No version and no limit: the list is as new as what is stored.
    assert followed.said.queries() == [LIST]


def test_what_changes_while_it_is_listed_counts(followed: Followed) -> None:
    told = followed.follow(ending(added("a"), added("b"), deleted("a", 2), *LISTED[2:]))
    assert told == [["b"]]


def test_a_watch_goes_on_where_it_ended(followed: Followed) -> None:
    followed.follow(ending(*LISTED, added("c", 12)))
    told = followed.follow(page(version=13), ending(deleted("c", 14)))
    assert told == ["remove c"]
    resumed = {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "300",
        "resourceVersion": "12",
    }
    assert followed.said.queries() == [LIST, {"limit": "1"}, resumed]
    assert followed.informer.pause() == 0.0


def test_after_a_lost_connection_all_is_listed_again(followed: Followed) -> None:
    # The API server may have come back with an older store that passed the version.
    followed.follow(broken(*LISTED))
    assert "watch of pods" in followed.sink.troubles()[0]
    assert followed.informer.pause() == 0.5
    assert followed.follow(ending(added("c"), bookmark(11, **END))) == [["c"]]


def test_a_list_that_ends_early_is_not_published(followed: Followed) -> None:
    for early in (
        ending(added("a")),
        broken(added("a")),
        ending(added("a"), bookmark(5)),
    ):
        (told,) = followed.follow(early)
        assert str(told).startswith("trouble: watch of pods: ")
    assert followed.follow(ending(*LISTED)) == [["a", "b"]]
    assert followed.said.queries() == [LIST] * 4


def test_annotations_that_are_none_end_no_list(followed: Followed) -> None:
    metadata = {"resourceVersion": "11", "annotations": [1]}
    (told,) = followed.follow(
        ending(added("a"), event("BOOKMARK", {"metadata": metadata}))
    )
    assert "expected a JSON object" in str(told)


LIST_AGAIN: dict[str, tuple[bytes | float, ...]] = {
    "410 in the watch": (page(version=10), ending(error(410))),
    "410 in place of the watch": (page(version=10), json_answer(b"{}", 410)),
    "a silent watch": (page(version=10), HEAD, 0.0),
    "an older event": (page(version=10), ending(added("c", 7))),
    "an older bookmark": (page(version=10), ending(bookmark(7))),
}


@pytest.mark.parametrize("name", LIST_AGAIN)
def test_what_a_watch_may_have_missed_is_listed_again(
    followed: Followed, name: str
) -> None:
    followed.follow(ending(*LISTED))
    assert followed.follow(*LIST_AGAIN[name])[-1:] == followed.sink.troubles()
    assert followed.follow(ending(added("z"), bookmark(11, **END))) == [["z"]]


def test_a_store_that_was_restored_is_listed_again(followed: Followed) -> None:
    # A watch from a version that is not reached yet would be silent.
    followed.follow(ending(*LISTED))
    told = followed.follow(page(version=8), ending(added("z"), bookmark(8, **END)))
    assert told == [["z"]]


@pytest.mark.parametrize("version", ["11", "9" * 5000, "\u0661"])
def test_a_store_that_has_gone_on_is_not_listed_again(
    followed: Followed, version: str
) -> None:
    followed.follow(ending(*LISTED))
    told = followed.follow(page(version=version), ending(added("z", 11)))
    assert told == ["put z"]


def test_410_amid_a_list_begins_it_anew(followed: Followed) -> None:
    (told,) = followed.follow(ending(added("a"), error(410)))
    assert "has forgotten" in str(told)
    assert followed.follow(ending(*LISTED)) == [["a", "b"]]


@pytest.mark.parametrize("status", [400, 422])
def test_an_api_server_without_streaming_lists_is_asked_for_pages(
    followed: Followed, status: int
) -> None:
    told = followed.follow(
        json_answer(b"{}", status),
        page("a", "b", version=20, further="next"),
        page("c", version=20),
        ending(added("d", 21)),
    )
    assert told == [["a", "b", "c"], "put d"]
    # Never `resourceVersion=0`, which would ignore the limit.
    assert followed.said.queries()[1:3] == [
        {"limit": "250"},
        {"limit": "250", "continue": "next"},
    ]
    assert followed.said.queries()[3]["resourceVersion"] == "20"


def test_what_is_read_at_once_is_small(server: ReviewServer, api: APIServer) -> None:
    followed = Followed(server, api, silence=30.0)
    page_of = json_answer(b" " * ((8 << 20) + 1))
    (told,) = followed.follow(json_answer(b"{}", 422), page_of)
    assert "the answer has more than 8388608 bytes" in str(told)
    line = ending(added("a" * (4 << 20)))
    followed.follow(page("a", version=20), ending())
    (told,) = followed.follow(page(version=20), line)
    assert "a line has more than 4194304 bytes" in str(told)


def test_410_amid_pages_begins_them_anew(followed: Followed) -> None:
    (told,) = followed.follow(
        json_answer(b"{}", 422),
        page("a", version=20, further="next"),
        json_answer(b"{}", 410),
    )
    assert "has forgotten" in str(told)
    assert followed.follow(page("b", version=30), ending()) == [["b"]]


MANY = tuple(added(f"p{number}") for number in range(5))
ENDLESS: dict[str, tuple[bytes, ...]] = {
    "initial events": (ending(*MANY, *LISTED[2:]),),
    "a page": (json_answer(b"{}", 422), page(*"abcde", version=20)),
    "pages": (
        json_answer(b"{}", 422),
        page("a", "b", "c", version=20, further="next"),
        page("d", "e", version=20, further="next"),
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_list_of_too_many_objects_is_broken_off(
    followed: Followed, name: str
) -> None:
    (told,) = followed.follow(*ENDLESS[name])
    assert "lists more than the bridge follows: it has more than 4 pods" in str(told)
    assert followed.informer.pause() == 0.5


UNENDED: dict[str, tuple[bytes, ...]] = {
    "initial events": (ending(*[added("a")] * 99, *LISTED[2:]),),
    "bookmarks": (ending(*[bookmark(5)] * 99, *LISTED[2:]),),
    "empty pages": (json_answer(b"{}", 422), page(version=20, further="next")),
}


@pytest.mark.parametrize("name", UNENDED)
def test_a_list_that_does_not_end_is_broken_off(hasty: Followed, name: str) -> None:
    (told,) = hasty.follow(*UNENDED[name])
    assert "lists more than the bridge follows: it has no end after 0 s" in str(told)


@pytest.mark.parametrize("change", [added, deleted, bookmark])
def test_a_watch_with_too_many_changes_is_listed_again(
    followed: Followed, change: Any
) -> None:
    changes = [
        bookmark(20 + number) if change is bookmark else change(f"p{number}", 20)
        for number in range(5)
    ]
    told = followed.follow(ending(*LISTED, *changes))
    assert len(told) == 1 + 4 + 1  # the fifth change is not taken over
    assert "there were more than 4 changes" in str(told[-1])
    assert followed.follow(ending(added("z"), bookmark(30, **END))) == [["z"]]
    # The count begins anew.
    assert followed.follow(page(version=30), ending(bookmark(31))) == ["confirm"]


def test_who_is_asked_to_wait_waits(followed: Followed) -> None:
    followed.follow(json_answer(b"{}", 429, ["Retry-After: 7"]))
    assert followed.informer.pause() == 7.0
    followed.follow(ending(error(500, retryAfterSeconds=9)))
    assert followed.informer.pause() == 9.0


def test_watches_end_and_come_back_apart(server: ReviewServer, api: APIServer) -> None:
    followed = Followed(server, api, lot=max)
    followed.follow(ending(*LISTED))
    assert followed.said.queries() == [LIST | {"timeoutSeconds": "600"}]
    assert followed.informer.pause() == 1.0
    followed.follow(page(version=10), ending(error(410)))
    assert followed.informer.pause() == 1.5
    followed.follow(json_answer(b"{}", 429, ["Retry-After: 7"]))
    assert followed.informer.pause() == 8.0
    followed.follow(broken(*LISTED))
    assert followed.informer.pause() == 1.5


def test_what_an_error_says_is_one_line_of_the_log(followed: Followed) -> None:
    said = error(500).replace(b"a test", rb"a\nforged line")
    assert all(str(told).isprintable() for told in followed.follow(ending(said)))
    assert "forged line" in str(followed.sink.told)


def test_the_wait_grows_and_has_a_bound(followed: Followed) -> None:
    waits = []
    for _ in range(7):
        followed.follow(json_answer(b"{}", 500))
        waits.append(followed.informer.pause())
    assert waits == [0.5, 1.0, 2.0, 4.0, 7.5, 7.5, 7.5]
    followed.follow(broken(*LISTED))
    assert followed.informer.pause() == 0.5


ODD: dict[str, bytes] = {
    "no JSON": b"oh\n",
    "a list": b"[]\n",
    "no object": b'{"type": "ADDED"}\n',
    "no metadata": event("ADDED", {}),
    "no name": event("ADDED", {"metadata": {"uid": "1", "resourceVersion": "11"}}),
    "no version": event("ADDED", {"metadata": {"uid": "1", "name": "a"}}),
    "a number for a name": event("ADDED", {"metadata": {"uid": "1", "name": 1}}),
    "a bad time": event(
        "ADDED",
        {"metadata": {"uid": "1", "name": "a", "deletionTimestamp": "soon"}},
    ),
    "a name that is too long": event("ADDED", pod("a" * 254, 11)),
    "a UID that is too long": event(
        "ADDED", {"metadata": {"name": "a", "uid": "1" * 65, "resourceVersion": "11"}}
    ),
    "too deep": event("ADDED", 0).replace(b"0", b"[" * 100_000),
    "an unknown event": event("RENAMED", pod("a", 11)),
    "a bookmark without version": event("BOOKMARK", {"metadata": {}}),
    "a version that is too long": event(
        "BOOKMARK", {"metadata": {"resourceVersion": "1" * 129}}
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_an_event_that_cannot_be_read_changes_nothing(
    followed: Followed, name: str
) -> None:
    (_, told) = followed.follow(ending(*LISTED, ODD[name]))
    assert str(told).startswith("trouble: watch of pods: ")
