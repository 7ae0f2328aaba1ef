"""Events are thinned by account, kept while nobody takes them, and hold up nobody."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge.kubernetes import events as module
from bridge.kubernetes.api import APIServer
from bridge.kubernetes.credentials import APIAccess, Credentials
from bridge.kubernetes.events import AccountEvents, Result
from tests.support.parts.scripted_http import json_answer
from tests.support.parts.token_reviews import ReviewServer, holding, saying

NOW = datetime(2026, 11, 29, 18, 7, 30, tzinfo=UTC)
APART = 300.0


class Ground:
    def __init__(self, server: ReviewServer) -> None:
        self.server = server
        self.time = 1000.0
        self.counts: Counter[Result] = Counter()
        access = APIAccess(
            server=server.url, ca=server.ca_file, token=server.token_file
        )
        self.events = AccountEvents(
            APIServer(Credentials(access), seconds=2.0, calls=1),
            self.count,
            apart_seconds=APART,
            monotonic=lambda: self.time,
        )

    def count(self, result: Result, number: int) -> None:
        self.counts[result] += number

    def note(
        self, account: str = "web", number: int = 1, namespace: str = "shop"
    ) -> None:
        at = NOW + timedelta(seconds=number)
        self.events.note(namespace, account, f"certificate {number}", at)

    def sent(self) -> list[tuple[str, int, str]]:
        """Send what is due; return account, count and message of each event of it."""
        before = len(self.server.events())
        self.events.send()
        return [
            (one["involvedObject"]["name"], one["count"], one["message"])
            for one in self.server.events()[before:]
        ]


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with ReviewServer(tmp_path) as server, server.ending_after(60):
        made = Ground(server)
        with closing(made.events):
            yield made


def test_an_event_is_as_linkerds_own_ca_writes_it(ground: Ground) -> None:
    ground.note()
    ground.events.send()
    (event,) = ground.server.events()
    assert b"POST /api/v1/namespaces/shop/events " in ground.server.requests[0]
    assert event == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "shop", "generateName": "web."},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "namespace": "shop",
            "name": "web",
        },
        "type": "Normal",
        "reason": "IssuedLeafCertificate",
        "message": "certificate 1",
        "source": {"component": "linkerd-identity"},
        "reportingComponent": "linkerd-identity",
        "firstTimestamp": "2026-11-29T18:07:31Z",
        "lastTimestamp": "2026-11-29T18:07:31Z",
        "count": 1,
    }
    assert ground.counts == {"sent": 1}


def test_what_happens_to_one_account_is_one_event_each_few_minutes(
    ground: Ground,
) -> None:
    ground.note(number=1)
    assert ground.sent() == [("web", 1, "certificate 1")]
    for number in (2, 3):
        ground.note(number=number)
    ground.note("api", 4)
    ground.time += APART - 1
    assert ground.sent() == [("api", 1, "certificate 4")]
    ground.time += 1
    assert ground.sent() == [("web", 2, "certificate 3")]
    event = ground.server.events()[-1]
    assert event["firstTimestamp"] == "2026-11-29T18:07:32Z"
    assert event["lastTimestamp"] == "2026-11-29T18:07:33Z"
    assert ground.sent() == []


def test_the_same_name_in_another_namespace_is_another_account(ground: Ground) -> None:
    ground.note()
    ground.note(namespace="pay")
    assert len(ground.sent()) == 2


def test_a_few_are_sent_at_a_time(ground: Ground) -> None:
    for number in range(50):
        ground.note(f"a{number}")
    assert [len(ground.sent()) for _ in range(4)] == [20, 20, 10, 0]


LATER: dict[str, Any] = {
    "401": saying(json_answer(b"{}", 401)),
    "429": saying(json_answer(b"{}", 429, ["Retry-After: 7"])),
    "500": saying(json_answer(b"{}", 500)),
    "closes": saying(b""),
    "hangs": holding(),
}


@pytest.mark.parametrize("name", LATER)
def test_an_event_that_is_not_taken_now_is_sent_later(
    ground: Ground, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    ground.note()
    ground.note("api")
    ground.server.event_fault = LATER[name]
    for _ in range(2):  # one request each: the other account is not tried as well
        assert len({account for account, _, _ in ground.sent()}) == 1
    ground.note(number=2)
    assert ground.counts == {"failed": 2}
    assert caplog.text.count("events cannot be written") == 1
    ground.server.event_fault = None
    assert sorted(ground.sent()) == [
        ("api", 1, "certificate 1"),
        ("web", 2, "certificate 2"),
    ]
    first = {one["firstTimestamp"] for one in ground.server.events()[-2:]}
    assert first == {"2026-11-29T18:07:31Z"}
    assert ground.counts["dropped"] == 0


def test_what_happens_while_a_request_fails_is_counted_with_it(ground: Ground) -> None:
    def fault(_: ReviewServer, __: object) -> None:
        ground.note(number=2)

    ground.note(number=1)
    ground.server.event_fault = fault
    ground.sent()
    ground.server.event_fault = None
    assert ground.sent() == [("web", 2, "certificate 2")]
    assert ground.server.events()[-1]["firstTimestamp"] == "2026-11-29T18:07:31Z"


@pytest.mark.parametrize("status", [403, 404, 422])
def test_an_event_that_is_refused_is_given_up_and_holds_up_no_other(
    ground: Ground, status: int
) -> None:
    ground.note()
    ground.note()
    ground.note("api")
    ground.server.event_fault = saying(json_answer(b"{}", status))
    assert [account for account, _, _ in ground.sent()] == ["web"]
    assert ground.counts == {"failed": 1, "dropped": 2}
    ground.server.event_fault = None
    assert ground.sent() == [("api", 1, "certificate 1")]


def test_the_pause_grows_while_nobody_takes_them_and_no_further_than_a_minute(
    ground: Ground,
) -> None:
    ground.server.event_fault = saying(json_answer(b"{}", 403))
    pauses = []
    for number in range(8):
        ground.note(f"a{number}")
        ground.sent()
        pauses.append(ground.events._pause)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    ground.server.event_fault = None
    ground.note()
    ground.sent()
    assert ground.events._pause == 1


def test_the_wait_that_an_api_server_asks_for_is_kept(ground: Ground) -> None:
    ground.server.event_fault = LATER["429"]
    ground.note()
    ground.sent()
    assert ground.events._pause == 7


def test_the_accounts_that_wait_are_bounded_and_the_others_counted(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_OBJECTS", 2)
    for account in ("a", "b", "c", "c", "a"):
        ground.note(account)
    assert ground.counts == {"dropped": 2}
    assert ground.sent() == [("a", 2, "certificate 1"), ("b", 1, "certificate 1")]


def test_the_thread_sends_by_itself_and_ends(tmp_path: Path) -> None:
    with ReviewServer(tmp_path) as server, server.ending_after(60):
        made = Ground(server)
        server.event_fault = holding()
        made.events.start()
        made.note()
        assert server.hanging.wait(20)
        made.events.close()
