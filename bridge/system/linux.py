"""What a process that serves asks of the system."""

import os
import resource
from contextlib import suppress


def harden() -> None:
    """Let this process leave no core dump, and hold many connections.

    It holds keys. And of files, which connections are, a shell allows it 1,024: fewer
    than a mesh has proxies.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def take_turns() -> None:
    """Let a thread of this process that wakes up wait until the running one pauses.

    Only one of them has Python's lock: one that pushes in finds it taken, and all that
    comes of it are two more switches. Threads started later are the same.
    """
    # Where the system does not let us (a seccomp profile), it works as well, slower.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def poll_without_hops() -> None:
    """Let grpc's own thread read what it has waited for; call before it is imported.

    By default another thread reads from the connections and hands each call over:
    a third of all switches between threads, of which one at a time has a core.
    """
    chosen = os.environ.get(_EXPERIMENTS, "")
    if _LISTENER not in chosen:  # whoever has chosen has it as chosen
        os.environ[_EXPERIMENTS] = f"{chosen},-{_LISTENER}".lstrip(",")


_EXPERIMENTS = "GRPC_EXPERIMENTS"
_LISTENER = "event_engine_listener"
