import os
import resource
import subprocess
import sys

import pytest

from bridge.system.linux import poll_without_hops, spare_descriptors

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
    ("most", "spare"),
    [(1_048_576, 1_048_064), (4096, 3584), (1024, 512), (256, 128), (3, 2)],
)
def test_connections_leave_descriptors_to_the_process(
    monkeypatch: pytest.MonkeyPatch, most: int, spare: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (most, most))
    assert spare_descriptors() == spare


MALLOC = """
import ctypes, os, threading
from bridge.system.linux import bound_malloc
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
PAGE = os.sysconf("SC_PAGE_SIZE")

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * PAGE

{call}
blocks = (ctypes.c_void_p * 300)()
before = resident()
library.free(library.malloc(16 << 20))  # by default it raises the threshold to 32 MiB
for number in range(300):
    blocks[number] = ctypes.memset(library.malloc(64 << 10), 1, 64 << 10)
for block in blocks:
    library.free(block)
print("kept" if resident() - before > 8 << 20 else "returned")
together = threading.Barrier(8)

def work():
    library.malloc(1000)
    together.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
library.malloc_info(0, ctypes.c_void_p.in_dll(library, "stdout"))
library.fflush(None)
"""


@pytest.mark.parametrize(
    ("call", "memory", "is_few"),
    [("", "kept", False), ("bound_malloc()", "returned", True)],
    ids=["by default", "bounded"],
)
def test_freed_memory_is_returned_and_threads_share_two_pools(
    call: str, memory: str, *, is_few: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-u", "-c", MALLOC.format(call=call)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0] == memory
    assert (done.stdout.count("<heap nr=") <= 2) is is_few


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


def test_a_child_is_not_kept_to_the_core_of_its_parent() -> None:
    code = (
        "import os, subprocess\n"
        "from bridge.system.child_process import ChildProcess\n"
        "from bridge.system.linux import allowed_cores, keep_to_core\n"
        "before = os.sched_getaffinity(0)\n"
        "keep_to_core(min(before))\n"
        "child = ChildProcess('timeit', b'')\n"
        "of_child = os.sched_getaffinity(child.pid)\n"
        "child.kill(), child.wait(10)\n"
        "print(os.sched_getaffinity(0) == {min(before)}, of_child == before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True"]
