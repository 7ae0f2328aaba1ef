"""The three shapes in which people have an issuing CA's key on disk."""

from collections.abc import Callable, Mapping
from pathlib import Path

from bridge.spi import PluginContext
from bridge_file import FileCA
from tests.support.parts.pki import Authority, bundle, write_private

SHAPES = ("key", "tls", "cacerts")
OPTIONS = {
    "key": {"key": "key.pem"},
    "tls": {"tls_folder": "."},
    "cacerts": {"cacerts_folder": "."},
}
KEY_FILES = {"key": "key.pem", "tls": "tls.key", "cacerts": "ca-key.pem"}
CERTIFICATE_FILES = {"key": "chain.pem", "tls": "tls.crt", "cacerts": "ca-cert.pem"}


def write_shape(
    folder: Path, shape: str, ca: Authority, passphrase: bytes | None = None
) -> None:
    """Write an issuing CA into `folder`, which is made if absent."""
    folder.mkdir(exist_ok=True)
    write_private(folder / KEY_FILES[shape], ca.key_pem(passphrase))
    if shape == "cacerts":
        (folder / "ca-cert.pem").write_bytes(ca.pem)
        (folder / "cert-chain.pem").write_bytes(bundle(*ca.chain, ca.root))
        (folder / "root-cert.pem").write_bytes(bundle(ca.root))
        return
    (folder / CERTIFICATE_FILES[shape]).write_bytes(bundle(*ca.chain))
    if shape == "tls":
        (folder / "ca.crt").write_bytes(bundle(ca.root))


def open_shape(
    folder: Path,
    shape: str,
    options: Mapping[str, object] | None = None,
    *,
    warn: Callable[[str], None] = lambda _: None,
) -> FileCA:
    """Build the issuing CA that lies in `folder`, with more options."""
    chain = Path("chain.pem") if shape == "key" else None
    context = PluginContext(name="seoul-1", base=folder, chain=chain, warn=warn)
    return FileCA({**OPTIONS[shape], **(options or {})}, context)
