"""The shim shows faults that a module can have, and counts what reaches it."""

import subprocess
import sys

import pytest

from tests.support.parts.pkcs11_shim import Fault, Shim
from tests.support.parts.softhsm import KEY_LABEL, PIN, SoftHSM

_DEVICE_ERROR = 0x30
_SIGNS_TWICE = f"""
import sys, pkcs11
from pkcs11 import Mechanism, ObjectClass
token = pkcs11.lib(sys.argv[1]).get_token(token_label="bridge")
for _ in range(2):
    try:
        session = token.open(user_pin="{PIN}")
        key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="{KEY_LABEL}")
        raw = key.sign(bytes(32), mechanism=Mechanism.ECDSA)
        public = session.get_key(object_class=ObjectClass.PUBLIC_KEY)
        good = public.verify(bytes(32), raw, mechanism=Mechanism.ECDSA)
        print("signed" if good else "wrong")
        session.close()
    except pkcs11.PKCS11Error as error:
        print(type(error).__name__)
        try:
            session.close()
        except pkcs11.PKCS11Error:
            pass
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    folder = tmp_path_factory.mktemp("hsm")
    store = SoftHSM(folder / "store")
    store.new_token().new_key()
    return Shim(folder, store.module, store.variables)


def _sign_twice(shim: Shim) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _SIGNS_TWICE, str(shim.module)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    shim.clear()
    return done.returncode, done.stdout.split()


@pytest.mark.parametrize(
    ("function", "fault", "value", "status", "said"),
    [
        ("C_Sign", Fault.RETURN_INSTEAD, _DEVICE_ERROR, 0, "DeviceError"),
        ("C_Sign", Fault.RETURN_AFTER, _DEVICE_ERROR, 0, "DeviceError"),
        ("C_Sign", Fault.WRONG_BYTES, 0, 0, "wrong"),
        ("C_Sign", Fault.SLEEP, 10, 0, "signed"),
        ("C_SignInit", Fault.LOGOUT, 0, 0, "ObjectHandleInvalid"),
        ("C_SignInit", Fault.CLOSE_SESSIONS, 0, 0, "SessionHandleInvalid"),
        ("C_SignInit", Fault.CRASH, 0, -11, ""),
        ("C_Login", Fault.ABORT, 0, -6, ""),
    ],
)
def test_a_fault_is_for_as_many_calls_as_it_was_put_in_for(
    shim: Shim, function: str, fault: Fault, value: int, status: int, said: str
) -> None:
    shim.put(function, fault, value, times=1)
    logins = shim.calls("C_Login")
    expected = [said, "signed"] if said else []
    ended, seen = _sign_twice(shim)
    assert (ended, seen[: len(expected)]) == (status, expected)
    assert shim.hits(function) == 1
    assert shim.calls("C_Login") == logins + (2 if said else 1)
    assert _sign_twice(shim) == (0, ["signed", "signed"])
