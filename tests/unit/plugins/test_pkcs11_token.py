"""What is wrong with a token, its key or its PIN: told with the way out."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from pkcs11 import Attribute
from pkcs11.exceptions import AttributeTypeInvalid

from bridge.errors import ConfigError
from bridge.spi import (
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendUnavailableError,
    Latch,
    PluginContext,
)
from bridge.x509.tbs import recorder_of
from bridge_pkcs11 import PKCS11CA, issuing_ca
from bridge_pkcs11.token import unfit
from tests.support.parts import builds, install
from tests.support.parts.pkcs11_shim import Fault, Shim
from tests.support.parts.pki import Key, bundle, new_chain, write_private
from tests.support.parts.softhsm import SoftHSM, Token

SECONDS = 60.0
"""For one call, on a busy machine."""
_PROTECTED, _LOCKED, _COUNT_LOW, _FINAL_TRY = 0x100, 0x40000, 0x10000, 0x20000


@dataclass
class HSM:
    """A token with a key, a shim before it, and the files of an issuing CA."""

    folder: Path
    store: SoftHSM
    token: Token
    shim: Shim
    warnings: list[str] = field(default_factory=list)

    @property
    def pin(self) -> Path:
        return self.folder / "pin"

    def certify(self, public_key: object) -> None:
        """Give a key the certificate of the issuing CA."""
        stand_in = cast("Key", recorder_of(public_key))  # type: ignore[arg-type]
        issuing = new_chain().above[0].issue_ca("hsm", key=stand_in, path_length=0)
        (self.folder / "chain.pem").write_bytes(bundle(*issuing.chain))

    def build(self, **more: object) -> PKCS11CA:
        options = {
            **self.token.options(pin_file=self.pin, module=self.shim.module),
            "start_timeout_seconds": SECONDS,
            **more,
        }
        return PKCS11CA(
            {name: value for name, value in options.items() if value is not None},
            PluginContext(
                name="seoul-1",
                base=self.folder,
                chain=self.folder / "chain.pem",
                latch=Latch(self.folder / "latch.json"),
                warn=self.warnings.append,
            ),
        )

    def failure(self, **more: object) -> BackendError:
        """Build, check, and return what is told."""
        return failure(self.build(**more))


def failure(ca: PKCS11CA) -> BackendError:
    try:
        with pytest.raises(BackendError, match=r".") as caught:
            ca.check(timeout=SECONDS)
    finally:
        ca.close()
    return caught.value


@pytest.fixture
def hsm(tmp_path: Path) -> HSM:
    store = SoftHSM(tmp_path / "store")
    token = store.new_token()
    shim = Shim(tmp_path, store.module, store.variables)
    made = HSM(tmp_path, store, token, shim)
    made.certify(token.new_key())
    return made


def test_check_passes_and_closes_what_it_opened(hsm: HSM) -> None:
    ca = hsm.build()
    ca.check(timeout=SECONDS)
    ca.close()
    opened, closed = (hsm.shim.calls(f"C_{done}Session") for done in ("Open", "Close"))
    assert (opened, closed, hsm.shim.calls("C_Login")) == (2, 2, 1)
    assert hsm.shim.calls("C_Finalize") == 1


def test_a_token_holds_no_public_key(hsm: HSM) -> None:
    hsm.token.delete_key()
    hsm.certify(hsm.token.new_key(with_public=False))
    ca = hsm.build()
    ca.check(timeout=SECONDS)
    ca.close()


def no_key(hsm: HSM) -> None:
    hsm.token.delete_key()


def two_keys(hsm: HSM) -> None:
    hsm.token.new_key()


def extractable(hsm: HSM) -> None:
    hsm.token.delete_key()
    hsm.certify(hsm.token.new_key(extractable=True))


def another_key(hsm: HSM) -> None:
    hsm.token.delete_key()
    hsm.token.new_key()


def another_kind(hsm: HSM) -> None:
    hsm.token.delete_key()
    hsm.token.new_key("rsa2048")


@pytest.mark.parametrize(
    ("harm", "text", "detail"),
    [
        (no_key, "key is not in the token", r"no private key of type EC.*ID: none$"),
        (another_kind, "key is not in the token", r"ID: .*PRIVATE_KEY RSA"),
        (two_keys, "several keys", r"expected one private key, found 2; give key_l"),
        (extractable, "not fit", r"CKA_SENSITIVE is false, CKA_EXTRACTABLE is true: "),
        (another_key, "not that of the issuing CA", r"does not verify .*give the cert"),
    ],
)
def test_a_key_that_cannot_be_used_is_told(
    hsm: HSM, harm: Callable[[HSM], None], text: str, detail: str
) -> None:
    harm(hsm)
    with pytest.raises(BackendBrokenError, match=text) as caught:
        raise hsm.failure()
    told = caught.value.detail
    with pytest.raises(ValueError, match=detail):
        raise ValueError(told)
    assert "key_label 'issuing' and key_id '01' in token 'bridge'" in told


@pytest.mark.parametrize(
    ("attribute", "value", "told"),
    [
        (Attribute.SENSITIVE, False, ["CKA_SENSITIVE is false"]),
        (Attribute.EXTRACTABLE, True, ["CKA_EXTRACTABLE is true"]),
        (Attribute.SIGN, False, ["CKA_SIGN is false"]),
        (Attribute.ALWAYS_AUTHENTICATE, True, ["CKA_ALWAYS_AUTHENTICATE is true"]),
        (Attribute.ALWAYS_AUTHENTICATE, None, []),
        (Attribute.SENSITIVE, None, ["CKA_SENSITIVE is false"]),
    ],
)
def test_each_attribute_that_forbids_a_key_is_told(
    attribute: Attribute, told: list[str], *, value: bool | None
) -> None:
    class Key(dict[Attribute, bool | None]):
        def __getitem__(self, name: Attribute) -> bool:
            found = super().__getitem__(name)
            if found is None:
                raise AttributeTypeInvalid
            return found

    good = {
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.SIGN: True,
        Attribute.ALWAYS_AUTHENTICATE: False,
    }
    assert unfit(cast("Any", Key({**good, attribute: value}))) == told


def test_no_token_of_that_label_is_told_with_those_that_are_there(hsm: HSM) -> None:
    label = "mesh"
    error = hsm.failure(token_label=label)
    assert isinstance(error, BackendUnavailableError)
    assert "token_label 'mesh' with token_serial" in error.detail
    assert f"found 'bridge' ({hsm.token.serial}); is the HSM reachable" in error.detail


def test_a_store_of_tokens_that_is_gone_is_told_with_where_to_look(hsm: HSM) -> None:
    hsm.store.take_away()
    error = hsm.failure()
    assert isinstance(error, BackendUnavailableError)
    assert error.detail.startswith("CKR_GENERAL_ERROR, when the token was opened; see")


def test_two_tokens_of_one_label_need_a_serial_number(hsm: HSM) -> None:
    other = hsm.store.new_token()
    error = hsm.failure(token_serial=None)
    assert isinstance(error, BackendBrokenError)
    assert "expected one token, found 2: " in error.detail
    assert "choose one with token_serial" in error.detail
    assert other.serial in error.detail
    ca = hsm.build()
    ca.check(timeout=SECONDS)
    ca.close()


def test_a_shared_object_that_is_no_module_is_told(hsm: HSM, tmp_path: Path) -> None:
    source = tmp_path / "none.c"
    source.write_text("int nothing(void) { return 0; }\n")
    plain = builds.build_shared_object(install.compiler(), source)
    error = hsm.failure(module=str(plain))
    assert isinstance(error, BackendBrokenError)
    assert error.detail.startswith(f"{plain}: expected a PKCS#11 module of the HSM's")


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (None, 0, "cannot be read: No such file"),
        (b"\n", 0o600, "expected the token's user PIN on one line (found an empty"),
        (b"1234", 0o604, "such as mode 0600 (found 0604); run chmod 600 "),
        (b"1234\n\n", 0o600, "on one line, in UTF-8 (found another line"),
        (b"1234\t\n", 0o600, "a control character"),
        (b"\xef\xbb\xbf1234\n", 0o600, "the byte order mark of an editor"),
        (b"1234\0", 0o600, "a control character"),
        (b"\xff\xfe1\x002\x00", 0o600, "in UTF-8"),
    ],
)
def test_a_pin_file_that_went_bad_after_the_start_is_told(
    hsm: HSM, content: bytes | None, mode: int, says: str
) -> None:
    ca = hsm.build()
    hsm.pin.unlink()
    if content is not None:
        write_private(hsm.pin, content, mode)
    error = failure(ca)
    assert isinstance(error, BackendBrokenError)
    assert error.detail.startswith(f"{hsm.pin}: ")
    assert says in error.detail
    assert hsm.shim.calls("C_Login") == 0


def test_a_wrong_pin_is_tried_once_and_a_mended_file_once_more(hsm: HSM) -> None:
    ca = hsm.build()
    right = hsm.pin.read_bytes()
    hsm.pin.write_bytes(b"4321\n")
    for _ in range(2):
        with pytest.raises(BackendCredentialError, match="refused"):
            ca.check(timeout=SECONDS)
    error = failure(ca)
    assert "CKR_PIN_INCORRECT" in error.detail
    assert "4321" not in error.detail
    hsm.pin.write_bytes(b"4321\n")  # the same again, with other times
    assert isinstance(failure(hsm_again(hsm)), BackendCredentialError)
    assert hsm.shim.calls("C_Login") == 1
    # SoftHSM sets CKF_USER_PIN_COUNT_LOW now. The cause is known: the corrected PIN is
    # tried, although it has never succeeded here.
    hsm.pin.write_bytes(right)
    mended = hsm_again(hsm)
    mended.check(timeout=SECONDS)
    mended.close()
    assert hsm.shim.calls("C_Login") == 2


def test_a_mended_file_does_not_get_the_last_try_of_a_token(hsm: HSM) -> None:
    ca = hsm.build()
    right = hsm.pin.read_bytes()
    hsm.pin.write_bytes(b"4321\n")
    assert "CKR_PIN_INCORRECT" in failure(ca).detail
    hsm.pin.write_bytes(right)
    hsm.shim.put("C_GetTokenInfo", Fault.FLAGS, _FINAL_TRY)
    assert "is not tried" in failure(hsm_again(hsm)).detail
    assert hsm.shim.calls("C_Login") == 1


def hsm_again(hsm: HSM) -> PKCS11CA:
    """Build another object, as a restart does, with the file as it is."""
    content = hsm.pin.read_bytes()
    ca = hsm.build()
    hsm.pin.write_bytes(content)
    return ca


def test_a_mended_pin_file_takes_effect_in_the_object_that_was_refused(
    hsm: HSM,
) -> None:
    ca = hsm.build()
    ca.check(timeout=SECONDS)  # the right PIN is proven on this host
    ca.close()
    ca = hsm.build()
    right = hsm.pin.read_bytes()
    hsm.pin.write_bytes(b"43210\n")
    with pytest.raises(BackendCredentialError, match="refused"):
        ca.check(timeout=SECONDS)
    hsm.pin.write_bytes(right)
    ca.check(timeout=SECONDS)
    ca.close()
    assert hsm.shim.calls("C_Login") == 3


@pytest.mark.parametrize(
    ("flags", "kind", "says"),
    [
        (_PROTECTED, BackendBrokenError, "protected authentication path"),
        (_LOCKED, BackendCredentialError, "its user PIN is locked"),
        (_COUNT_LOW, BackendCredentialError, "has not succeeded here yet"),
    ],
)
def test_no_login_is_tried_where_the_token_says_so(
    hsm: HSM, flags: int, kind: type[BackendError], says: str
) -> None:
    hsm.shim.put("C_GetTokenInfo", Fault.FLAGS, flags)
    error = hsm.failure()
    assert isinstance(error, kind)
    assert says in error.detail
    assert hsm.shim.calls("C_Login") == 0


def test_a_counter_that_was_reset_is_seen_after_a_while(
    hsm: HSM, monkeypatch: pytest.MonkeyPatch
) -> None:
    hsm.shim.put("C_GetTokenInfo", Fault.FLAGS, _LOCKED)
    ca = hsm.build()
    for _ in range(2):
        with pytest.raises(BackendCredentialError, match="refused"):
            ca.check(timeout=SECONDS)
        hsm.shim.clear()
    assert hsm.shim.calls("C_Initialize") == 1
    monkeypatch.setattr(issuing_ca, "_REFUSED_SECONDS", 0.0)
    ca.check(timeout=SECONDS)
    ca.close()
    assert hsm.shim.calls("C_Initialize") == 2


def test_the_wait_for_the_login_of_another_process_is_not_that_of_the_module(
    hsm: HSM,
) -> None:
    scope = f"pkcs11:bridge:{hsm.token.serial}"
    with ThreadPoolExecutor(1) as threads:
        with Latch(hsm.folder / "latch.json").attempt(scope, b"another"):
            ca = hsm.build(start_timeout_seconds=1.0)
            check = threads.submit(ca.check, timeout=SECONDS)
            deadline = time.monotonic() + SECONDS
            while hsm.shim.calls("C_OpenSession") == 0:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(1.4)  # longer than the module may take
        check.result(SECONDS)
    ca.close()
    assert hsm.shim.calls("C_Initialize") == 1


def test_another_pin_is_first_tried_by_a_new_process(hsm: HSM) -> None:
    ca = hsm.build()
    ca.check(timeout=SECONDS)
    hsm.pin.write_bytes(b"43210\n")
    hsm.shim.put("C_FindObjectsInit", Fault.LOGOUT, times=1)
    with pytest.raises(BackendCredentialError, match="refused"):
        ca.check(timeout=SECONDS)
    ca.close()
    assert hsm.shim.calls("C_Initialize") == 2
    assert hsm.shim.calls("C_Login") == 2


def test_a_proven_pin_is_used_although_few_tries_are_left(hsm: HSM) -> None:
    for flags in (0, _COUNT_LOW):
        hsm.shim.put("C_GetTokenInfo", Fault.FLAGS, flags)
        ca = hsm.build()
        ca.check(timeout=SECONDS)
        ca.close()
    assert hsm.shim.calls("C_Login") == 2


def test_a_token_that_wants_a_login_wants_a_pin_file(hsm: HSM) -> None:
    error = hsm.failure(pin_file=None)
    assert isinstance(error, BackendBrokenError)
    assert "pin_file: expected the file of the user PIN" in error.detail


def test_more_sessions_than_the_token_allows_are_told(hsm: HSM) -> None:
    hsm.shim.put("C_GetTokenInfo", Fault.MAX_SESSIONS, 4)
    error = hsm.failure(sessions=4)
    assert isinstance(error, BackendBrokenError)
    assert "expected at most 3: token 'bridge' allows 4 sessions" in error.detail


def test_more_sessions_of_all_workers_than_the_token_allows_are_warned_of(
    hsm: HSM,
) -> None:
    hsm.shim.put("C_GetTokenInfo", Fault.MAX_SESSIONS, 4)
    ca = hsm.build(sessions=3)
    ca.check(timeout=SECONDS)
    ca.check(timeout=SECONDS)
    ca.close()
    (warning,) = hsm.warnings
    assert "2 signer processes" in warning
    assert "may open 8 sessions, and token 'bridge' allows 4" in warning


def test_a_module_that_cannot_lock_is_called_by_one_thread_at_a_time(
    hsm: HSM,
) -> None:
    hsm.shim.put("C_Initialize", Fault.RETURN_INSTEAD, 0xA, times=1)
    ca = hsm.build()

    def check_together() -> float:
        started = time.monotonic()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: ca.check(timeout=SECONDS), range(4)))
        return time.monotonic() - started

    hsm.shim.put("C_FindObjectsInit", Fault.SLEEP, 100)
    check_together()  # each call has a session now
    assert check_together() >= 0.4
    ca.close()
    assert hsm.shim.calls("C_Initialize") == 2


def test_a_module_that_locks_is_called_by_several_threads_at_a_time(hsm: HSM) -> None:
    ca = hsm.build()
    together = threading.Barrier(4, timeout=SECONDS)

    def check(_: int) -> None:
        together.wait()
        ca.check(timeout=SECONDS)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(check, range(4)))
        hsm.shim.put("C_FindObjectsInit", Fault.SLEEP, 3000, times=2)
        calls = [threads.submit(ca.check, timeout=SECONDS) for _ in range(2)]
        deadline = time.monotonic() + SECONDS
        while hsm.shim.hits("C_FindObjectsInit") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not any(call.done() for call in calls), "one waited for the other"
        for call in calls:
            call.result(SECONDS)
    ca.close()


def test_the_chain_is_read_at_the_start(hsm: HSM) -> None:
    (hsm.folder / "chain.pem").write_text("none")
    with pytest.raises(ConfigError, match=r"^issuing_cas\.seoul-1\.chain: .*pem"):
        hsm.build()
