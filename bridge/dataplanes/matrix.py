"""What each verifier does with a name constraint, by the form of the name.

Source:
    Measured: `tests/interop/planes/test_matrix.py` asks each verifier about a leaf
    inside and a leaf outside each constraint, and holds its answers to `MATRIX`.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType

from cryptography import x509

from bridge.dataplanes.planes import DataPlane
from bridge.x509.name_constraints import Kind
from bridge.x509.name_forms import FORMS


class Treatment(StrEnum):
    """What a verifier does with a constraint of one form."""

    ENFORCED = "enforced"
    """A leaf inside is accepted, a leaf outside is rejected."""
    REJECTS_FORM = "rejects form"
    """Every leaf with a name of this form is rejected, whether inside or outside."""
    REJECTS_PATH = "rejects all"
    """Every leaf is rejected, whatever its names are."""


VERIFIERS: Mapping[str, str] = MappingProxyType(
    {
        DataPlane.SIDECAR: "Envoy",
        DataPlane.AMBIENT: "ztunnel",
        DataPlane.LINKERD: "linkerd2-proxy",
        "go": "Go",
        "openssl": "OpenSSL",
    }
)
"""The name for people of each verifier; Go and OpenSSL are programs without a proxy."""

_IN_ORDER = (*VERIFIERS,)


def _row(*treatments: Treatment) -> Mapping[str, Treatment]:
    return MappingProxyType(dict(zip(_IN_ORDER, treatments, strict=True)))


_HELD, _NO_FORM, _NO_PATH = Treatment
MATRIX: Mapping[Kind, Mapping[str, Treatment]] = MappingProxyType(
    {
        x509.UniformResourceIdentifier: _row(_HELD, _NO_FORM, _NO_FORM, _HELD, _HELD),
        x509.DNSName: _row(_HELD, _HELD, _HELD, _HELD, _HELD),
        x509.IPAddress: _row(_NO_FORM, _HELD, _HELD, _HELD, _HELD),
        x509.RFC822Name: _row(_HELD, _NO_FORM, _NO_FORM, _HELD, _HELD),
        x509.DirectoryName: _row(_HELD, _NO_PATH, _NO_PATH, _NO_PATH, _HELD),
    }
)
"""By form and verifier, for a critical constraint on a CA below the anchor."""


def matrix_of(
    constrained: Iterable[Kind], verifiers: Iterable[str]
) -> list[tuple[str, list[str]]]:
    """Return the rows of the matrix for one chain.

    Args:
        constrained: The forms that some CA of the chain constrains.
        verifiers: Keys of `VERIFIERS`, the columns.

    Returns:
        The name of each form, and what each verifier does: a `Treatment`, or
        `not limited` where no CA constrains the form.
    """
    found, columns = {*constrained}, [*verifiers]
    return [
        (
            FORMS[kind].label,
            [str(row[one]) if kind in found else "not limited" for one in columns],
        )
        for kind, row in MATRIX.items()
        if kind in found or kind is not x509.DirectoryName
    ]
