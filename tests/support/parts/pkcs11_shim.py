"""Faults in a PKCS#11 module: steers `pkcs11_shim.c`, and counts the calls it saw.

The module and the test map one file; its layout is `struct state` of the C source.
"""

import ctypes
import mmap
import re
import shutil
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

from tests.support.parts import builds, install

ALWAYS = 2**64 - 1
"""A fault for every call until it is cleared."""
FUNCTIONS = tuple(
    re.findall(r"X\((C_\w+), \d\)", install.SHIM_SOURCE.read_text("utf-8"))
)
"""Those of PKCS#11 2.40, in their order."""


class Fault(IntEnum):
    """What happens to a call; `value` is that of `Shim.put`."""

    RETURN_INSTEAD = 1
    """It returns the code `value`; the module does not hear of it."""
    RETURN_AFTER = 2
    """The module does it, and it returns the code `value`."""
    SLEEP = 3
    """It begins `value` milliseconds late."""
    HANG = 4
    """It never returns, also when the fault is cleared."""
    CRASH = 5
    """The process gets SIGSEGV."""
    ABORT = 6
    """The process gets SIGABRT."""
    WRONG_BYTES = 7
    """C_Sign gives another signature than the module's."""
    MAX_SESSIONS = 8
    """C_GetTokenInfo tells of at most `value` sessions."""
    FLAGS = 9
    """C_GetTokenInfo shows the flags of `value`, too."""
    CLOSE_SESSIONS = 10
    """All sessions on the token of the call's session are closed before it."""
    LOGOUT = 11
    """The user is logged out before it."""


class _Function(ctypes.Structure):
    _fields_ = (
        ("calls", ctypes.c_uint64),
        ("left", ctypes.c_uint64),
        ("hits", ctypes.c_uint64),
        ("action", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("unused", ctypes.c_uint64 * 3),
    )


class _State(ctypes.Structure):
    _fields_ = (
        ("module", ctypes.c_char * 1024),
        ("variable", ctypes.c_char * 64),
        ("setting", ctypes.c_char * 1024),
        ("functions", _Function * len(FUNCTIONS)),
    )


class Shim:
    """A module in a folder of a test, between a token and whoever uses it.

    Args:
        folder: For the module and its state.
        module: The module behind it.
        variables: The one variable that the module behind it needs, with its value.
    """

    def __init__(
        self, folder: Path, module: Path, variables: Mapping[str, str]
    ) -> None:
        built = builds.build_shared_object(install.compiler(), install.SHIM_SOURCE)
        self.module = folder / "faulty.so"
        """The module to configure."""
        shutil.copy2(built, self.module)
        file = folder / "faulty.so.state"
        file.write_bytes(bytes(ctypes.sizeof(_State)))
        with file.open("r+b") as opened:
            self._state = _State.from_buffer(mmap.mmap(opened.fileno(), 0))
        ((variable, setting),) = variables.items()
        self._state.module = str(module).encode()
        self._state.variable, self._state.setting = variable.encode(), setting.encode()

    def put(
        self, function: str, fault: Fault, value: int = 0, *, times: int = ALWAYS
    ) -> None:
        """Put a fault into the next calls of a function, in whatever process.

        Args:
            function: By its name in PKCS#11.
            fault: What happens.
            value: See `Fault`.
            times: The number of calls, counted over all processes.
        """
        one = self._function(function)
        # What a call reads after it took its turn is there before there is a turn.
        one.left = 0
        one.action, one.value, one.hits = fault, value, 0
        one.left = times

    def clear(self) -> None:
        """Take all faults away."""
        for one in self._state.functions:
            one.left = 0

    def calls(self, function: str) -> int:
        """Return how many calls there were, in all processes together."""
        return int(self._function(function).calls)

    def hits(self, function: str) -> int:
        """Return how many calls the last fault of the function was for."""
        return int(self._function(function).hits)

    def _function(self, name: str) -> _Function:
        found: _Function = self._state.functions[FUNCTIONS.index(name)]
        return found
