import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import bridge.server.grpc_health
from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge.metrics.instruments import Metrics
from bridge.server import healthcalls
from bridge.server.grpc_health import Health
from bridge.server.istio import SERVICE
from tests.support.clients import http2
from tests.support.harness.in_process_server import (
    WAIT_SECONDS,
    Held,
    ScriptedIssuance,
    Served,
    linkerd_server,
)
from tests.support.harness.workers import await_true

SERVING, NOT_SERVING = 1, 2
NO_WINDOW = struct.pack(">HI", 4, 0)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as running:
        yield running


def check(served: Served, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(served.channel())
    request = HealthCheckRequest(service=service)
    status: int = stub.Check(request, timeout=WAIT_SECONDS).status
    return status


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_follows_readiness(served: Served, service: str) -> None:
    assert check(served, service) == SERVING
    served.problems["ledger"] = "the disk is full"
    served.server._health.look()
    assert check(served, service) == NOT_SERVING
    served.problems.clear()
    served.server._health.look()
    assert check(served, service) == SERVING


def test_a_watcher_is_told_by_itself(served: Served) -> None:
    watching = health_pb2_grpc.HealthStub(served.channel()).Watch(
        HealthCheckRequest(service=SERVICE), timeout=WAIT_SECONDS
    )
    assert next(watching).status == SERVING
    served.problems["ledger"] = "the disk is full"
    assert next(watching).status == NOT_SERVING  # the thread noticed
    watching.cancel()


def test_an_unknown_service_is_not_found(served: Served) -> None:
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        check(served, "other")


def test_health_is_told_while_every_thread_is_at_work(served: Served) -> None:
    held = Held()
    served.issuance.does = held
    stub = served.stub()
    futures = [stub.future(IstioCertificateRequest(csr="pem")) for _ in range(5)]
    for _ in range(2):
        assert held.began.acquire(timeout=WAIT_SECONDS)
    assert check(served, "") == SERVING
    held.release.set()
    for future in futures:
        future.result(WAIT_SECONDS)


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_calls_without_a_message_hold_up_nobody_and_are_given_up(
    served: Served, method: str
) -> None:
    over = threading.Event()

    def silent() -> Iterator[bytes]:
        over.wait(2 * WAIT_SECONDS)
        yield from ()

    silence = served.channel().stream_stream(f"/grpc.health.v1.Health/{method}")
    calls = [silence(silent()) for _ in range(3)]
    pool, reaper = served.listener.side.pool, served.listener.side.reaper
    reaper.seconds = 9 * WAIT_SECONDS
    await_true(lambda: pool.count == len(calls))
    assert check(served, "") == SERVING
    reaper.seconds = 0.1
    for call in calls:
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            next(call)
    over.set()
    assert pool.wait_until_idle(WAIT_SECONDS)


@pytest.mark.parametrize("method", ["Check", "Watch"])
@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "the call has no message"),
        ([b"\xff"], "the message is not a HealthCheckRequest"),
        ([bytes(65 * 1024)], "a request has at most 65536 bytes"),
        ([b"\x0a\x81\x02" + b"a" * 257], "a service has at most 256 characters"),
    ],
    ids=["none", "no protobuf", "too long", "too long a name"],
)
def test_a_message_that_is_none_is_refused(
    served: Served, method: str, messages: list[bytes], says: str
) -> None:
    call = served.channel().stream_stream(f"/grpc.health.v1.Health/{method}")
    with pytest.raises(grpc.RpcError, match=f"(?s)INVALID_ARGUMENT.*{says}"):
        next(call(iter(messages), timeout=WAIT_SECONDS))


def test_watchers_hold_no_thread(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel())
    watching = [
        stub.Watch(HealthCheckRequest(), timeout=WAIT_SECONDS) for _ in range(5)
    ]
    assert [next(one).status for one in watching] == [SERVING] * 5
    assert check(served, "") == SERVING
    for one in watching:
        one.cancel()


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_call_is_refused_at_once_where_too_many_are_under_way(
    served: Served, method: str
) -> None:
    # Without a message each would hold memory for as long as it is waited for.
    over = threading.Event()

    def silent() -> Iterator[bytes]:
        over.wait(2 * WAIT_SECONDS)
        yield from ()

    pool, reaper = served.listener.side.pool, served.listener.side.reaper
    reaper.seconds = 9 * WAIT_SECONDS
    pool.in_flight = 2
    silence = served.channel().stream_stream(f"/grpc.health.v1.Health/{method}")
    calls = [silence(silent()) for _ in range(2)]
    await_true(lambda: pool.count == len(calls))
    with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED") as refusal:
        next(silence(iter([b""]), timeout=WAIT_SECONDS))
    assert refusal.value.details() == "overload.in-flight: too many calls wait"
    over.set()
    for call in calls:
        call.cancel()
    assert pool.wait_until_idle(WAIT_SECONDS)
    assert check(served, "") == SERVING


@pytest.mark.parametrize(
    "method",
    [
        "health.v1.Health/Check",
        "health.v1.Health/Watch",
        "reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_who_has_too_long_headers_does_not_wait(served: Served, method: str) -> None:
    call = served.channel().stream_stream(f"/grpc.{method}")
    more = (("x", "v" * 140_000),)
    with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT") as refusal:
        next(call(iter([b""]), metadata=more, timeout=WAIT_SECONDS))
    assert refusal.value.details().startswith("request.headers: ")


def test_no_more_than_so_many_watch_one_server(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each holds memory for as long as it likes, and nobody knows who it is.
    monkeypatch.setattr(healthcalls, "_MOST_WATCHERS", 2)
    stub = health_pb2_grpc.HealthStub(served.channel())

    def watching() -> Any:
        return stub.Watch(HealthCheckRequest(), timeout=WAIT_SECONDS)

    first, second = watching(), watching()
    assert [next(first).status, next(second).status] == [SERVING] * 2
    with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED") as refusal:
        next(watching())
    assert refusal.value.details() == "overload.watchers: too many watch already"
    first.cancel()
    await_true(lambda: len(served.server._health._statuses._watchers) == 1)
    third = watching()
    assert next(third).status == SERVING
    for one in (second, third):
        one.cancel()


def watch(peer: socket.socket, stream: int) -> None:
    peer.sendall(http2.begun(stream, path="/grpc.health.v1.Health/Watch"))
    message = http2.framed(b"")
    peer.sendall(http2.frame(http2.DATA, http2.END_STREAM, stream, message))


def test_watchers_that_take_nothing_hold_up_nobody_and_are_given_up(
    tmp_path: Path,
) -> None:
    server = linkerd_server(tmp_path, ScriptedIssuance(), Metrics())
    server.start()
    (listener,) = server._listeners
    reaper, watchers = listener.side.reaper, server._health._statuses._watchers
    reaper.seconds = 9 * WAIT_SECONDS
    ending = threading.Thread(target=server.drain, args=(0,), daemon=True)
    host, port = server.linkerd_address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port))) as peer,
        grpc.insecure_channel(server.linkerd_address) as channel,
    ):
        try:
            # It allows its peer no bytes on a stream, and so gets no answer.
            settings = http2.frame(http2.SETTINGS, payload=NO_WINDOW)
            peer.sendall(http2.PREFACE + settings)
            for stream in (1, 3):
                watch(peer, stream)
            await_true(lambda: len(watchers) == 2 and reaper._watched)
            stub = health_pb2_grpc.HealthStub(channel)
            request = HealthCheckRequest()
            assert stub.Check(request, timeout=WAIT_SECONDS).status == SERVING
            reaper.seconds = 0.1
            watching = stub.Watch(request, timeout=WAIT_SECONDS)
            assert next(watching).status == SERVING
            await_true(lambda: len(watchers) == 1)
            reaper.seconds = 9 * WAIT_SECONDS
            watch(peer, 5)
            await_true(lambda: reaper._watched)
        finally:
            ending.start()
            ending.join(WAIT_SECONDS)
        assert server.wait(0)


def test_reflection_lists_the_services_and_holds_up_nothing(served: Served) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel())
    asked = reflection_pb2.ServerReflectionRequest(list_services="*")
    over = threading.Event()

    def kept_open() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield asked
        over.wait(2 * WAIT_SECONDS)

    answers = [stub.ServerReflectionInfo(kept_open())]
    names = {item.name for item in next(answers[0]).list_services_response.service}
    answers += [stub.ServerReflectionInfo(kept_open()) for _ in range(2)]
    assert SERVICE in names
    assert "grpc.health.v1.Health" in names
    served.stub()(IstioCertificateRequest(csr="pem"), timeout=WAIT_SECONDS)
    assert check(served, "") == SERVING
    over.set()
    for answer in answers:
        answer.cancel()


def test_no_more_than_so_many_wait_for_reflection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They may have to for ever, with all that they came with.
    monkeypatch.setattr(bridge.server.grpc_health, "_MOST_WAITING", 1)
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel())
    asked = reflection_pb2.ServerReflectionRequest(list_services="*")
    over = threading.Event()

    def kept_open() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield asked
        over.wait(2 * WAIT_SECONDS)

    running = stub.ServerReflectionInfo(kept_open())
    next(running)
    pool = served.listener._reflection
    waiting = stub.ServerReflectionInfo(kept_open())
    await_true(lambda: pool.waiting == 1)
    with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED") as refusal:
        next(stub.ServerReflectionInfo(iter([asked]), timeout=WAIT_SECONDS))
    assert refusal.value.details() == "overload.in-flight: too many calls wait"
    running.cancel()
    assert next(waiting).list_services_response.service
    over.set()
    waiting.cancel()


def test_each_change_of_readiness_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems = {"issuing CAs": "a has not signed yet"}
    with caplog.at_level("INFO", "bridge.server.grpc_health"):
        health = Health(lambda: problems)
        health.look()
        for state in (
            {},
            {"ledger": "the disk is full: 1"},
            {"ledger": "the disk is full: 2"},
            {"ledger": "the disk is full", "issuing CAs": "a is stopped"},
            {},
            {},
        ):
            problems.clear()
            problems.update(state)
            health.look()
    assert [(one.levelname, one.message) for one in caplog.records] == [
        ("INFO", "not ready yet: issuing CAs: a has not signed yet"),
        ("INFO", "ready"),
        ("WARNING", "not ready: ledger: the disk is full: 1"),
        (
            "WARNING",
            "not ready: ledger: the disk is full; issuing CAs: a is stopped",
        ),
        ("INFO", "ready again"),
    ]
