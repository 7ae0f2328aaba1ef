"""The backend `pkcs11`: an issuing CA whose key is in an HSM, behind a PKCS#11 module.

The module, the sessions and the PIN are in a signer process (`bridge_pkcs11.worker`),
which imports this package too. It needs no options and no pydantic, so the class is
imported only where it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge_pkcs11.issuing_ca import PKCS11CA

__all__ = ["PKCS11CA"]


def __getattr__(name: str) -> Any:
    if name != "PKCS11CA":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bridge_pkcs11 import issuing_ca  # noqa: PLC0415 - see above

    return issuing_ca.PKCS11CA
