"""The backends `vault-pki` and `vault-transit`, for Vault and OpenBao."""

import importlib.util

if importlib.util.find_spec("hvac") is None:
    raise ImportError("hvac is not installed")

from bridge_vault.pki import VaultPKICA
from bridge_vault.transit import VaultTransitCA

__all__ = ["VaultPKICA", "VaultTransitCA"]
