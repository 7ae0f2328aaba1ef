"""The file backend under the conformance tests: each kind of key, each shape."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.spi import PluginContext
from bridge.testing import Backend, IssuingCAConformance
from bridge_file import FileCA
from tests.support.parts.pki import (
    Authority,
    bundle,
    key_pem,
    new_chain,
    new_key,
    write_private,
)

Options = tuple[Mapping[str, object], Path | None]
Shape = Callable[[Path, Authority], Options]
PASSPHRASE = b"correct horse"


def as_key(folder: Path, ca: Authority) -> Options:
    write_private(folder / "key.pem", ca.key_pem())
    chain = folder / "chain.pem"
    chain.write_bytes(bundle(*ca.chain))
    return {"key": "key.pem"}, chain


def as_encrypted_key(folder: Path, ca: Authority) -> Options:
    options, chain = as_key(folder, ca)
    write_private(folder / "key.pem", ca.key_pem(PASSPHRASE))
    write_private(folder / "passphrase", PASSPHRASE + b"\n")
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


@contextmanager
def other_key(file: Path, kind: str) -> Iterator[None]:
    """Put another key of this kind, which fits no certificate, into a file."""
    before = file.read_bytes()
    passphrase = PASSPHRASE if b"ENCRYPTED" in before else None
    file.write_bytes(key_pem(new_key(kind), passphrase))
    try:
        yield
    finally:
        file.write_bytes(before)


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
    def backend(self, tmp_path: Path, kind: str, shape: Shape) -> Backend:
        ca = new_chain(kind)
        options, chain = shape(tmp_path, ca)
        (key,) = [
            path for path in tmp_path.iterdir() if b"PRIVATE" in path.read_bytes()
        ]
        line = ca.key_pem().splitlines()[2]
        return Backend(
            factory=FileCA,
            options=options,
            context=PluginContext(name="seoul-1", base=tmp_path, chain=chain),
            secrets={"key": line, "passphrase": PASSPHRASE},
            other_key=lambda: other_key(key, kind),
            cannot={
                "stall": "the key is read when the CA is built, and signs in process",
                "away": "a key in memory is never away; an absent file is no CA at all",
                "restart": "the part is the file: there is nothing that restarts",
                "other_version": "a key in a file has no versions",
                "memory": "the serving process itself signs with the key",
            },
        )
