import os
import subprocess
import sys

import pytest

from bridge.system.linux import poll_without_hops

CODE = """
import resource
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
from bridge.system.linux import harden
harden()
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most))
print(resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_a_process_leaves_no_core_dump_and_takes_all_files_that_it_may_have() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["True", "(0, 0)"]


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (None, "-event_engine_listener"),
        ("", "-event_engine_listener"),
        ("tcp_rcv_lowat", "tcp_rcv_lowat,-event_engine_listener"),
        ("event_engine_listener", "event_engine_listener"),
    ],
)
def test_an_operator_may_choose_otherwise(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, found: str
) -> None:
    monkeypatch.setattr("os.environ", {"GRPC_EXPERIMENTS": chosen} if chosen else {})
    poll_without_hops()
    assert os.environ == {"GRPC_EXPERIMENTS": found}
