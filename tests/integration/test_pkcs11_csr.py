"""`python -m bridge_pkcs11.csr`, as an operator runs it, on SoftHSM."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from bridge.hierarchy.issuing_csr import read_issuing_key
from tests.support.parts.pkcs11_shim import Shim
from tests.support.parts.pki import write_private
from tests.support.parts.softhsm import KEY_LABEL, PIN, SoftHSM, Token

LIBC = "/lib/x86_64-linux-gnu/libc.so.6"


@dataclass(frozen=True)
class Desk:
    """A token, and a folder with its PIN file and the CSR."""

    folder: Path
    token: Token

    def run(self, **options: str) -> subprocess.CompletedProcess[str]:
        """Run the command; an option that is "" is left out."""
        given = {
            "module": str(self.token.store.module),
            "token_label": self.token.label,
            "key_label": KEY_LABEL,
            "pin_file": "pin",
            "out": "issuing.csr",
        } | options
        arguments = [
            part
            for name, value in given.items()
            if value
            for part in (f"--{name.replace('_', '-')}", value)
        ]
        return subprocess.run(
            [sys.executable, "-P", "-m", "bridge_pkcs11.csr", *arguments],
            cwd=self.folder,
            env=self.token.store.variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    @property
    def csr(self) -> Path:
        return self.folder / "issuing.csr"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    token = SoftHSM(tmp_path / "store").new_token()
    write_private(tmp_path / "pin", f"{PIN}\n".encode())
    return Desk(tmp_path, token)


@pytest.mark.parametrize(
    ("kind", "key_type", "bits"),
    [
        ("p256", ec.EllipticCurvePublicKey, 256),
        ("p384", ec.EllipticCurvePublicKey, 384),
        ("rsa2048", rsa.RSAPublicKey, 2048),
        ("rsa3072", rsa.RSAPublicKey, 3072),
        ("ed25519", ed25519.Ed25519PublicKey, None),
    ],
)
def test_a_key_is_made_in_the_token_and_signs_its_csr(
    desk: Desk, kind: str, key_type: type, bits: int | None
) -> None:
    done = desk.run(make_key=kind, key_id="0a", subject="CN=Issuing CA,O=Example")
    assert done.returncode == 0, done.stderr
    key = read_issuing_key(desk.csr)  # verifies the proof of possession
    assert isinstance(key, key_type)
    assert getattr(key, "key_size", None) == bits
    csr = x509.load_pem_x509_csr(desk.csr.read_bytes())
    assert csr.subject.rfc4514_string() == "CN=Issuing CA,O=Example"
    assert PIN not in done.stderr + done.stdout


def test_a_key_that_is_there_is_used_and_none_is_made(desk: Desk) -> None:
    made = desk.token.new_key("p384")
    done = desk.run(make_key="p256")
    assert done.returncode == 0, done.stderr
    assert "is there already, and none is made" in done.stderr
    assert read_issuing_key(desk.csr) == made
    csr = x509.load_pem_x509_csr(desk.csr.read_bytes())
    assert csr.subject.rfc4514_string() == f"CN={KEY_LABEL}"


def test_two_keys_of_a_label_are_told_apart_by_their_id(desk: Desk) -> None:
    desk.token.new_key(key_id="01")
    second = desk.token.new_key(key_id="02")
    done = desk.run()
    assert done.returncode == 1
    assert "expected one PRIVATE_KEY in token" in done.stderr
    assert "found 2: give --key-id as well" in done.stderr
    assert desk.run(key_id="02").returncode == 0
    assert read_issuing_key(desk.csr) == second


def test_nothing_is_overwritten(desk: Desk) -> None:
    desk.token.new_key()
    desk.csr.write_text("precious")
    done = desk.run()
    assert done.returncode == 1
    assert done.stderr == "issuing.csr: expected a new file: nothing is overwritten\n"
    assert desk.csr.read_text() == "precious"


def test_a_pin_that_is_refused_is_tried_once(desk: Desk) -> None:
    shim = Shim(desk.folder, desk.token.store.module, desk.token.store.variables)
    write_private(desk.folder / "wrong", b"9999\n")
    done = desk.run(pin_file="wrong", module=str(shim.module), make_key="p256")
    assert done.returncode == 1
    assert "wrong: token 'bridge' refused the PIN (CKR_PIN_INCORRECT)" in done.stderr
    assert "9999" not in done.stderr
    assert shim.calls("C_Login") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {},
            "expected one PRIVATE_KEY in token 'bridge', found 0: make it with --make",
        ),
        ({"key_label": "other"}, "key_label 'other': expected one PRIVATE_KEY"),
        (
            {"token_label": "none"},
            "no such token in .*; found 'bridge' \\([0-9a-f]{16}",
        ),
        ({"token_serial": "0"}, "with token_serial '0': no such token"),
        ({"module": "absent.so"}, "absent.so: .*cannot open shared object file"),
        ({"module": LIBC}, "libc.so.6: .*C_GetFunctionList"),
        ({"pin_file": "absent"}, "absent: cannot be read: No such file"),
        ({"pin_file": "open"}, "open: expected a file that only its owner can read"),
        ({"pin_file": "empty"}, "empty: expected .*PIN.* on one line"),
        ({"make_key": "p256", "out": "no/such.csr"}, "no/such.csr: cannot be written"),
    ],
)
def test_what_cannot_be_used_is_told_with_a_way_out(
    desk: Desk, options: dict[str, str], says: str
) -> None:
    write_private(desk.folder / "open", f"{PIN}\n".encode(), 0o644)
    write_private(desk.folder / "empty", b"\n")
    done = desk.run(**options)
    assert done.returncode == 1
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not desk.csr.exists()
