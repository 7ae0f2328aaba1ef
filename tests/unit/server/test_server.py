import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge.errors import ConfigError
from tests.support.harness.in_process_server import WAIT_SECONDS, Held, Served

REQUEST = IstioCertificateRequest(csr="pem")
NOT_SERVING = 2


def test_draining_finishes_the_calls_under_way(tmp_path: Path) -> None:
    held, waits = Held(), threading.Event()
    with Served(tmp_path, has_health=True) as served:
        calls = served.listener.pools.calls
        wait_until_idle = calls.wait_until_idle

        def wait(timeout: float) -> bool:
            waits.set()
            return wait_until_idle(timeout)

        calls.wait_until_idle = wait  # type: ignore[method-assign]
        served.issuance.does = held
        stub = served.stub()
        running = [stub.future(REQUEST) for _ in range(4)]  # two wait for a thread
        for _ in range(2):
            assert held.began.acquire(timeout=WAIT_SECONDS)
        while served.counted("meshca_in_flight") < 4:
            threading.Event().wait(0.005)
        watching = health_pb2_grpc.HealthStub(served.health_channel()).Watch(
            HealthCheckRequest(), timeout=WAIT_SECONDS
        )
        assert next(watching).status != NOT_SERVING
        ending = threading.Thread(target=served.server.drain, args=(WAIT_SECONDS,))
        ending.start()
        assert next(watching).status == NOT_SERVING
        assert ending.is_alive()
        late = connect_again(served)
        assert waits.wait(WAIT_SECONDS)
        held.release.set()
        for future in running:
            assert future.result(WAIT_SECONDS).cert_chain
        ending.join()
        assert late in {"UNAVAILABLE", "CANCELLED"}
        assert len(served.issuance.calls) == 4


def connect_again(served: Served) -> str:
    with pytest.raises(grpc.RpcError, match=r".") as caught:
        served.stub()(REQUEST, timeout=WAIT_SECONDS)
    error: Any = caught.value
    return str(error.code().name)


def test_draining_cuts_off_what_takes_longer_than_the_grace(tmp_path: Path) -> None:
    held = Held()
    with Served(tmp_path) as served:
        served.issuance.does = held
        future = served.stub().future(REQUEST)
        assert held.began.acquire(timeout=WAIT_SECONDS)
        ending = threading.Thread(target=served.server.drain, args=(0.05,))
        ending.start()
        with pytest.raises(grpc.RpcError, match=r"CANCELLED|UNAVAILABLE"):
            future.result(WAIT_SECONDS)
        held.release.set()
        ending.join()


def test_draining_ends_although_a_call_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.server.server._CUT_SECONDS", 0.05)
    held = Held()
    with Served(tmp_path) as served:
        served.issuance.does = held
        future = served.stub().future(REQUEST)
        assert held.began.acquire(timeout=WAIT_SECONDS)
        served.server.drain(0.05)
        assert future.exception(WAIT_SECONDS) is not None
        held.release.set()


def test_draining_ends_although_grpc_serves_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.server.server._CUT_SECONDS", 0.05)
    with Served(tmp_path) as served:

        def stop(_grace: float) -> threading.Event:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(served.listener._grpc, "stop", stop)
            served.server.drain(0)


def test_nothing_is_left_running(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with Served(tmp_path) as served:
        served.stub()(REQUEST)
        served.server.drain(1)
        served.server.drain(1)  # again does no harm
    ours = [
        thread.name
        for thread in set(threading.enumerate()) - before
        if not thread.daemon
    ]
    assert ours == []


def test_a_server_that_never_started_leaves_nothing(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    served = Served(tmp_path)
    served.server.drain(1)
    assert {thread for thread in threading.enumerate() if not thread.daemon} <= before


def test_readiness_says_that_the_end_is_near(tmp_path: Path) -> None:
    held = Held()
    with Served(tmp_path) as served:
        served.issuance.does = held
        future = served.stub().future(REQUEST)
        assert held.began.acquire(timeout=WAIT_SECONDS)
        ending = threading.Thread(target=served.server.drain, args=(WAIT_SECONDS,))
        ending.start()
        while not served.server.problems():
            threading.Event().wait(0.005)
        connection = http.client.HTTPConnection(served.server.admin_address)
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        assert response.status == 503
        parts = json.loads(response.read())["parts"]
        connection.close()
        assert parts["listeners"] == "the process is about to end"
        held.release.set()
        future.result(WAIT_SECONDS)
        ending.join()


def test_an_address_in_use_ends_the_start_and_leaves_nothing(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        served = Served(tmp_path, listen=address)
        with pytest.raises(ConfigError, match=f"fronts.istio.listen: .* {address}"):
            served.server.start()
    assert {thread for thread in threading.enumerate() if not thread.daemon} <= before


def test_two_servers_run_side_by_side(tmp_path: Path) -> None:
    with Served(tmp_path) as one, Served(tmp_path) as other:
        one.stub()(REQUEST)
        other.stub()(REQUEST)
        assert one.server.istio_address != other.server.istio_address
        assert len(one.issuance.calls) == len(other.issuance.calls) == 1
