"""Real workers under a real parent: who serves, who dies, who comes back."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridge.errors import BackendRefusedError
from bridge.process.role import REFUSED, WorkerOrder
from tests.support.harness.processes import is_alive, pause
from tests.support.harness.workers import Supervised, await_true

pytestmark = pytest.mark.xdist_group("workers")


def test_workers_share_the_port_and_their_metrics_are_one_sum(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        for _ in range(24):
            bridge.ask()
        # An outcome may follow the answer.
        await_true(lambda: sum(bridge.issued_by().values()) == 24)
        issued = bridge.issued_by()
        assert set(issued) == {"w0", "w1"}
        assert all(issued.values())
        assert bridge.metric("meshca_requests_total", code="OK") == 24
        assert bridge.metric("meshca_request_seconds_count") == 24
        assert bridge.metric("citadel_server_csr_count") == 24
        assert bridge.metric("meshca_config_generation") == 1
        assert bridge.metric("meshca_build_info") == 1
        _, text = bridge.get("/metrics")
        anchors = [line for line in text.splitlines() if 'tier="anchor"' in line]
        assert sorted(line.partition("{")[0] for line in anchors) == [
            "meshca_certificate_expiry_level",
            "meshca_certificate_expiry_timestamp_seconds",
        ]
        assert "_created" not in text
        assert len({_core(pid) for pid in bridge.children()}) == min(
            2, len(os.sched_getaffinity(0))
        )
        for pid in bridge.children():
            names = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
            batch = [os.sched_getscheduler(name) == os.SCHED_BATCH for name in names]
            assert batch.count(False) <= 1, "all but the thread that watches the parent"
    bridge.require_sound_ledger()


def test_a_killed_worker_comes_back_and_the_other_serves_meanwhile(
    tmp_path: Path,
) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        for _ in range(8):
            bridge.ask()
        before = bridge.metric("meshca_requests_total", code="OK")
        killed, other = bridge.children()
        os.kill(killed, signal.SIGKILL)
        await_true(lambda: not is_alive(killed))
        for _ in range(8):
            bridge.ask()
        assert bridge.get("/readyz")[0] == 200
        await_true(lambda: bridge.metric("meshca_worker_restarts_total") == 1)
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        assert is_alive(other)
        # What the dead one had counted stays counted.
        assert bridge.metric("meshca_requests_total", code="OK") == before + 8
    bridge.require_sound_ledger()


def test_a_worker_whose_journal_was_edited_stays_down_and_the_other_serves(
    tmp_path: Path,
) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        folder = bridge.folder / "journal/w0"
        (segment,) = folder.glob("*.jsonl")
        whole = segment.read_bytes()
        segment.write_bytes(whole.replace(b'"opened"', b'"0pened"', 1))
        os.kill(int((folder / "lock").read_text()), signal.SIGKILL)

        def told() -> str:
            page = json.loads(bridge.get("/readyz")[1])
            return str(page["workers"]["w0"]["parts"].get("worker", ""))

        await_true(lambda: "not started again until a reload" in told())
        assert "00000001.jsonl" in told()
        assert bridge.metric("meshca_worker_restarts_total", worker="w0") == 1
        assert bridge.get("/readyz")[0] == 200
        bridge.ask()
        segment.write_bytes(whole)
        bridge.hang_up()
        bridge.await_reloads("ok")
        bridge.ask()


def test_workers_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    bridge = Supervised(tmp_path / "served", 2)
    with bridge:
        workers, folder = bridge.children(), _private_folder(bridge)
        assert folder.stat().st_mode & 0o777 == 0o700
        bridge.signal(signal.SIGKILL)
        await_true(lambda: not any(is_alive(pid) for pid in workers))
        assert not folder.exists()
        assert _is_refused(bridge.address)
        with bridge:
            bridge.ask()
    bridge.require_sound_ledger()


def test_a_ceiling_is_that_of_all_workers_together(tmp_path: Path) -> None:
    ceiling = {"per_identity": {"rate": 0.001, "burst": 6}}
    with Supervised(tmp_path / "served", 2, {"limits": ceiling}) as bridge:
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        for _ in range(6):
            bridge.ask()
        for _ in range(6):  # whichever worker it comes to
            with pytest.raises(BackendRefusedError, match=r"overload\.identity"):
                bridge.ask()
        await_true(lambda: len(bridge.issued_by()) == 2)
        assert bridge.metric("meshca_shed_total", reason="identity") == 6


# No file longer than 1 MiB: a nearly full disk, without the right to mount one.
SMALL_FILES = ("sh", "-c", 'ulimit -S -f 2048 && exec "$@"', "sh")
CEILING = {"rate": 0.001, "burst": 1}


def test_without_room_for_a_ceiling_the_old_configuration_serves(
    tmp_path: Path,
) -> None:
    with Supervised(tmp_path / "served", 2, prefix=SMALL_FILES) as bridge:
        bridge.change(limits={"per_identity": CEILING})
        bridge.await_reloads("refused")
        told = json.loads(bridge.get("/readyz")[1])["warnings"]["configuration"]
        assert "ceilings: what callers have used up cannot be kept" in told
        assert "File too large" in told
        for _ in range(2):
            bridge.ask()
        _, hard = resource.prlimit(bridge.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(bridge.pid, resource.RLIMIT_FSIZE, (hard, hard))
        bridge.hang_up()
        bridge.await_reloads("ok")
        bridge.ask()
        with pytest.raises(BackendRefusedError, match=r"overload\.identity"):
            bridge.ask()


def test_without_room_for_a_ceiling_the_start_says_so(tmp_path: Path) -> None:
    limits = {"limits": {"per_identity": CEILING}}
    bridge = Supervised(tmp_path / "served", 2, limits, prefix=SMALL_FILES)
    with pytest.raises(RuntimeError, match="cannot be kept there: File too large"):
        bridge.__enter__()
    assert "Traceback" not in bridge.log()


def test_a_worker_that_cannot_write_its_reason_says_that_it_was_refused(
    tmp_path: Path,
) -> None:
    order = WorkerOrder(
        path=str(tmp_path / "bridge.yaml"),
        text="nothing",
        writer="w0",
        cpu=min(os.sched_getaffinity(0)),
        folder=str(tmp_path / "gone"),
    )
    command = [sys.executable, "-P", "-m", "bridge.process.worker"]
    done = subprocess.run(
        command, input=order.line(), capture_output=True, check=False, timeout=60
    )
    assert done.returncode == REFUSED
    assert b"bridge.yaml: expected a mapping" in done.stderr


def test_a_worker_that_hangs_holds_up_no_scrape(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        bridge.ask()
        hung = bridge.children()[0]
        pause(hung)
        try:
            began = time.monotonic()
            assert bridge.metric("meshca_worker_up") == 1
            status, body = bridge.get("/readyz")
            assert time.monotonic() - began < 5
            assert status == 200
            assert "w0" in json.loads(body)["warnings"]["workers"]
            assert bridge.metric("meshca_requests_total", code="OK") <= 1
        finally:
            os.kill(hung, signal.SIGCONT)
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)


def test_the_end_of_the_parent_is_the_end_of_all(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        workers = bridge.children()
        bridge.stop()
        assert not any(is_alive(pid) for pid in workers)
        assert _is_refused(bridge.address)
    bridge.require_sound_ledger()
    assert "by force" not in bridge.log()


def test_a_configuration_that_no_worker_can_use_ends_the_start(tmp_path: Path) -> None:
    bridge = Supervised(tmp_path / "served", 2)
    bridge.chain.write_text("nothing\n")
    with pytest.raises(RuntimeError, match=r"(?s)did not start.*chain\.pem"), bridge:
        pass


def test_a_second_bridge_on_the_same_addresses_does_not_start(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        workers = bridge.children()
        second = bridge.run("serve")
        assert second.returncode == 1
        assert "admin.listen: cannot listen" in second.stderr
        assert bridge.children() == workers


def _private_folder(bridge: Supervised) -> Path:
    def told() -> str:
        address = bridge.log().partition("health and metrics on unix:")[2]
        return address.partition("\n")[0]

    await_true(told)  # a worker is ready before it says where it listens
    return Path(told()).parent


def _core(pid: int) -> frozenset[int]:
    return frozenset(os.sched_getaffinity(pid))


def _is_refused(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def test_a_front_whose_port_is_in_use_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    bridge = Supervised(tmp_path / "served", 2)
    host, _, port = bridge.address.rpartition(":")
    with socket.socket() as other:
        other.bind((host, int(port)))
        other.listen()
        said = rf"(?s)listen: cannot listen on .*in use by .*\(pid {os.getpid()}\)"
        with pytest.raises(RuntimeError, match=said), bridge:
            pass
    assert [*(tmp_path / "served").rglob("*.jsonl")] == []
