"""Setup's steps for `vault-transit`: key, CSR, policy."""

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.sdk import CAPublicKey
from bridge_vault.options import TransitOptions
from bridge_vault.rights import transit_rights
from bridge_vault.setup.access import EngineSetup
from bridge_vault.setup.plan import PlanItem, Step
from bridge_vault.transit import key_problem

KEYS: Mapping[str, str] = {
    "p256": "ecdsa-p256",
    "p384": "ecdsa-p384",
    "rsa2048": "rsa-2048",
    "rsa3072": "rsa-3072",
    "rsa4096": "rsa-4096",
    "ed25519": "ed25519",
}
"""The kinds of keys, and how Transit calls them."""
_CLOSED = {"exportable": False, "allow_plaintext_backup": False}
"""Once true, they stay true."""


class TransitSetup(EngineSetup[TransitOptions]):
    """The steps of `vault-transit`."""

    def steps(self) -> Sequence[Step]:
        """Return the steps, in order."""
        access, options = self.access, self.options
        rights = transit_rights(options.mount, options.key)
        return [
            lambda: access.mount(options.mount, "transit", shown=()),
            access.header,
            self._key,
            self._csr,
            self._certificate,
            lambda: access.write_policy(rights),
            access.method,
            lambda: access.login_role(self.login_role),
        ]

    @property
    def _path(self) -> str:
        return f"{self.options.mount}/keys/{self.options.key}"

    def _found(self) -> Mapping[str, Any] | None:
        return self.access.vault.read(self._path)

    def _key(self) -> PlanItem:
        what, found = f"key {self._path}", self._found()
        if found is None:
            if self.chain:
                note = "the certificate of chain is of a key that is not there"
                return PlanItem(what=what, state="problem", note=note)
            fields = {"type": KEYS[self.key], **_CLOSED}
            return PlanItem(
                what=what,
                state="make",
                note=f"{self.key}, made inside; it never leaves the server",
                act=lambda: self.access.vault.write(self._path, fields),
            )
        if opened := [name for name in _CLOSED if found.get(name)]:
            note = f"{' and '.join(opened)} cannot be taken back: expected another key"
            return PlanItem(what=what, state="problem", note=note)
        wanted = {"deletion_allowed": False}
        return self.access.made_or_changed(
            what,
            found,
            wanted,
            lambda: self.access.vault.write(f"{self._path}/config", wanted),
        )

    def _is_own(self, key: CAPublicKey) -> bool:
        return not key_problem(self._found() or {}, self.options.key_version, key)

    def _csr(self) -> PlanItem:
        return self.access.csr(
            self.csr, self._is_own, self._new_csr, is_signed=bool(self.chain)
        )

    def _new_csr(self) -> str:
        fields = {"version": self.options.key_version}
        return str(self.access.vault.write(f"{self._path}/csr", fields)["csr"])

    def _certificate(self) -> PlanItem:
        what = f"certificate {self.access.ca.context.chain}"
        if not self.chain:
            note = (
                f"have {self.csr} signed by the CA above, and put the certificate and "
                "its intermediates into the file"
            )
            return PlanItem(what=what, state="wait", note=note)
        key = self.chain[0].public_key()
        version = self.options.key_version
        problem = f"expected a CA's key (found {type(key).__name__})"
        if isinstance(key, CAPublicKey):
            problem = key_problem(self._found() or {}, version, key)
        state = "problem" if problem else "right"
        return PlanItem(what=what, state=state, note=problem)  # type: ignore[arg-type]
