"""Officers sign the transcript with keys in a token and in a file."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.harness.real_process import MESHCA
from tests.support.parts.ceremonies import tree
from tests.support.parts.pki import key_pem, new_key, public_pem, write_private
from tests.support.parts.softhsm import SoftHSM

Done = subprocess.CompletedProcess[str]


def test_a_token_and_a_file_make_a_quorum(tmp_path: Path) -> None:
    token = SoftHSM(tmp_path / "hsm").new_token("ada")
    public = token.new_key(label="officer").public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "ada.pem").write_bytes(public)
    grace = new_key("ed25519")
    (tmp_path / "grace.pem").write_bytes(public_pem(grace))
    write_private(tmp_path / "grace.key", key_pem(grace, b"secret"))
    officers = [
        {"name": name, "role": "officer", "public_key": f"{name.lower()}.pem"}
        for name in ("Ada", "Grace")
    ]
    content = {**tree(), "officers": officers, "quorum": 2}
    (tmp_path / "hierarchy.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def meshca(*arguments: str, secret: str = "") -> Done:
        pins = {"MESHCA_PIN": secret} if secret else {}
        return subprocess.run(
            [str(MESHCA), "hierarchy", *arguments],
            cwd=tmp_path,
            env={**os.environ, **token.store.variables, **pins},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    now = datetime.now(UTC).isoformat()
    given = ("hierarchy.yaml", "root", "--out", "out", "--make-key", "--time", now)
    done = meshca("sign", *given)
    assert done.returncode == 0, done.stderr
    signs = ("transcript", "sign", "hierarchy.yaml", "out")
    in_token = ("--key", "pkcs11:token=ada;object=officer")
    module = ("--module", str(token.store.module))
    done = meshca(*signs, "Ada", *in_token, *module, secret="0000")  # noqa: S106
    assert done.returncode == 1
    assert "refused the PIN" in done.stderr
    done = meshca(*signs, "Grace", *in_token, *module, secret=token.pin)
    assert "the key is not the one that the hierarchy file has for Grace" in done.stderr
    done = meshca(*signs, "Ada", *in_token, *module, secret=token.pin)
    assert "Quorum not met: 1 of 2" in done.stdout, done.stderr
    done = meshca(*signs, "Grace", "--key", "grace.key")
    assert "the passphrase of grace.key is needed" in done.stderr
    done = meshca(*signs, "Grace", "--key", "grace.key", secret="secret")  # noqa: S106
    assert "Quorum met: 2 of 2" in done.stdout, done.stderr
    done = meshca("transcript", "verify", "hierarchy.yaml", "out")
    assert done.returncode == 0, done.stderr
    assert "signed by Ada, Grace" in done.stdout
