"""The backend `pkcs11`: an issuing CA whose key is in a PKCS#11 token."""

from collections.abc import Mapping
from importlib.util import find_spec

from bridge.spi import API_VERSION, ConfigError, PluginContext

if find_spec("pkcs11") is None:
    raise ImportError("there is no python-pkcs11")


class PKCS11CA:
    """The factory of issuing CAs whose key is in a PKCS#11 token."""

    api_version = API_VERSION

    def __init__(self, options: Mapping[str, object], context: PluginContext) -> None:
        raise ConfigError(
            f"issuing_cas.{context.name}.plugin: pkcs11 cannot be used yet",
            rule="pkcs11.options",
        )
