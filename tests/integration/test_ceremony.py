"""A ceremony on two machines: root and regional CA in tokens, and a bridge below."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.errors import BackendError
from bridge.hierarchy.ceremony import Ceremony, sign, verified
from bridge.hierarchy.keys import opened
from bridge.hierarchy.output import Output
from bridge.hierarchy.transcript import read
from bridge.spi import Signer
from tests.support.harness.real_process import MESHCA
from tests.support.harness.workers import Supervised
from tests.support.parts.ceremonies import loaded, tree
from tests.support.parts.pkcs11_shim import Fault, Shim
from tests.support.parts.pki import write_private
from tests.support.parts.softhsm import SoftHSM, Token
from tests.support.parts.vault import Server

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Rooms:
    """A folder that is carried between two machines, each with an HSM of its own."""

    folder: Path
    offline: Token
    """Of the root's key."""
    online: Token
    """Of the regional CA's key."""

    def meshca(self, *arguments: str, token: Token, pin: str = "") -> Done:
        """Run `meshca hierarchy` where a token is."""
        given = {"MESHCA_PIN": pin or token.pin}
        return subprocess.run(
            [str(MESHCA), "hierarchy", *arguments],
            cwd=self.folder,
            env={**os.environ, **token.store.variables, **given},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def sign(self, name: str, *more: str, token: Token, pin: str = "") -> Done:
        """Sign a CA, with the time of now."""
        now = datetime.now(UTC).isoformat()
        module = str(token.store.module)
        options = ("--out", "out", "--time", now, "--module", module)
        arguments = ("sign", "hierarchy.yaml", name, *options, *more)
        return self.meshca(*arguments, token=token, pin=pin)

    def csr(self) -> str:
        """Make the regional CA's key and its CSR, where its token is."""
        pin = self.folder / "pin"
        write_private(pin, f"{self.online.pin}\n".encode())
        subprocess.run(
            [
                *(sys.executable, "-P", "-m", "bridge_pkcs11.csr"),
                *("--module", str(self.online.store.module)),
                *("--token-label", "online", "--key-label", "eu"),
                *("--make-key", "p256", "--pin-file", str(pin), "--out", "eu.csr"),
            ],
            cwd=self.folder,
            env={**os.environ, **self.online.store.variables},
            check=True,
            capture_output=True,
            timeout=120,
        )
        return "eu.csr"

    def certificates(self) -> list[str]:
        """Return the folders of certificates, and what a run left unfinished."""
        out = self.folder / "out"
        if not out.exists():
            return []
        return sorted(path.name for path in out.iterdir() if path.is_dir())


def in_token(label: str, key: str, algorithm: str = "p256") -> Mapping[str, Any]:
    uri = f"pkcs11:token={label};object={key}"
    return {"backend": "pkcs11", "uri": uri, "algorithm": algorithm}


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    folder = tmp_path / "carried"
    folder.mkdir()
    content = tree(
        root={"key": in_token("offline", "root", "p384")},
        eu={"key": in_token("online", "eu")},
    )
    (folder / "hierarchy.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Rooms(
        folder,
        SoftHSM(tmp_path / "hsm").new_token("offline"),
        SoftHSM(tmp_path / "other-hsm").new_token("online", "9876"),
    )


def test_a_chain_from_two_tokens_serves_a_bridge(rooms: Rooms, tmp_path: Path) -> None:
    done = rooms.sign("root", "--make-key", token=rooms.offline)
    assert done.returncode == 0, done.stderr
    done = rooms.sign("eu", "--csr", rooms.csr(), token=rooms.offline)
    assert done.returncode == 0, done.stderr
    # The regional key is in the other HSM: there the issuing CA is signed.
    done = rooms.sign("prod", "--make-key", token=rooms.online)
    assert done.returncode == 0, done.stderr
    arguments = ("verify", "hierarchy.yaml", "--out", "out")
    done = rooms.meshca(*arguments, token=rooms.offline)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("openssl verify") == 3
    entries = read(rooms.folder / "out/transcript.jsonl").entries
    devices = {one.command: one.hsm.serial for one in entries if one.hsm}
    assert devices == {
        "sign root": rooms.offline.serial,
        "sign eu": rooms.offline.serial,
        "sign prod": rooms.online.serial,
    }
    assert rooms.online.pin not in done.stdout + done.stderr
    require_served(rooms, Supervised(tmp_path / "served"))


def require_served(rooms: Rooms, bridge: Supervised) -> None:
    """Put the chain in place of the bridge's own: it checks, serves and issues."""
    chain = (rooms.folder / "out/prod/chain.pem").read_bytes()
    bridge.chain.write_bytes(chain)
    bridge.roots.write_bytes((rooms.folder / "out/root/certificate.pem").read_bytes())
    key = (rooms.folder / "keys/prod.key").read_bytes()
    (bridge.folder / "hierarchy/issuing.key").write_bytes(key)
    checked = bridge.run("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with bridge:
        _, *above = bridge.ask().cert_chain
    assert "".join(above).encode().startswith(chain)


def test_what_the_hsm_refuses_leaves_no_certificate(rooms: Rooms) -> None:
    token = rooms.offline
    done = rooms.sign("root", "--make-key", token=token, pin="0000")
    assert done.returncode == 1
    assert "token 'offline' refused the PIN (CKR_PIN_INCORRECT)" in done.stderr
    done = rooms.sign("root", token=token)
    assert "expected one PRIVATE_KEY in token 'offline', found 0: make" in done.stderr
    token.new_key("p384", label="root", extractable=True)
    done = rooms.sign("root", token=token)
    assert "CKA_EXTRACTABLE is true" in done.stderr
    token.store.take_away()
    done = rooms.sign("root", token=token)
    assert "is the HSM plugged in and reachable? Then run the command" in done.stderr
    assert done.returncode == 1
    assert rooms.certificates() == []


def test_without_a_person_the_time_and_the_pin_are_asked_for(rooms: Rooms) -> None:
    token = rooms.offline
    arguments = ("sign", "hierarchy.yaml", "root", "--out", "out")
    done = rooms.meshca(*arguments, token=token)
    assert "--time: expected the time that you read elsewhere" in done.stderr
    now = datetime.now(UTC)
    hour = (now - timedelta(hours=1)).isoformat()
    done = rooms.meshca(*arguments, "--time", hour, token=token)
    assert "the clock of this machine says" in done.stderr
    done = rooms.meshca(*arguments, "--time", now.isoformat(), token=token)
    assert "root: expected the PKCS#11 module of the HSM's vendor: give" in done.stderr
    done = rooms.sign("root", token=token, pin=" ")
    assert "refused the PIN" in done.stderr
    assert rooms.certificates() == []


_SIGNS = """
import sys
from contextlib import contextmanager
from pathlib import Path
from bridge.hierarchy.ceremony import Ceremony, sign
from bridge.hierarchy.keys import opened
from bridge.hierarchy.output import Output
from bridge.hierarchy.schema import load
loaded = load(Path("hierarchy.yaml"))
pin, module = sys.argv[1:]
@contextmanager
def keys(name):
    key = loaded.file.cas[name].key
    with opened(name, key, lambda _: pin, module=Path(module), make=True) as signer:
        print("logged in", flush=True)
        sys.stdin.readline()
        yield signer
output = Output(Path("out"))
sign(Ceremony(loaded=loaded, output=output, keys=keys, operator="ada"), "root")
"""
_REMOVED, _CLOSED = 0x32, 0xB3
_FAULTS = {
    "it is unplugged": ("C_SignInit", Fault.RETURN_INSTEAD, _REMOVED),
    "it signs, and is unplugged": ("C_Sign", Fault.RETURN_AFTER, _REMOVED),
    "it loses the session": ("C_SignInit", Fault.RETURN_INSTEAD, _CLOSED),
    "it signs something else": ("C_Sign", Fault.WRONG_BYTES, 0),
    "its module crashes": ("C_SignInit", Fault.CRASH, 0),
}


def test_an_hsm_that_is_lost_after_the_login_leaves_nothing(
    rooms: Rooms, tmp_path: Path
) -> None:
    token = rooms.offline
    shim = Shim(tmp_path, token.store.module, token.store.variables)
    for name, fault in _FAULTS.items():
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SIGNS, token.pin, str(shim.module)],
            cwd=rooms.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "logged in\n", name
            shim.put(*fault)
            _, told = process.communicate("\n", timeout=120)
        assert shim.hits(fault[0]) == 1, name
        shim.clear()
        assert process.returncode != 0, name
        assert "CRASH" in fault[1].name or "Backend" in told, name
        assert token.pin not in told
        assert rooms.certificates() == [], name
    done = rooms.sign("root", token=token)
    assert done.returncode == 0, done.stderr
    entries = read(rooms.folder / "out/transcript.jsonl").entries
    intents = [one.command for one in entries[:-1]]
    assert intents == ["sign root, before the signature"] * (len(_FAULTS) + 1)


def test_a_key_in_transit_signs_with_the_token_of_a_person(tmp_path: Path) -> None:
    with Server(tmp_path / "server", storage="inmem", tls=True) as server:
        server.api.post("sys/mounts/ceremony", type="transit")
        key = {
            "backend": "vault-transit",
            "address": server.url,
            "ca_file": str(server.ca_file),
            "mount": "ceremony",
            "name": "eu",
            "algorithm": "p256",
        }
        file = loaded(tree(eu={"key": key}), tmp_path)
        tokens = [server.root_token]

        @contextmanager
        def keys(name: str) -> Iterator[Signer]:
            location = file.file.cas[name].key
            with opened(name, location, lambda _: tokens[-1], make=True) as signer:
                yield signer

        output = Output(tmp_path / "out")
        ceremony = Ceremony(loaded=file, output=output, keys=keys, operator="ada")
        sign(ceremony, "root")
        tokens.append("no token")
        with pytest.raises(BackendError, match="policies do not permit the call"):
            sign(ceremony, "eu")
        assert output.names() == ("root",)
        tokens.append(server.root_token)
        sign(ceremony, "eu")
        # The version that was certified is pinned; a rotation changes nothing.
        server.api.post("ceremony/keys/eu/rotate")
        server.seal()
        with pytest.raises(BackendError, match="Vault"):
            sign(ceremony, "prod")
        assert output.names() == ("eu", "root")
        server.unseal()
        sign(ceremony, "prod")
        found = [*verified(file.file, output, datetime.now(UTC))]
        assert [(one.name, one.problems) for one in found] == [
            (name, ()) for name in ("root", "eu", "prod")
        ]
        transcript = (tmp_path / "out/transcript.jsonl").read_text()
        assert server.root_token not in transcript
