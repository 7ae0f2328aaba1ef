"""Who comes first on a core: threads that sign, and then who feeds the archive.

The priority and the class of a thread are Linux's own ideas; elsewhere they would be
the process's. Where the system does not let us (a seccomp profile), it works as well.
"""

import os
import sys
import threading
from contextlib import suppress

_NICENESS = 3
"""A higher one leaves the thread less than it needs where the core is full."""


def step_back() -> None:
    """Let this thread, and what it starts, come after those that sign."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def take_turns() -> None:
    """Let this thread push no other off the core when it wakes up."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def be_idle() -> None:
    """Let this thread run when no other wants the core, for good.

    There is no way back without a privilege.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
