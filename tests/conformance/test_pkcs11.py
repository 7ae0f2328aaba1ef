"""The backend `pkcs11` under the conformance tests, on SoftHSM: each kind of key.

A module of the tests stands between plugin and SoftHSM, for what SoftHSM cannot do.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.hierarchy.export import write
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.spi import Latch, PluginContext
from bridge.spiffe import TrustDomain
from bridge.testing import Backend, IssuingCAConformance
from bridge_pkcs11 import PKCS11CA
from tests.support.parts.pkcs11_shim import Fault, Shim
from tests.support.parts.softhsm import KEY_LABEL, SoftHSM, Token, write_chain


@dataclass
class HSM:
    """A token with an issuing key, behind a module that puts faults into it."""

    store: SoftHSM
    token: Token
    shim: Shim
    kind: str

    @contextmanager
    def stalled(self) -> Iterator[None]:
        for function in ("C_Sign", "C_SignInit", "C_FindObjectsInit", "C_OpenSession"):
            self.shim.put(function, Fault.HANG)
        try:
            yield
        finally:
            self.shim.clear()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.store.take_away()
        try:
            yield
        finally:
            self.store.bring_back()

    def restart(self) -> None:
        """Have sessions and login be gone, as after a restart of an HSM."""
        self.shim.put("C_SignInit", Fault.CLOSE_SESSIONS, times=1)

    @contextmanager
    def other_key(self) -> Iterator[None]:
        """Have another key under the same label, and the right one under another."""
        self.token.rename_key(KEY_LABEL, "set-aside")
        self.token.new_key(self.kind)
        try:
            yield
        finally:
            self.token.delete_key()
            self.token.rename_key("set-aside", KEY_LABEL)


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa2048", "ed25519"])
class TestPKCS11CA(IssuingCAConformance):
    @pytest.fixture
    def backend(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> Backend:
        store = SoftHSM(tmp_path / "softhsm")
        for name, value in store.variables.items():
            monkeypatch.setenv(name, value)
        token = store.new_token(pin=secrets.token_hex(8))
        public_key = token.new_key(kind)
        domains = (TrustDomain("corp.example"),)
        write(make(ThrowawaySpec(trust_domains=domains)), tmp_path / "hierarchy")
        chain = tmp_path / "chain.pem"
        write_chain(public_key, tmp_path / "hierarchy", chain)
        shim = Shim(tmp_path, store.module, store.variables)
        hsm = HSM(store, token, shim, kind)
        return Backend(
            factory=PKCS11CA,
            options=token.options(pin_file=tmp_path / "pin", module=shim.module),
            context=PluginContext(
                name="seoul-hsm",
                base=tmp_path,
                chain=chain,
                latch=Latch(tmp_path / "latch.json"),
            ),
            secrets={"pin": token.pin.encode()},
            stall=hsm.stalled,
            away=hsm.away,
            restart=hsm.restart,
            other_key=hsm.other_key,
            cannot={"other_version": "a key in a token has no versions"},
        )
