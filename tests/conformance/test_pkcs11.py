"""The PKCS#11 backend under the conformance tests, with SoftHSM: each kind of key."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from bridge.spi import Latch, PluginContext
from bridge.testing import Backend, IssuingCAConformance
from bridge.x509.tbs import recorder_of
from bridge_pkcs11 import PKCS11CA
from tests.support.parts.pkcs11_shim import Fault, Shim
from tests.support.parts.pki import Key, bundle, new_chain
from tests.support.parts.softhsm import SoftHSM

PIN = "correct-horse-7"


@contextmanager
def harmed(shim: Shim, function: str, fault: Fault) -> Iterator[None]:
    shim.put(function, fault)
    try:
        yield
    finally:
        shim.clear()


@contextmanager
def away(store: SoftHSM) -> Iterator[None]:
    store.take_away()
    try:
        yield
    finally:
        store.bring_back()


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa2048", "rsa3072", "ed25519"])
class TestPKCS11CA(IssuingCAConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path, kind: str) -> Backend:
        store = SoftHSM(tmp_path / "store")
        token = store.new_token(pin=PIN)
        shim = Shim(tmp_path, store.module, store.variables)
        stand_in = cast("Key", recorder_of(token.new_key(kind)))
        intermediate = new_chain().above[0]
        issuing = intermediate.issue_ca("in a token", key=stand_in, path_length=0)
        chain = tmp_path / "chain.pem"
        chain.write_bytes(bundle(*issuing.chain))
        return Backend(
            factory=PKCS11CA,
            options=token.options(pin_file=tmp_path / "pin", module=shim.module),
            context=PluginContext(
                name="seoul-1",
                base=tmp_path,
                chain=chain,
                latch=Latch(tmp_path / "latch.json"),
            ),
            secrets={"PIN": PIN.encode()},
            stall=lambda: harmed(shim, "C_Sign", Fault.HANG),
            away=lambda: away(store),
            restart=lambda: shim.put("C_SignInit", Fault.CLOSE_SESSIONS, times=1),
            other_key=lambda: harmed(shim, "C_Sign", Fault.WRONG_BYTES),
            cannot={"other_version": "a key in a PKCS#11 token has no versions"},
        )
