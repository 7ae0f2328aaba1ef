"""The plugin loader: finds the one plugin that a configuration names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any, Protocol, cast

from bridge.errors import PluginError
from bridge.spi import API_VERSION, IssuingCAFactory, Signer

GROUP = "meshca_bridge.issuing_ca"
SIGNERS = "meshca_bridge.signer"
"""The entry points of keys that an operator uses in a ceremony."""
COMMANDS = "meshca_bridge.commands"
"""The entry points of commands: the value is a Typer application with subcommands."""
EXTRAS: Mapping[str, str] = {
    "pkcs11": "pkcs11",
    "vault-pki": "vault",
    "vault-transit": "vault",
}
"""Plugins of this project that need a library, and the extra that installs it."""
COMMAND_EXTRAS: Mapping[str, str] = {"vault": "vault"}
"""The same for the commands of this project's plugins."""


Secret = Callable[[str], str]
"""Returns a PIN, a passphrase or a token. The argument says to people which one."""


class SignerFactory(Protocol):
    """What an entry point in the group `SIGNERS` refers to.

    Unlike an issuing CA it has no certificate yet, a person is there who gives its
    secret, and it signs once: nothing is retried and no latch is asked.
    """

    def __call__(self, options: Mapping[str, object], secret: Secret, /) -> Signer:
        """Open the one key that `options` name, and prove that it signs.

        Args:
            options: Of the backend. With `make`, a kind of key, the key is made if it
                is not there.
            secret: Called once at most, and only where the key needs a secret.

        Raises:
            ConfigError: An option or a file cannot be used.
            BackendError: The key is not there, is not fit for a CA, or its device does
                not answer.
        """


@dataclass(frozen=True, slots=True)
class Plugin:
    """An installed plugin, which is not imported."""

    name: str
    module: str
    distribution: str
    version: str


def installed() -> tuple[Plugin, ...]:
    """Return every plugin that is installed, by name, without importing one."""
    return tuple(
        Plugin(
            entry_point.name,
            entry_point.value,
            entry_point.dist.name if entry_point.dist else "unknown",
            entry_point.dist.version if entry_point.dist else "unknown",
        )
        for entry_point in sorted(entry_points(group=GROUP), key=lambda ep: ep.name)
    )


def plugin_commands() -> tuple[str, ...]:
    """Return the names of the commands that plugins bring, without importing one."""
    return tuple(sorted(entry_points(group=COMMANDS).names))


def load_command(name: str) -> Any:
    """Import the application of a plugin's command.

    Args:
        name: One of `plugin_commands()`.

    Raises:
        PluginError: Several plugins bring it, another distribution ships the same
            package, or a library that it needs is not installed.
    """
    entry_point = _only(name, COMMANDS)
    _require_sole_owner(entry_point)
    try:
        return entry_point.load()
    except ImportError as error:
        extra = COMMAND_EXTRAS.get(name)
        raise _not_importable(f"command {name!r}", extra, error) from error


def load(name: str) -> IssuingCAFactory:
    """Import the one plugin called `name`.

    Only a plugin that the configuration names is ever imported: installing a package
    must not be enough to run its code inside a CA.

    Args:
        name: Entry-point name in `GROUP`, as written in the configuration.

    Raises:
        PluginError: No plugin or several plugins have that name, another distribution
            ships the same import package, a dependency of the plugin is missing, or it
            was built for another `API_VERSION`.
    """
    entry_point = _only(name)
    _require_sole_owner(entry_point)
    try:
        factory = cast("IssuingCAFactory", entry_point.load())
    except ImportError as error:
        extra = EXTRAS.get(name)
        raise _not_importable(f"plugin {name!r}", extra, error) from error
    except AttributeError as error:
        raise PluginError(
            f"plugin {name!r} is not where its entry point says: {entry_point.value}; "
            "install its package anew",
            detail=str(error),
        ) from error
    spoken = getattr(factory, "api_version", None)
    if spoken != API_VERSION:
        raise PluginError(_other_version(name, entry_point, spoken))
    return factory


def load_signer(name: str) -> SignerFactory:
    """Import what opens a key of the backend `name`. Raises as `load` does."""
    entry_point = _only(name, SIGNERS)
    _require_sole_owner(entry_point)
    try:
        return cast("SignerFactory", entry_point.load())
    except ImportError as error:
        raise _not_importable(f"plugin {name!r}", EXTRAS.get(name), error) from error


def _not_importable(what: str, extra: str | None, error: ImportError) -> PluginError:
    way_out = f"install meshca-bridge[{extra}]" if extra else error
    return PluginError(f"{what} cannot be imported: {way_out}", detail=str(error))


def _other_version(name: str, entry_point: EntryPoint, spoken: object) -> str:
    owner = entry_point.dist.name if entry_point.dist else entry_point.module
    way_out = f"install a version of {owner} that was built for it"
    if isinstance(spoken, int) and spoken > API_VERSION:
        way_out = "install a newer bridge, or an older version of the plugin"
    return (
        f"plugin {name!r} speaks version {spoken} of the plugin contract, this bridge "
        f"speaks version {API_VERSION}: {way_out}"
    )


def _only(name: str, group: str = GROUP) -> EntryPoint:
    found = tuple(entry_points(group=group, name=name))
    if not found:
        known = ", ".join(plugin.name for plugin in installed()) or "none"
        raise PluginError(
            f"no backend {name!r} is installed here; installed: {known} "
            "(see meshca plugins)"
        )
    if len(found) > 1:
        owners = ", ".join(sorted(ep.dist.name if ep.dist else "?" for ep in found))
        raise PluginError(
            f"{len(found)} plugins are called {name!r}: {owners}; expected one: "
            "uninstall the others"
        )
    return found[0]


def _require_sole_owner(entry_point: EntryPoint) -> None:
    # Installers overwrite a file that two distributions both ship, without a word
    # (pypa/pip#4625). An editable install lists no files and has no owner.
    package = entry_point.module.partition(".")[0]
    owners = _owners(package)
    if len(owners) > 1:
        raise PluginError(
            f"import package {package!r} is shipped by {', '.join(sorted(owners))}: "
            "expected one owner; uninstall all of them, and install the right one anew"
        )


def _owners(package: str) -> set[str]:
    # `packages_distributions` makes an object of every file of every distribution.
    shipped = re.compile(rf"^{re.escape(package)}(?:/|\.py,)", re.MULTILINE)
    return {
        one.name
        for one in distributions()
        if shipped.search(one.read_text("RECORD") or "")
        or package in (one.read_text("top_level.txt") or "").split()
    }
