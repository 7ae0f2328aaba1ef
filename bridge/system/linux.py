"""Settings of a process that serves, which it asks of the operating system."""

import ctypes
import os
import resource
from contextlib import suppress

_EXPERIMENTS = "GRPC_EXPERIMENTS"
_LISTENER = "event_engine_listener"
# Source: glibc, malloc.h and mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_ARENA_MAX = -8
_TRIM_BYTES = 1024 * 1024
_ARENAS = 2
_KEPT_DESCRIPTORS = 512
_allowed: frozenset[int] | None = None
"""The cores before this process was kept to one."""


def harden() -> None:
    """Forbid core dumps, since the process holds keys, and allow many open files.

    Each connection is an open file. A shell allows 1,024, and a mesh has more proxies.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def spare_descriptors() -> int:
    """Return how many descriptors connections may take in this process.

    The others are kept for the ledger, the admin address, the issuing CAs and the start
    of other processes: 512, or half of a limit (RLIMIT_NOFILE) below 1,024.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most - min(_KEPT_DESCRIPTORS, most // 2)


def keep_to_core(core: int) -> None:
    """Run this process on one core. Threads that run already stay where they are."""
    global _allowed  # noqa: PLW0603 - a property of the process
    _allowed = allowed_cores()
    os.sched_setaffinity(0, {core})


def allowed_cores() -> frozenset[int]:
    """Return the cores that this process may use, or might before `keep_to_core`."""
    return _allowed or frozenset(os.sched_getaffinity(0))


def bound_malloc() -> None:
    """Have the C library return freed memory, and keep two pools of it at most.

    A thousand connections at once take some 100 MB. By default the C library keeps what
    they free, in up to eight pools for each core, and in pieces: the next thousand find
    no room that fits, and take more. Call this before other threads start.
    """
    with suppress(OSError, AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, _ARENAS)
        # Setting it also keeps glibc from raising it after each large block.
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def take_turns() -> None:
    """Let a thread of this process that wakes up wait until the running one pauses.

    Only one of them holds the GIL. A thread that preempts another finds the GIL taken,
    at the cost of two more switches. Threads started later inherit the setting.
    """
    # Where a seccomp profile forbids it, the process works as well, slower.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def poll_without_hops() -> None:
    """Let grpc's own thread read from the connections. Call before grpc is imported.

    By default another thread reads and hands each call over, which is a third of all
    switches between threads on a core.
    """
    chosen = os.environ.get(_EXPERIMENTS, "")
    if _LISTENER not in chosen:  # an operator's choice stays
        os.environ[_EXPERIMENTS] = f"{chosen},-{_LISTENER}".lstrip(",")
