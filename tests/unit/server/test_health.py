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
from bridge.server.health import Health
from bridge.server.istio import SERVICE
from tests.support.serving import WAIT_SECONDS, Held, Served

SERVING, NOT_SERVING = 1, 2


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


def test_each_change_of_readiness_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems = {"issuing CAs": "a has not signed yet"}
    with caplog.at_level("INFO", "bridge.server.health"):
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
