"""Linkerd's published API (`tests/interop/linkerd_client`), as tests call it."""

import base64
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from cryptography import x509

from tests.support.harness.real_process import Bridge
from tests.support.parts import builds

_MODULE = Path(__file__).resolve().parents[2] / "interop/linkerd_client"
_CALL_SECONDS = 120.0
AUDIENCE = "identity.l5d.io"


def name_of(
    account: str, namespace: str = "shop", trust_domain: str = "corp.example"
) -> str:
    """Return the identity that Linkerd gives a service account."""
    return f"{account}.{namespace}.serviceaccount.identity.linkerd.{trust_domain}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one client got."""

    identity: str
    csr: bytes
    key: str
    """The key of the CSR that the client made, in PKCS#8 PEM."""
    leaf: bytes
    """As it came, like each of `intermediates`; nothing for a refusal."""
    intermediates: list[bytes]
    valid_until: datetime | None
    code: str
    """`OK`, or gRPC's name of the refusal, such as `InvalidArgument`."""
    error: str

    @property
    def certificate(self) -> x509.Certificate:
        """The leaf, parsed."""
        return x509.load_der_x509_certificate(self.leaf)

    @property
    def chain_pem(self) -> bytes:
        """The answer's bytes, each element framed as PEM whatever it is."""
        return b"".join(map(framed, (self.leaf, *self.intermediates)))


def framed(element: bytes) -> bytes:
    """Put bytes into a PEM block; they need not be a certificate."""
    text = base64.encodebytes(element)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


def ask_bridge(
    bridge: Bridge, folder: Path, account: str = "web", *arguments: str | Path
) -> Answer:
    """Ask with a good token of an account in the namespace `shop`. See `ask`."""
    token = bridge.token("shop", account, audiences=[AUDIENCE])
    name = name_of(account)
    return ask(bridge.linkerd_address, name, token, folder, *arguments)


@cache
def program() -> Path:
    """Return the client, built if need be."""
    return builds.build(_MODULE)


def ask(
    address: str, identity: str, token: str, folder: Path, *arguments: str | Path
) -> Answer:
    """Ask the CA at `address` once, as a proxy does.

    Args:
        address: `host:port`.
        identity: The name to ask for.
        token: What stands in the token's file.
        folder: For that file.
        arguments: More flags of the program.
    """
    file = folder / "linkerd-token"
    file.write_text(token)
    (answer,) = _run(address, "-identity", identity, "-token", file, *arguments)
    return answer


def ask_together(
    address: str,
    callers: Iterable[tuple[str, str]],
    folder: Path,
    *,
    clients: int,
    within: float,
) -> list[Answer]:
    """Let many clients ask, each over a connection of its own.

    Args:
        address: `host:port`.
        callers: Identity and token of each; used in turn.
        folder: For a file.
        clients: How many ask.
        within: Over how many seconds they are spread.
    """
    file = folder / "callers"
    file.write_text("".join(f"{name} {token}\n" for name, token in callers))
    many = ("-clients", str(clients), "-within", f"{within}s")
    return _run(address, "-requests", file, *many)


def _run(address: str, *arguments: str | Path) -> list[Answer]:
    done = subprocess.run(
        [program(), "-address", address, *arguments],
        capture_output=True,
        text=True,
        timeout=_CALL_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"Linkerd's client failed: {done.stderr[-4000:]}")
    return [_answer(one) for one in json.loads(done.stdout)]


def _answer(values: dict[str, object]) -> Answer:
    decoded = values | {
        "csr": _bytes(values["csr"]),
        "leaf": _bytes(values["leaf"]),
        "intermediates": [
            _bytes(one)
            for one in values["intermediates"] or []  # type: ignore[attr-defined]
        ],
        "valid_until": _time(values["valid_until"]),
    }
    return Answer(**decoded)  # type: ignore[arg-type]


def _bytes(text: object) -> bytes:
    return base64.b64decode(str(text)) if text else b""


def _time(text: object) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text else None
