"""`meshca bar` and a running bridge: in force within a second, and on record."""

import json
import time
from pathlib import Path

import grpc
import pytest

from bridge.errors import BackendRefusedError
from tests.support.clients.istio_raw import Wire, bearer, request
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import Supervised, await_true

pytestmark = pytest.mark.xdist_group("bars")

WEB = "spiffe://corp.example/ns/shop/sa/web"
CALLER = ("identity", WEB)
WAIT_SECONDS = 20.0
WITHIN_SECONDS = 5.0
"""Of a machine that runs other tests beside; the file is read four times a second."""
IN_A_ROW = 24
"""Each connection goes to one of the workers: to the same, once in eight million."""


def await_status(wire: Wire, wanted: str) -> str:
    until = time.monotonic() + WAIT_SECONDS
    while True:
        answer = wire.send(request(), bearer(wire.bridge.token()))
        if answer.code == wanted:
            return answer.text
        assert time.monotonic() < until, answer
        time.sleep(0.05)


def test_a_bar_holds_for_a_running_bridge_until_it_is_removed(tmp_path: Path) -> None:
    with Bridge(tmp_path / "served") as bridge, Wire(bridge) as wire:
        await_status(wire, grpc.StatusCode.OK.name)
        added = bridge.run("bar", "add", *CALLER, "--reason", "stolen")
        assert added.returncode == 0, added.stderr
        text = await_status(wire, grpc.StatusCode.PERMISSION_DENIED.name)
        assert text.startswith("bar.identity: ")
        (row,) = bridge.await_rows(1, kind="latched", state="barred")
        assert (row["scope"], row["detail"]) == (f"identity:{WEB}", "stolen")
        refused = {"kind": "refused", "rule": "bar.identity", "caller": WEB}
        until = time.monotonic() + WAIT_SECONDS
        while not bridge.rows(**refused):
            assert time.monotonic() < until
            time.sleep(0.05)
        shown = json.loads(bridge.run("bar", "list", "-o", "json").stdout)
        assert [one["barred"] for one in shown["barred"]] == [f"identity:{WEB}"]
        # The file is made again from the archive.
        file = bridge.folder / "journal/state/bars.json"
        file.unlink()
        until = time.monotonic() + WAIT_SECONDS
        while not file.exists() or WEB not in file.read_text():
            assert time.monotonic() < until
            time.sleep(0.05)
        await_status(wire, grpc.StatusCode.PERMISSION_DENIED.name)
        unknown = bridge.run("bar", "remove", "nobody", "--reason", "found")
        assert unknown.returncode == 1
        assert f"identity:{WEB}" in unknown.stderr
        name = f"identity:{WEB}"
        assert not bridge.run("bar", "remove", name, "--reason", "found").returncode
        await_status(wire, grpc.StatusCode.OK.name)
        bridge.await_rows(1, kind="cleared", scope=name, detail="found")


def test_a_bar_is_soon_in_force_in_all_workers(tmp_path: Path) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        await_true(lambda: bridge.metric("meshca_worker_up") == 2)
        while not all(bridge.issued_by().values()):
            bridge.ask()
        assert not bridge.run("bar", "add", *CALLER, "--reason", "stolen").returncode
        until, refused = time.monotonic() + WITHIN_SECONDS, 0
        while refused < IN_A_ROW:
            try:
                bridge.ask()
            except BackendRefusedError as error:
                assert "bar.identity" in str(error)  # noqa: PT017 - both are right
                refused += 1
            else:
                assert time.monotonic() < until
                refused = 0
