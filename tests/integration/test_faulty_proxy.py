"""The proxies do what they are told between a client and a real server."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from tests.support.parts import faulty_proxy
from tests.support.parts.delaying_proxy import DelayingProxy
from tests.support.parts.faulty_proxy import Answer, FaultyProxy, Rule, on
from tests.support.parts.vault import API, AnswerError, Server

_LOOKUP = "auth/token/lookup-self"


@pytest.fixture
def proxy(openbao: Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(openbao.url) as made:
        yield made


@pytest.fixture
def api(openbao: Server, proxy: FaultyProxy) -> API:
    return API(proxy.url, openbao.root_token)


def _has_written(openbao: Server, name: str) -> bool:
    listed = openbao.api.list("sys/policies/acl")
    return name in listed["keys"]


def _write(api: API, name: str) -> None:
    api.post(f"sys/policies/acl/{name}", policy='{"path":{}}')


def test_without_a_fault_it_hands_on_and_records(
    api: API, openbao: Server, proxy: FaultyProxy
) -> None:
    _write(api, "plain")
    assert _has_written(openbao, "plain")
    (request,) = proxy.asked("^POST /v1/sys/policies")
    assert request.json == {"policy": '{"path":{}}'}
    assert request.headers["x-vault-token"] == openbao.root_token


@pytest.mark.parametrize(
    ("fault", "is_written"),
    [
        pytest.param(faulty_proxy.cut_before, False, id="cut before"),
        pytest.param(faulty_proxy.cut_after, True, id="cut after"),
    ],
)
def test_a_cut_is_before_or_after_the_server_has_done_it(
    api: API,
    openbao: Server,
    proxy: FaultyProxy,
    fault: faulty_proxy.Fault,
    *,
    is_written: bool,
) -> None:
    name = f"cut-{is_written}".lower()
    with (
        proxy.fault(fault, on("POST /v1/sys/policies"), times=1) as rule,
        pytest.raises(ConnectionError, match="closed connection"),
    ):
        _write(api, name)
    rule.await_met()
    assert _has_written(openbao, name) is is_written


def test_a_fault_meets_only_some_paths_and_so_many_times(
    api: API, proxy: FaultyProxy
) -> None:
    too_many = Answer.of(429, "slow down", Retry_After="1")
    with proxy.fault(faulty_proxy.answered(too_many), on("lookup-self"), times=2):
        api.get("sys/mounts")
        for _ in range(2):
            with pytest.raises(AnswerError, match=r"^429: slow down"):
                api.get(_LOOKUP)
        assert api.get(_LOOKUP)["policies"] == ["root"]


def test_an_answer_is_altered_after_the_server_gave_it(
    api: API, proxy: FaultyProxy
) -> None:
    with proxy.fault(faulty_proxy.altered_data(policies=["other"])):
        assert api.get(_LOOKUP)["policies"] == ["other"]
    failed = faulty_proxy.altered(lambda answer: replace(answer, status=500))
    with proxy.fault(failed), pytest.raises(AnswerError, match=r"^500"):
        api.get(_LOOKUP)
    assert api.get(_LOOKUP)["policies"] == ["root"]


def test_a_silent_server_answers_nothing_until_it_is_cleared(
    api: API, proxy: FaultyProxy
) -> None:
    rule = proxy.put(faulty_proxy.silent())
    seen: list[Exception] = []

    def ask() -> None:
        try:
            api.get(_LOOKUP)
        except ConnectionError as error:
            seen.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    rule.await_met()
    assert seen == []
    proxy.clear()
    waiting.join(10)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("fault", "at_least"),
    [
        pytest.param(faulty_proxy.delayed(0.2), 0.2, id="delay"),
        pytest.param(faulty_proxy.trickled(0.001), 0.3, id="trickle"),
    ],
)
def test_an_answer_comes_late_and_whole(
    api: API, proxy: FaultyProxy, fault: faulty_proxy.Fault, at_least: float
) -> None:
    with proxy.fault(fault):
        start = time.monotonic()
        assert api.get(_LOOKUP)["policies"] == ["root"]
    assert time.monotonic() - start >= at_least


def test_it_refuses_connections_and_takes_them_again(
    api: API, proxy: FaultyProxy
) -> None:
    with proxy.refused(), pytest.raises(ConnectionRefusedError):
        api.get(_LOOKUP)
    assert api.get(_LOOKUP)["policies"] == ["root"]


@pytest.mark.parametrize("reset", [True, False])
def test_it_drops_a_connection_that_is_idle(proxy: FaultyProxy, *, reset: bool) -> None:
    parts = urlsplit(proxy.url)
    assert parts.hostname is not None
    with closing(http.client.HTTPConnection(parts.hostname, parts.port)) as kept:
        for _ in range(2):
            kept.request("GET", "/v1/sys/health")
            assert json.loads(kept.getresponse().read())["sealed"] is False
        assert proxy.connected == 1
        proxy.drop(reset=reset)
        if reset:
            with pytest.raises(ConnectionResetError):
                kept.sock.recv(1)
        else:
            assert kept.sock.recv(1) == b""


def test_a_rule_that_nothing_meets_is_told() -> None:
    rule = Rule(faulty_proxy.cut_before, on(""), None)
    with pytest.raises(TimeoutError, match="no request met the fault"):
        rule.await_met(0.01)


def test_the_delaying_proxy_delays_each_answer(openbao: Server) -> None:
    with DelayingProxy(openbao.url, seconds=0.05) as proxy:
        start = time.monotonic()
        found = API(proxy.url, openbao.root_token).get(_LOOKUP)
        assert time.monotonic() - start >= 0.05
    assert found["policies"] == ["root"]
