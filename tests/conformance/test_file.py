"""The file backend under the conformance tests: each kind of key, each shape."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from bridge.spi import IssuingCA, PluginContext
from bridge.testing import IssuingCAConformance
from bridge_file import FileCA
from tests.support.parts.pki import Authority, bundle, new_chain, write_private

Options = tuple[Mapping[str, object], Path | None]


def as_key(folder: Path, ca: Authority) -> Options:
    write_private(folder / "key.pem", ca.key_pem())
    chain = folder / "chain.pem"
    chain.write_bytes(bundle(*ca.chain))
    return {"key": "key.pem"}, chain


def as_encrypted_key(folder: Path, ca: Authority) -> Options:
    options, chain = as_key(folder, ca)
    write_private(folder / "key.pem", ca.key_pem(b"correct horse"))
    write_private(folder / "passphrase", b"correct horse\n")
    return {**options, "passphrase_file": "passphrase"}, chain


def as_tls(folder: Path, ca: Authority) -> Options:
    write_private(folder / "tls.key", ca.key_pem(pkcs8=False))
    (folder / "tls.crt").write_bytes(bundle(*ca.chain))
    (folder / "ca.crt").write_bytes(bundle(ca.root))
    return {"tls_folder": str(folder)}, None


def as_cacerts(folder: Path, ca: Authority) -> Options:
    write_private(folder / "ca-key.pem", ca.key_pem(pkcs8=False))
    (folder / "ca-cert.pem").write_bytes(ca.pem)
    (folder / "cert-chain.pem").write_bytes(bundle(*ca.chain, ca.root))
    (folder / "root-cert.pem").write_bytes(bundle(ca.root))
    return {"cacerts_folder": str(folder)}, None


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("p256", as_key),
        ("p256", as_tls),
        ("p256", as_cacerts),
        ("p384", as_key),
        ("p384", as_encrypted_key),
        ("p521", as_tls),
        ("p521", as_key),
        ("ed25519", as_key),
        ("ed25519", as_encrypted_key),
        ("rsa2048", as_cacerts),
        ("rsa3072", as_tls),
        ("rsa4096", as_key),
    ],
)
class TestFileCA(IssuingCAConformance):
    @pytest.fixture
    def issuing_ca(self, tmp_path: Path, kind: str, shape: object) -> IssuingCA:
        assert callable(shape)
        options, chain = shape(tmp_path, new_chain(kind))
        context = PluginContext(name="seoul-1", base=tmp_path, chain=chain)
        return FileCA(options, context)
