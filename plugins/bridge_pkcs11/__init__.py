"""The backend `pkcs11`: an issuing CA whose key is in an HSM, behind a PKCS#11 module.

The module, the sessions and the PIN are in a signer process (`bridge_pkcs11.worker`).
"""

from bridge_pkcs11.issuing_ca import PKCS11CA

__all__ = ["PKCS11CA"]
