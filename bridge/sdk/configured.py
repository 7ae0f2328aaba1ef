"""The issuing CAs of a configuration file, for a command of their plugin."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from bridge.spi import PluginContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredCA:
    """An issuing CA of a configuration file, for a command of its plugin."""

    plugin: str
    """The name of the backend."""
    options: Mapping[str, object]
    """As they are written; the plugin checks them."""
    context: PluginContext
    uri_names: tuple[str, ...]
    """The URI SANs of its leaves: `*` stands for any characters."""
    dns_names: tuple[str, ...]
    """The DNS SANs of its leaves, of the listener's certificate among them."""
    backdate: timedelta
    """How far notBefore lies in the past."""
    max_ttl: timedelta
    """The longest lifetime that is asked for."""


def configured_cas(path: Path, plugins: Collection[str]) -> tuple[ConfiguredCA, ...]:
    """Return those issuing CAs of a configuration file that have one of the plugins.

    Args:
        path: The file. The files that it names need not be there.
        plugins: Names of backends.

    Raises:
        ConfigError: The file cannot be read or has errors.
    """
    # A plugin that serves is given its options, and does not need the reader.
    from bridge import config  # noqa: PLC0415

    found = config.read(path)
    uri_names, dns_names = _issued_names(found)
    longest = found.issuance.max_ttl
    istio = found.fronts.istio
    if istio is not None and istio.tls.ttl is not None:
        longest = max(longest, istio.tls.ttl)
    return tuple(
        ConfiguredCA(
            plugin=section.plugin,
            options=section.options,
            context=PluginContext(name=name, base=found.base, chain=section.chain),
            uri_names=uri_names,
            dns_names=dns_names,
            backdate=found.issuance.backdate,
            max_ttl=longest,
        )
        for name, section in found.issuing_cas.items()
        if section.plugin in plugins
    )


def _issued_names(config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    # The URI and the DNS names of workloads, probes and the listener.
    uris: dict[str, None] = {}
    hosts: dict[str, None] = {}
    istio, linkerd = config.fronts.istio, config.fronts.linkerd
    domains = [one.trust_domain or config.trust_domain for one in config.clusters]
    if istio is not None:
        uris |= {f"spiffe://{domain}/ns/*/sa/*": None for domain in domains}
        uris[f"spiffe://{config.trust_domain}/meshca/probe"] = None
        hosts |= dict.fromkeys(istio.tls.dns_names)
    if linkerd is not None:
        domain = config.linkerd_trust_domain()
        space = linkerd.control_plane_namespace
        hosts[f"*.serviceaccount.identity.{space}.{domain}"] = None
        if linkerd.spiffe_uri:
            uris[f"spiffe://{domain}/ns/*/sa/*"] = None
    return tuple(uris), tuple(hosts)
