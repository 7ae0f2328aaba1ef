"""Istio's own CA client (`tests/interop/istio_client`), as tests call it."""

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography import x509

from tests.support.parts import builds

_MODULE = Path(__file__).resolve().parents[2] / "interop/istio_client"
_CALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the client got."""

    chain: list[str]
    """The elements of `cert_chain` as they came; empty for a refusal."""
    csr: str
    key: str
    """The key of the CSR that the client made, in PKCS#8 PEM."""
    code: str
    """`OK`, or gRPC's name of the refusal, such as `InvalidArgument`."""
    error: str

    @property
    def leaf(self) -> x509.Certificate:
        """The first element, parsed."""
        return x509.load_pem_x509_certificate(self.chain[0].encode())


@cache
def program() -> Path:
    """Return the client, built if need be."""
    return builds.build(_MODULE)


def read_cacerts(folder: Path) -> str:
    """Have istiod's own code read the folder of its CA; return why it is refused."""
    done = subprocess.run(
        [program(), "-cacerts", folder],
        capture_output=True,
        text=True,
        timeout=_CALL_SECONDS,
        check=True,
    )
    return str(json.loads(done.stdout)["error"])


def ask(
    address: str, roots: Path, *arguments: str | Path, compliance: str = ""
) -> Answer:
    """Ask the CA at `address` for a certificate, with Istio's own client.

    Args:
        address: `host:port`.
        roots: The trust anchors of the CA's own certificate.
        arguments: More flags of the program.
        compliance: Istio's `COMPLIANCE_POLICY`, which bounds what it speaks to the CA.
    """
    done = subprocess.run(
        [program(), "-address", address, "-roots", roots, *arguments],
        capture_output=True,
        text=True,
        timeout=_CALL_SECONDS,
        env=os.environ | {"COMPLIANCE_POLICY": compliance},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"Istio's client failed: {done.stderr[-4000:]}")
    values = json.loads(done.stdout)
    return Answer(**values | {"chain": values["chain"] or []})
