"""Fuzz target: CSR loading, in PEM and in DER.

Any bytes are a good CSR or a `CSRError`; whatever is accepted is accepted the same way
in both forms, and holds what a second reader sees in it.
"""

import contextlib

from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import CSRError
from bridge.x509.csr import (
    CSR,
    asked_names,
    parse_csr,
    parse_csr_der,
    require_only_names,
)
from tests.fuzz.engine import main

_PEM = b"-----BEGIN"


def run(data: bytes) -> None:
    """Load `data` in both forms."""
    if data.lstrip().startswith(_PEM):
        found = _loaded_pem(data.decode("utf-8", "surrogateescape"))
        if found is not None:
            _require_sound(found)
        return
    found = _loaded_der(data)
    if found is not None:
        _require_sound(found)


def _loaded_pem(text: str) -> CSR | None:
    try:
        return parse_csr(text)
    except CSRError:
        return None


def _loaded_der(der: bytes) -> CSR | None:
    try:
        return parse_csr_der(der)
    except CSRError:
        return None


def _require_sound(csr: CSR) -> None:
    again = parse_csr(csr.request.public_bytes(Encoding.PEM).decode())
    if (again.der, again.spki) != (csr.der, csr.spki):
        raise AssertionError("PEM and DER are not the same CSR")
    if not csr.request.is_signature_valid:
        raise AssertionError("another reader finds the signature wrong")
    if csr.request.public_key() != csr.public_key:
        raise AssertionError("another reader finds another key")
    with contextlib.suppress(CSRError):
        require_only_names(csr, ())
    with contextlib.suppress(CSRError):
        asked_names(csr)


if __name__ == "__main__":
    main(run)
