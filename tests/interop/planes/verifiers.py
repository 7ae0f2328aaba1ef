"""Asks each data plane's verifier for its verdict on many chains.

`openssl` is a handshake of Python's `ssl`, `go` is crypto/x509 and a handshake of
crypto/tls, `boringssl` is a handshake of Envoy, `ambient` and `linkerd` are rustls with
the algorithms of ztunnel and of linkerd2-proxy. Each is given the leaf and what is
above it, the anchors, and the time of the machine.
"""

import ssl
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from bridge.x509.pem import encode_certificate
from tests.interop.constraints.chains import run_go_verifier
from tests.interop.planes.certificates import Chain
from tests.support.clients.handshake import End, RefusedError, shake_hands
from tests.support.parts import builds
from tests.support.parts.pki import key_pem

Verdicts = dict[str, str]
"""Why each chain is rejected, by its name; empty where it is accepted."""
_GO_SERVER, _GO_CLIENT = 1, 2
CRATE = Path(__file__).parents[1] / "linkerd_verifier"


def write(chains: Mapping[str, tuple[Chain, str]], folder: Path) -> None:
    """Write `NAME.chain`, `NAME.roots` and `NAME.key` of each chain.

    Args:
        chains: Each chain with the text of its trust anchors in PEM.
        folder: For the files.
    """
    for name, (chain, roots) in chains.items():
        shown = (chain.leaf, chain.issuing, chain.intermediate)
        text = "".join(encode_certificate(one) for one in shown)
        (folder / f"{name}.chain").write_text(text)
        (folder / f"{name}.roots").write_text(roots)
        (folder / f"{name}.key").write_bytes(key_pem(chain.key))


def ask_openssl(names: list[str], folder: Path) -> Verdicts:
    """Ask OpenSSL in both roles, at the security level that Python and Debian have.

    The first chain is shown by the server that asks for a certificate.
    """
    return {name: _openssl(name, names[0], folder) for name in names}


def _openssl(name: str, shown: str, folder: Path) -> str:
    asking, serving = (
        ssl.SSLContext(end)
        for end in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)
    )
    asking.check_hostname = False
    serving.load_cert_chain(folder / f"{shown}.chain", folder / f"{shown}.key")
    serving.verify_mode = ssl.CERT_REQUIRED
    try:
        for end in (asking, serving):
            end.load_verify_locations(folder / f"{name}.roots")
        for client, server in (
            (asking, showing(name, folder, ssl.PROTOCOL_TLS_SERVER)),
            (showing(name, folder, ssl.PROTOCOL_TLS_CLIENT), serving),
        ):
            shake_hands(End.of(ssl, client), End.of(ssl, server, server_side=True))
    except (RefusedError, ssl.SSLError) as error:
        return str(error)
    return ""


def showing(name: str, folder: Path, end: int) -> ssl.SSLContext:
    """Return a client or server that shows a chain, and verifies nothing."""
    context = ssl.SSLContext(end)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.load_cert_chain(folder / f"{name}.chain", folder / f"{name}.key")
    return context


def ask_go(names: list[str], folder: Path, now: datetime) -> Verdicts:
    """Ask Go's crypto/x509 in both roles, and a TLS server for a client's chain."""
    asked = []
    for name in names:
        leaf, *above = _blocks((folder / f"{name}.chain").read_text())
        asked.append(
            {
                "name": name,
                "root": (folder / f"{name}.roots").read_text(),
                "intermediates": above,
                "leaf": leaf,
                "key": (folder / f"{name}.key").read_text(),
                "usages": [_GO_SERVER, _GO_CLIENT],
                "time": int(now.timestamp()),
            }
        )
    return {
        name: "" if one.accepted else one.reason or "?"
        for name, one in run_go_verifier(asked).items()
    }


def _blocks(text: str) -> list[str]:
    end = "-----END CERTIFICATE-----\n"
    return [block + end for block in text.split(end) if block]


def ask_rustls(plane: str, names: list[str], folder: Path) -> Verdicts:
    """Ask rustls as ztunnel (`ambient`) or linkerd2-proxy (`linkerd`) has it."""
    done = subprocess.run(
        [builds.build_crate(CRATE), "paths", plane, folder, *names],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    return dict.fromkeys(names, "") | {name: reason for name, _, reason in pairs}
