"""A PKCS#11 module, as python-pkcs11 loads it, with what the library leaves out.

The library initialises a module for one thread, and calls it from several. Here it is
told that several will call (CKF_OS_LOCKING_OK). A module that cannot lock is called by
one thread at a time. The library also hides the limit of sessions, the state of a
session, and the codes that it does not know. Those calls go through ctypes.

Source:
    PKCS #11 Cryptographic Token Interface Base Specification 2.40, 4.4, 5.4 to 5.6.
"""

import ctypes
import re
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

from pkcs11 import _pkcs11
from pkcs11.exceptions import PKCS11Error

from bridge.spi import BackendBrokenError

_OS_LOCKING_OK = 2
_OK, _CANT_LOCK, _ALREADY_LOGGED_IN = 0x0, 0xA, 0x100
_USER = 1
_LOGGED_IN = frozenset({1, 3})
"""CKS_RO_USER_FUNCTIONS and CKS_RW_USER_FUNCTIONS."""
_NO_LIMIT = frozenset({0, (1 << 8 * ctypes.sizeof(ctypes.c_ulong)) - 1})
"""CK_EFFECTIVELY_INFINITE and CK_UNAVAILABLE_INFORMATION."""
_VENDOR_DEFINED = 0x80000000
PIN_REFUSED = frozenset({0xA0, 0xA1, 0xA2, 0xA3, 0xA4})
"""CKR_PIN_INCORRECT, INVALID, LEN_RANGE, EXPIRED and LOCKED."""
_NAMES = {
    0x1: "CANCEL",
    0x2: "HOST_MEMORY",
    0x3: "SLOT_ID_INVALID",
    0x5: "GENERAL_ERROR",
    0x6: "FUNCTION_FAILED",
    0x7: "ARGUMENTS_BAD",
    0x9: "NEED_TO_CREATE_THREADS",
    _CANT_LOCK: "CANT_LOCK",
    0x1B: "ACTION_PROHIBITED",
    0x30: "DEVICE_ERROR",
    0x31: "DEVICE_MEMORY",
    0x32: "DEVICE_REMOVED",
    0x50: "FUNCTION_CANCELED",
    0x51: "FUNCTION_NOT_PARALLEL",
    0x54: "FUNCTION_NOT_SUPPORTED",
    0x65: "KEY_CHANGED",
    0x68: "KEY_FUNCTION_NOT_PERMITTED",
    0xA0: "PIN_INCORRECT",
    0xA1: "PIN_INVALID",
    0xA2: "PIN_LEN_RANGE",
    0xA3: "PIN_EXPIRED",
    0xA4: "PIN_LOCKED",
    0xB0: "SESSION_CLOSED",
    0xB1: "SESSION_COUNT",
    0xB3: "SESSION_HANDLE_INVALID",
    0xB7: "SESSION_READ_ONLY_EXISTS",
    0xB8: "SESSION_READ_WRITE_SO_EXISTS",
    0xE0: "TOKEN_NOT_PRESENT",
    0xE1: "TOKEN_NOT_RECOGNIZED",
    _ALREADY_LOGGED_IN: "USER_ALREADY_LOGGED_IN",
    0x101: "USER_NOT_LOGGED_IN",
    0x102: "USER_PIN_NOT_INITIALIZED",
    0x103: "USER_TYPE_INVALID",
    0x104: "USER_ANOTHER_ALREADY_LOGGED_IN",
    0x105: "USER_TOO_MANY_TYPES",
    0x160: "SAVED_STATE_INVALID",
    0x170: "INFORMATION_SENSITIVE",
    0x180: "STATE_UNSAVEABLE",
    0x190: "CRYPTOKI_NOT_INITIALIZED",
    0x191: "CRYPTOKI_ALREADY_INITIALIZED",
    0x1A0: "MUTEX_BAD",
    0x1A1: "MUTEX_NOT_LOCKED",
    0x1B0: "NEW_PIN_MODE",
    0x1B1: "NEXT_OTP",
    0x1B8: "FIPS_SELF_TEST_FAILED",
    0x1B9: "LIBRARY_LOAD_FAILED",
    0x1BA: "PIN_TOO_WEAK",
    0x1BB: "PUBLIC_KEY_INVALID",
    0x200: "FUNCTION_REJECTED",
    0x201: "TOKEN_RESOURCE_EXCEEDED",
    0x202: "OPERATION_CANCEL_FAILED",
    0x203: "KEY_EXHAUSTED",
}
"""The codes that python-pkcs11 has no class for, and those of the calls made here."""


class CryptokiError(PKCS11Error):
    """A call of this module returned an error.

    Args:
        code: The CKR_ code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(_name(code))
        self.code = code


def words(error: PKCS11Error) -> str:
    """Return the name of an error's code, and what the error says besides.

    The library has a class for most codes, and says others as hexadecimal text.
    """
    text = str(error)
    unknown = re.search(r"Unmapped error code (0x[0-9a-f]+)", text)
    if unknown is not None:
        return _name(int(unknown[1], 16))
    kind = type(error)
    if kind in {PKCS11Error, CryptokiError}:
        return text
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()
    name = f"CKR_{snake}".replace("RECOGNISED", "RECOGNIZED")
    return f"{name}: {text}" if text else name


def _name(code: int) -> str:
    if code >= _VENDOR_DEFINED:
        return f"the vendor's error 0x{code:08X}"
    return f"CKR_{_NAMES[code]}" if code in _NAMES else f"error 0x{code:08X}"


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_ubyte), ("minor", ctypes.c_ubyte))


class _FunctionList(ctypes.Structure):
    _fields_ = (("version", _Version), ("functions", ctypes.c_void_p * 20))


_INITIALIZE, _FINALIZE, _TOKEN_INFO, _SESSION_INFO, _LOGIN = 0, 1, 6, 15, 18
"""Places in the function list."""


class _InitializeArgs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("create", "destroy", "lock", "unlock")),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class TokenState(ctypes.Structure):
    """CK_TOKEN_INFO."""

    _fields_ = (
        ("label", ctypes.c_char * 32),
        ("manufacturer", ctypes.c_char * 32),
        ("model", ctypes.c_char * 16),
        ("serial", ctypes.c_char * 16),
        ("flags", ctypes.c_ulong),
        ("max_sessions", ctypes.c_ulong),
        ("others", ctypes.c_ulong * 9),
        ("versions", _Version * 2),
        ("time", ctypes.c_char * 16),
    )


class _SessionState(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_ulong) for name in ("slot", "state", "flags", "device_error")
    )


class Module(_pkcs11.lib):
    """A PKCS#11 module, initialised for several threads. See `load_module`."""

    guard: AbstractContextManager[object] = nullcontext()
    """Held during each call, in a module that cannot lock."""

    def initialize(self) -> None:
        """Initialise the module. Called once, by the library."""
        functions = _function_list(self.so)
        self._functions = functions
        arguments = _InitializeArgs(flags=_OS_LOCKING_OK)
        code = self._call(_INITIALIZE, ctypes.byref(arguments))
        if code == _CANT_LOCK:
            self.guard = Lock()
            code = self._call(_INITIALIZE, None)
        if code != _OK:
            raise CryptokiError(code)

    def finish(self) -> None:
        """Finalise the module. No thread may be in a call."""
        self._call(_FINALIZE, None)

    def token_state(self, slot: int) -> TokenState:
        """Return what the token in a slot says of itself now."""
        state = TokenState()
        self._require(_TOKEN_INFO, ctypes.c_ulong(slot), ctypes.byref(state))
        return state

    def most_sessions(self, slot: int) -> int | None:
        """Return how many sessions the token allows; None where it does not say."""
        most = int(self.token_state(slot).max_sessions)
        return None if most in _NO_LIMIT else most

    def is_logged_in(self, session: int) -> bool:
        """Return whether the user is logged in, by the handle of a session."""
        state = _SessionState()
        self._require(_SESSION_INFO, ctypes.c_ulong(session), ctypes.byref(state))
        return state.state in _LOGGED_IN

    def log_in(self, session: int, pin: bytes) -> bool:
        """Log the user in, for all sessions of this process.

        Returns:
            False if the user was logged in, so that the PIN was not looked at.

        Raises:
            CryptokiError: The token refused.
        """
        code = self._call(
            _LOGIN,
            *(ctypes.c_ulong(session), ctypes.c_ulong(_USER)),
            *(ctypes.c_char_p(pin), ctypes.c_ulong(len(pin))),
        )
        if code not in {_OK, _ALREADY_LOGGED_IN}:
            raise CryptokiError(code)
        return code == _OK

    def _call(self, place: int, *arguments: Any) -> int:
        # A ctypes function lets other threads run while it is in the module.
        kind = ctypes.CFUNCTYPE(ctypes.c_ulong)
        return int(kind(self._functions[place])(*arguments))

    def _require(self, place: int, *arguments: Any) -> None:
        code = self._call(place, *arguments)
        if code != _OK:
            raise CryptokiError(code)


def load_module(path: str) -> Module:
    """Load a shared object, and initialise it.

    Raises:
        BackendBrokenError: It cannot be loaded, or is no PKCS#11 module.
        PKCS11Error: It does not initialise.
    """
    # First here: the library holds the GIL while it loads a module, and tells less.
    _function_list(path)
    return Module(path)


def _function_list(path: str) -> Any:
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise _unusable(
            f"{path}: cannot be loaded: {error}; `ldd` shows what it lacks"
        ) from error
    get = getattr(library, "C_GetFunctionList", None)
    if get is None:
        raise _unusable(
            f"{path}: expected a PKCS#11 module of the HSM's vendor: this shared "
            "object has no C_GetFunctionList"
        )
    found = ctypes.POINTER(_FunctionList)()
    get.restype = ctypes.c_ulong
    code = get(ctypes.byref(found))
    if code != _OK:
        raise _unusable(f"{path}: C_GetFunctionList: {_name(code)}")
    return found.contents.functions


def _unusable(detail: str) -> BackendBrokenError:
    return BackendBrokenError(
        "the PKCS#11 module cannot be used", rule="pkcs11.module", detail=detail
    )
