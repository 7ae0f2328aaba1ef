"""What each data plane would accept if an issuing key were compromised.

Name constraints do not contain a compromised key everywhere: a constraint on one form
of name lets every other form pass, in every verifier. Every command that shows a
hierarchy shows the exposure too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from bridge.dataplanes.planes import DataPlane
from bridge.errors import ConfigError
from bridge.x509.certificate import extensions_of, value_in

_SHOWN_HOSTS = 8


@dataclass(frozen=True, slots=True)
class Exposure:
    """What one data plane would accept from a compromised issuing key."""

    data_plane: DataPlane
    accepts: str
    narrower: str
    """How to limit it; empty where there is nothing to limit."""


def exposure_of(chain: Sequence[x509.Certificate]) -> tuple[Exposure, ...]:
    """Return what each data plane would accept if the issuing key were compromised.

    The answer is an upper bound: of several constrained tiers the lowest one is shown,
    and excluded names are not subtracted.

    Args:
        chain: Issuing CA first, then what is above it, with or without the root.

    Raises:
        ConfigError: The chain is empty.
    """
    if not chain:
        raise ConfigError("expected a chain with an issuing CA (found none)")
    return exposure_of_constraints(
        [value_in(extensions_of(one), x509.NameConstraints) for one in chain]
    )


def exposure_of_constraints(
    tiers: Sequence[x509.NameConstraints | None], anchor: str = "this root"
) -> tuple[Exposure, ...]:
    """Return what each data plane would accept from the key of the first tier.

    Args:
        tiers: The constraints of each CA, the one with the key first.
        anchor: The name for people of what the data planes trust.
    """
    hosts = _permitted(tiers, x509.UniformResourceIdentifier)
    dns = _permitted(tiers, x509.DNSName)
    return _sidecar(hosts, anchor), _ambient(hosts, anchor), _linkerd(dns, anchor)


_REGIONAL_ANCHOR = (
    "use the regional CA as this data plane's trust anchor, not the common root"
)


def _sidecar(hosts: list[str] | None, anchor: str) -> Exposure:
    if hosts is None:
        return Exposure(
            DataPlane.SIDECAR,
            f"every SPIFFE ID of every trust domain, wherever {anchor} is trusted",
            "a URI constraint, where no ztunnel and no linkerd2-proxy is a peer; or "
            + _REGIONAL_ANCHOR,
        )
    return Exposure(
        DataPlane.SIDECAR,
        f"every SPIFFE ID of {_listed(hosts)}, wherever {anchor} is trusted; no other "
        "trust domain",
        _REGIONAL_ANCHOR,
    )


def _ambient(hosts: list[str] | None, anchor: str) -> Exposure:
    if hosts is None:
        return Exposure(
            DataPlane.AMBIENT,
            f"every SPIFFE ID of every trust domain, wherever {anchor} is trusted; "
            "ztunnel does not work with the constraint that would limit this",
            _REGIONAL_ANCHOR,
        )
    return Exposure(
        DataPlane.AMBIENT,
        "nothing: this chain does not work with ambient, since ztunnel rejects every "
        "certificate under a URI constraint",
        "",
    )


def _linkerd(dns: list[str] | None, anchor: str) -> Exposure:
    if dns is None:
        return Exposure(
            DataPlane.LINKERD,
            f"every identity of every identity domain, wherever {anchor} is an anchor",
            "a DNS constraint; or " + _REGIONAL_ANCHOR,
        )
    return Exposure(
        DataPlane.LINKERD,
        f"every identity of {_listed(dns)}, wherever {anchor} is an anchor: clusters "
        "that share an identity domain are exposed together",
        _REGIONAL_ANCHOR,
    )


def _permitted(
    tiers: Sequence[x509.NameConstraints | None],
    kind: type[x509.DNSName | x509.UniformResourceIdentifier],
) -> list[str] | None:
    # Permitted hosts of the lowest tier that names any; None if no tier does.
    for tier in tiers:
        subtrees = (tier.permitted_subtrees if tier else None) or []
        hosts = [str(name.value) for name in subtrees if isinstance(name, kind)]
        if hosts:
            return hosts
    return None


def _listed(hosts: list[str]) -> str:
    # `corp.example` and `.corp.example` are one line for people.
    bare = dict.fromkeys(host.removeprefix(".") for host in hosts)
    shown = [
        f"{host} and below"
        if f".{host}" in hosts and host in hosts
        else f"anything below {host}"
        if f".{host}" in hosts
        else host
        for host in bare
    ]
    more = len(shown) - _SHOWN_HOSTS
    return ", ".join(shown[:_SHOWN_HOSTS]) + (f" and {more} more" if more > 0 else "")
