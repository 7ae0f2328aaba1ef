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

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge.errors import ConfigError
from bridge.server import grpc_health
from bridge.server.grpc_health import Health, HealthServer
from bridge.server.istio import METHOD, SERVICE
from tests.support.clients import http2
from tests.support.harness.in_process_server import (
    WAIT_SECONDS,
    Held,
    Served,
    silence,
)
from tests.support.harness.workers import await_true

SERVING, NOT_SERVING = 1, 2
NO_WINDOW = struct.pack(">HI", 4, 0)
LIST = reflection_pb2.ServerReflectionRequest(list_services="*")
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path, has_health=True) as running:
        yield running


def check(served: Served, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(served.health_channel())
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


def test_a_watcher_receives_each_change(served: Served) -> None:
    watching = health_pb2_grpc.HealthStub(served.health_channel()).Watch(
        HealthCheckRequest(service=SERVICE), timeout=WAIT_SECONDS
    )
    assert next(watching).status == SERVING
    served.problems["ledger"] = "the disk is full"
    assert next(watching).status == NOT_SERVING  # the thread noticed
    watching.cancel()


def test_health_is_not_serving_before_the_certificate(tmp_path: Path) -> None:
    absent = "{certificate: absent.pem, key: absent.key}"
    with Served(tmp_path, has_health=True, tls=absent) as served:
        assert check(served, "") == NOT_SERVING


def test_an_unknown_service_is_not_found(served: Served) -> None:
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        check(served, "other")


def test_health_is_served_while_every_thread_of_the_ca_is_busy(served: Served) -> None:
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


def test_reflection_lists_the_services(served: Served) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.health_channel())
    (answer,) = stub.ServerReflectionInfo(iter([LIST]), timeout=WAIT_SECONDS)
    names = {item.name for item in answer.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", REFLECTION}


def is_busy(served: Served) -> bool:
    try:
        check(served, "")
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return False


def test_a_watcher_that_reads_nothing_holds_up_no_other_caller(served: Served) -> None:
    host, port = served.server.health_address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as peer:
        # It allows its peer no bytes on a stream, and so gets no answer.
        settings = http2.frame(http2.SETTINGS, payload=NO_WINDOW)
        peer.sendall(http2.PREFACE + settings)
        peer.sendall(http2.begun(1, path="/grpc.health.v1.Health/Watch"))
        message = http2.framed(b"")
        peer.sendall(http2.frame(http2.DATA, http2.END_STREAM, 1, message))
        health = served.server._health._server
        assert health
        await_true(lambda: health._servicer._send_response_callbacks.get(""))
        assert check(served, "") == SERVING
        served.problems["ledger"] = "the disk is full"
        await_true(lambda: check(served, "") == NOT_SERVING)


def test_calls_that_stay_open_hold_up_neither_the_ca_nor_the_end(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_health, "_CUT_SECONDS", WAIT_SECONDS)
    over = threading.Event()

    methods = ("Check", "Watch")
    channel = served.health_channel()
    calls: list[Any] = []

    def are_all_places_taken() -> bool:
        # The call that looks takes a place itself, so one of ours may be refused.
        calls[:] = [call for call in calls if call.is_active()]
        while len(calls) < grpc_health._THREADS:
            path = f"/grpc.health.v1.Health/{methods[len(calls) % 2]}"
            calls.append(channel.stream_stream(path)(silence(over)))
        return is_busy(served)

    await_true(are_all_places_taken)
    assert served.stub()(IstioCertificateRequest(csr="pem")).cert_chain
    assert served.server.problems() == {}
    served.server.drain(0)
    for call in calls:
        with pytest.raises(grpc.RpcError, match=r"CANCELLED|UNAVAILABLE"):
            next(call)
    over.set()


def test_without_an_address_there_is_no_grpc_health(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        assert served.server.health_address == ""
        assert served.server._health._server is None


@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        f"{REFLECTION}/ServerReflectionInfo",
        f"{SERVICE}/Other",
    ],
)
def test_any_other_method_on_the_cas_port_is_unimplemented_and_holds_no_thread(
    served: Served, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    pools, over = served.listener.pools, threading.Event()

    def submit(*_: object) -> None:
        raise AssertionError("a thread was asked for")

    for pool in (pools.calls, pools.refusals):
        monkeypatch.setattr(pool, "submit", submit)

    for channel in (served.channel(), served.channel(served.ca.issue_client())):
        for messages in (iter([b""]), silence(over)):
            call = channel.stream_stream(f"/{method}")
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                next(call(messages, timeout=WAIT_SECONDS))
    over.set()
    assert f"/{method}" != METHOD


def test_an_address_in_use_is_an_error_that_names_its_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = HealthServer(address, (), shares_ports=False)
        with pytest.raises(ConfigError, match=f"admin.grpc_listen: .* {address}"):
            server.open()
        server.close()


def test_workers_share_the_address() -> None:
    one = HealthServer("127.0.0.1:0", (), shares_ports=True)
    one.open()
    other = HealthServer(one.address, (), shares_ports=True)
    other.open()
    assert one.address == other.address
    one.close()
    other.close()


def test_each_change_of_readiness_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems = {"issuing CAs": "a has not signed yet"}
    with caplog.at_level("INFO", "bridge.server.grpc_health"):
        health = Health(lambda: problems, None)
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
