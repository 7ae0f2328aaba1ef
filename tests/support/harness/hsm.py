"""A served bridge with its issuing keys in tokens, behind a module with faults."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.clients.callers import Callers
from tests.support.harness import processes
from tests.support.harness.recorded import require_all_on_record
from tests.support.harness.workers import Supervised
from tests.support.parts import softhsm
from tests.support.parts.pkcs11_shim import Fault, Shim
from tests.support.parts.softhsm import SoftHSM, Token

_SIGNER = b"bridge_pkcs11.worker"
_CKR_DEVICE_ERROR = 0x30


@dataclass(frozen=True, slots=True)
class Backend:
    """An issuing CA of the bridge: its token, and the module in front of it."""

    name: str
    store: SoftHSM
    token: Token
    shim: Shim
    pin_file: Path

    @classmethod
    def make(cls, name: str, folder: Path) -> "Backend":
        """Make a store with one token, and a module of its own for it."""
        folder.mkdir(parents=True)
        store = SoftHSM(folder / "store")
        shim = Shim(folder, store.module, store.variables)
        return cls(name, store, store.new_token(name), shim, folder / "pin")

    def refuse(self) -> None:
        """Have each signature refused, until `shim.clear`."""
        self.shim.put("C_Sign", Fault.RETURN_INSTEAD, _CKR_DEVICE_ERROR)

    def stall(self) -> None:
        """Have each signature hang, until `shim.clear`."""
        self.shim.put("C_Sign", Fault.HANG)


class HSMBridge(Supervised):
    """See `Supervised`. Its issuing CAs are equal, and in the order of `names`.

    Args:
        folder: New.
        workers: How many.
        names: Of the issuing CAs; each has a token in a store of its own.
        kind: Of the keys.
        options: More options of each issuing CA.
        more: See `Bridge`.
    """

    def __init__(
        self,
        folder: Path,
        workers: int = 1,
        *,
        names: Sequence[str] = ("hsm-1",),
        kind: str = "p256",
        options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(folder, workers, fronts=("istio", "linkerd"), **more)
        self.backends = {
            name: Backend.make(name, folder / "backends" / name) for name in names
        }
        sections = {
            name: self._section(backend, kind, options or {})
            for name, backend in self.backends.items()
        }
        self.change(issuing_cas=sections, issuance__issuing_cas=list(names))

    @property
    def only(self) -> Backend:
        """The only backend."""
        (found,) = self.backends.values()
        return found

    def signers(self) -> list[int]:
        """Return the signer processes."""
        return [
            pid
            for pid in processes.descendants(self.pid)
            if _SIGNER in processes.command(pid)
        ]

    def stop_signers(self, backend: Backend) -> None:
        """Stop the signer processes of one backend (SIGSTOP).

        Raises:
            AssertionError: There is none.
        """
        module = str(backend.pin_file.parent)
        stopped = [
            pid
            for pid in self.signers()
            if module in Path(f"/proc/{pid}/maps").read_text()
        ]
        assert stopped, f"no signer has the module of {module}"
        for pid in stopped:
            processes.pause(pid)

    def kill_signers(self, number: int = signal.SIGKILL) -> list[int]:
        """Send a signal to all signer processes; return them."""
        found = self.signers()
        for pid in found:
            os.kill(pid, number)
        return found

    def require_all_on_record(self, callers: Callers) -> None:
        """See `recorded.require_all_on_record`."""
        require_all_on_record(self, callers)

    def _section(
        self, backend: Backend, kind: str, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        chain = self.folder / f"{backend.name}.pem"
        public_key = backend.token.new_key(kind)
        softhsm.write_chain(public_key, self.folder / "hierarchy", chain)
        chosen = backend.token.options(
            pin_file=backend.pin_file, module=backend.shim.module, **options
        )
        return {"plugin": "pkcs11", "chain": chain.name, "options": chosen}


def add_equal_hsm(bridge: Supervised, name: str, order: Sequence[str]) -> Backend:
    """Add an issuing CA with its key in a token, and declare it an equal of another.

    Args:
        bridge: Not running. It has the other one.
        name: Of the new one.
        order: The names of both.
    """
    backend = Backend.make(name, bridge.folder / name)
    chain = bridge.folder / f"{name}.pem"
    softhsm.write_chain(backend.token.new_key(), bridge.folder / "hierarchy", chain)
    options = backend.token.options(
        pin_file=backend.pin_file, module=backend.shim.module
    )
    (other,) = set(order) - {name}
    bridge.change(
        **{
            f"issuing_cas__{name}": {
                "plugin": "pkcs11",
                "chain": chain.name,
                "options": options,
            },
            f"issuing_cas__{other}__assurance": "hsm",
        },
        issuance__issuing_cas=list(order),
        # A call whose answer is lost is sent to the other one, too.
        issuance__second_certificate=True,
    )
    return backend
