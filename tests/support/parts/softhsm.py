"""SoftHSM, a PKCS#11 token of this machine: stores, tokens, keys and their chains."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast

from asn1crypto.csr import CertificationRequest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_der_public_key,
    load_pem_private_key,
)

from bridge.x509.algorithm import algorithm_of
from bridge.x509.tbs import recorder_of
from tests.support.parts import install, token_keys
from tests.support.parts.pki import Authority, Key, bundle, write_private

PIN = "1234"
SO_PIN = "5678"
KEY_LABEL = "issuing"
KEY_ID = "01"
_numbers = count(1)


class SoftHSM:
    """A store of tokens in a folder of its own, with its own `softhsm2.conf`.

    Args:
        folder: Made if absent.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.module = install.softhsm_module()
        self.tokens = folder / "tokens"
        """A folder for each token."""
        self._away = folder / "tokens.away"
        self.tokens.mkdir(mode=0o700)
        self._conf = folder / "softhsm2.conf"
        self._conf.write_text(
            f"directories.tokendir = {self.tokens}\n"
            "objectstore.backend = file\n"
            "log.level = ERROR\n"
            "slots.removable = false\n"
        )

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs in its environment to find the tokens."""
        return {"SOFTHSM2_CONF": str(self._conf)}

    def new_token(self, label: str = "bridge", pin: str = PIN) -> "Token":
        """Make a token; several may have the same label."""
        before = set(self._serials())
        self._util("--init-token", "--free", "--label", label, "--pin", pin)
        (serial,) = set(self._serials()) - before
        return Token(self, label, serial, pin)

    def take_away(self) -> None:
        """Remove all tokens at once, as if the device had been unplugged."""
        self.tokens.rename(self._away)

    def bring_back(self) -> None:
        """Put the tokens back."""
        self._away.rename(self.tokens)

    def _serials(self) -> list[str]:
        shown = self._util("--show-slots")
        return re.findall(r"Serial number: +([0-9a-f]{16})", shown)

    def _util(self, *arguments: str) -> str:
        so_pin = ("--so-pin", SO_PIN) if "--init-token" in arguments else ()
        done = subprocess.run(
            ["softhsm2-util", *arguments, *so_pin],
            env=os.environ | self.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise token_keys.TokenError(f"softhsm2-util: {done.stdout}{done.stderr}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its user's PIN set."""

    store: SoftHSM
    label: str
    serial: str
    pin: str

    def new_key(
        self,
        kind: str = "p256",
        *,
        label: str = KEY_LABEL,
        key_id: str = KEY_ID,
        extractable: bool = False,
        with_public: bool = True,
    ) -> CertificateIssuerPublicKeyTypes:
        """Make a key pair inside the token; return the public key.

        Args:
            kind: As `pki.new_key` takes it.
            label: CKA_LABEL of both halves.
            key_id: CKA_ID of both halves, in hex.
            extractable: Whether the key may leave the token, which no CA's may.
            with_public: Whether the token keeps the public half too.
        """
        answer = self._order(
            "generate",
            kind=kind,
            key=label,
            id=key_id,
            extractable=extractable,
            public=with_public,
        )
        key = load_der_public_key(bytes.fromhex(answer["spki"]))
        return cast("CertificateIssuerPublicKeyTypes", key)

    def delete_key(self, label: str = KEY_LABEL) -> None:
        """Delete all that has the label."""
        self._order("delete", key=label)

    def rename_key(self, label: str, new: str) -> None:
        """Give all that has the label another one."""
        self._order("rename", key=label, new=new)

    def csr(
        self, public_key: CertificateIssuerPublicKeyTypes, *, label: str = KEY_LABEL
    ) -> bytes:
        """Have the key sign a CSR without names; PEM."""
        unsigned = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(
            recorder_of(public_key), algorithm_of(public_key).hash
        )
        csr = CertificationRequest.load(unsigned.public_bytes(Encoding.DER))
        tbs = unsigned.tbs_certrequest_bytes
        answer = self._order("sign", key=label, tbs=tbs.hex())
        csr["signature"] = bytes.fromhex(answer["signature"])
        signed = x509.load_der_x509_csr(csr.dump(force=True))
        if not signed.is_signature_valid:
            raise token_keys.TokenError("the token signed the CSR with another key")
        return signed.public_bytes(Encoding.PEM)

    def options(
        self, *, pin_file: Path, module: Path | None = None, **more: object
    ) -> dict[str, object]:
        """Return the options of a `pkcs11` issuing CA, for the key made by default.

        Args:
            pin_file: Written, with mode 0600.
            module: In place of SoftHSM itself.
            more: Further options, or others.
        """
        write_private(pin_file, f"{self.pin}\n".encode())
        return {
            "module": str(module or self.store.module),
            "token_label": self.label,
            "token_serial": self.serial,
            "key_label": KEY_LABEL,
            "key_id": KEY_ID,
            "pin_file": str(pin_file),
            "environment": self.store.variables,
            **more,
        }

    def _order(self, do: str, **values: object) -> Mapping[str, str]:
        return token_keys.order(
            os.environ | self.store.variables,
            do=do,
            module=str(self.store.module),
            serial=self.serial,
            pin=self.pin,
            **values,
        )


def write_chain(
    public_key: CertificateIssuerPublicKeyTypes, hierarchy: Path, chain: Path
) -> Authority:
    """Have the intermediate of a throwaway hierarchy sign the key; write the chain.

    Args:
        public_key: Of the issuing CA; the private half is in a token.
        hierarchy: What `meshca hierarchy throwaway` wrote.
        chain: The file to write: issuing CA first, then the intermediate.

    Returns:
        The issuing CA. Its key here is a stand-in that signs nothing.
    """
    root, intermediate, like = (
        x509.load_pem_x509_certificates((hierarchy / name).read_bytes())[0]
        for name in ("root.pem", "intermediate.pem", "issuing.pem")
    )
    key_file = (hierarchy / "intermediate.key").read_bytes()
    key = cast("Key", load_pem_private_key(key_file, password=None))
    stand_in = cast("Key", recorder_of(public_key))
    constraints = like.extensions.get_extension_for_class(x509.NameConstraints)
    authority = Authority(intermediate, key, (Authority(root, key),)).issue_ca(
        f"issuing CA in a token {next(_numbers)}",
        key=stand_in,
        path_length=0,
        constraints=constraints.value,
        not_after=like.not_valid_after_utc,
    )
    chain.write_bytes(bundle(*authority.chain))
    return authority
