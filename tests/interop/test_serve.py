"""The served process, seen from outside: how it starts, and how it ends."""

import os
import time
from pathlib import Path

import pytest

from bridge.x509.algorithm import KeyAlgorithm
from tests.support.harness.real_process import Bridge

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("interop-serve")]

_IDLE_SECONDS = 4.0
"""Longer than anything that the bridge polls takes to come round."""


@pytest.mark.parametrize("key", ["p256", "p521", "rsa2048", "ed25519"])
def test_configuration_of_these_tests_passes_the_check(
    tmp_path: Path, key: KeyAlgorithm
) -> None:
    bridge = Bridge(tmp_path / "served", ca_key=key)
    checked = bridge.run("check")
    assert checked.returncode == 0, checked.stderr


def test_bridge_that_nobody_asks_rests(tmp_path: Path) -> None:
    with Bridge(tmp_path / "served") as bridge:
        pids = [bridge.pid, bridge.worker]
        time.sleep(_IDLE_SECONDS)  # until its start is over
        before = sum(map(_cpu_seconds, pids))
        time.sleep(_IDLE_SECONDS)
        used = sum(map(_cpu_seconds, pids)) - before
    assert used < 0.1 * _IDLE_SECONDS


def _cpu_seconds(pid: int) -> float:
    # The name of the command, in parentheses, may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
