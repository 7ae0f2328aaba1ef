"""Sets of names of one form, as name constraints write them.

Verifiers disagree on what a constraint means. *Strict* is RFC 5280 and OpenSSL;
*loose* is Go up to 1.27, where a URI or e-mail host without a leading dot also means
its subdomains, and an empty one means everything. For each form the strict set lies
inside the loose one. So a name is in both permitted sets exactly if it is in the
strict one, and in either excluded set exactly if it is in the loose one: one set
of each suffices.

Source:
    RFC 5280, 4.2.1.10; `docs/constraints.md` for the differences between verifiers.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
RDN = frozenset[tuple[str, str | bytes]]
"""One relative distinguished name: dotted OID and folded value of each attribute."""


class NameSet(Protocol):
    """Some names of one form."""

    def holds(self, value: Any, /) -> bool:
        """Tell whether the name is in the set."""
        ...

    def parts(self) -> tuple[Self, ...]:
        """Return sets that together are this one, each from one constraint."""
        ...

    def covers(self, other: Any, /) -> bool:
        """Tell whether every name of `other`, a set of this form, is in this one."""
        ...

    def overlaps(self, other: Any, /) -> bool:
        """Tell whether some name is in both sets."""
        ...


@dataclass(frozen=True, slots=True)
class HostSet:
    """Hosts, lower-case: some by their full name, some by what they end in."""

    exact: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    """Each with its leading dot; an empty one is every host."""

    @classmethod
    def strict(cls, constraints: Iterable[str]) -> Self:
        """Read a host as itself, `.host` as its subdomains, and empty as nothing."""
        given = frozenset(text.lower() for text in constraints if text)
        suffixes = tuple(sorted(text for text in given if text[0] == "."))
        return cls(given.difference(suffixes), suffixes)

    @classmethod
    def loose(cls, constraints: Iterable[str]) -> Self:
        """Read a host as itself and its subdomains, and empty as everything."""
        given = {text.lower() for text in constraints}
        exact = frozenset(text for text in given if text and text[0] != ".")
        suffixes = (given - exact) | {f".{text}" for text in exact}
        return cls(exact, tuple(sorted(suffixes)))

    def holds(self, value: str, /) -> bool:
        """See `NameSet.holds`; `value` is a lower-case host."""
        return value in self.exact or value.endswith(self.suffixes)

    def parts(self) -> tuple[Self, ...]:
        """See `NameSet.parts`."""
        kind = type(self)
        hosts = [kind(frozenset({host})) for host in sorted(self.exact)]
        return (*hosts, *(kind(suffixes=(suffix,)) for suffix in self.suffixes))

    def covers(self, other: Self, /) -> bool:
        """See `NameSet.covers`."""
        inside = all(suffix.endswith(self.suffixes) for suffix in other.suffixes)
        return inside and all(self.holds(host) for host in other.exact)

    def overlaps(self, other: Self, /) -> bool:
        """See `NameSet.overlaps`."""
        return (
            any(other.holds(host) for host in self.exact)
            or any(self.holds(host) for host in other.exact)
            or any(suffix.endswith(other.suffixes) for suffix in self.suffixes)
            or any(suffix.endswith(self.suffixes) for suffix in other.suffixes)
        )

    def __str__(self) -> str:
        suffixes = (suffix or "(every host)" for suffix in self.suffixes)
        return ", ".join([*sorted(self.exact), *suffixes])


@dataclass(frozen=True, slots=True)
class MailSet:
    """E-mail addresses: some mailboxes, and all mailboxes at some hosts."""

    mailboxes: frozenset[tuple[str, str]]
    """Local part, whose case counts, and lower-case host."""
    hosts: HostSet

    def holds(self, value: tuple[str, str], /) -> bool:
        """See `NameSet.holds`; `value` is local part and lower-case host."""
        return value in self.mailboxes or self.hosts.holds(value[1])

    def parts(self) -> tuple[Self, ...]:
        """See `NameSet.parts`."""
        kind = type(self)
        boxes = [kind(frozenset({box}), HostSet()) for box in sorted(self.mailboxes)]
        return (*boxes, *(kind(frozenset(), part) for part in self.hosts.parts()))

    def covers(self, other: Self, /) -> bool:
        """See `NameSet.covers`."""
        inside = all(self.holds(mailbox) for mailbox in other.mailboxes)
        return inside and self.hosts.covers(other.hosts)

    def overlaps(self, other: Self, /) -> bool:
        """See `NameSet.overlaps`."""
        return (
            any(other.holds(mailbox) for mailbox in self.mailboxes)
            or any(self.holds(mailbox) for mailbox in other.mailboxes)
            or self.hosts.overlaps(other.hosts)
        )

    def __str__(self) -> str:
        mailboxes = (f"{local}@{host}" for local, host in sorted(self.mailboxes))
        return ", ".join(filter(None, [*mailboxes, str(self.hosts)]))


@dataclass(frozen=True, slots=True)
class AddressSet:
    """IP addresses, by network, of both versions."""

    networks: tuple[Network, ...]

    def holds(self, value: Address, /) -> bool:
        """See `NameSet.holds`."""
        return any(value in network for network in self.networks)

    def parts(self) -> tuple[Self, ...]:
        """See `NameSet.parts`."""
        return tuple(type(self)((network,)) for network in self.networks)

    def covers(self, other: Self, /) -> bool:
        """See `NameSet.covers`."""
        own = _merged(self.networks)
        return all(
            any(
                network.version == wider.version
                and network.network_address in wider
                and network.prefixlen >= wider.prefixlen
                for wider in own
            )
            for network in other.networks
        )

    def overlaps(self, other: Self, /) -> bool:
        """See `NameSet.overlaps`."""
        return any(
            one.version == two.version
            and (one.network_address in two or two.network_address in one)
            for one in self.networks
            for two in other.networks
        )

    def __str__(self) -> str:
        return ", ".join(str(network) for network in self.networks)


@dataclass(frozen=True, slots=True)
class DirectorySet:
    """Directory names, by the RDNs that they begin with, folded as OpenSSL does."""

    prefixes: tuple[tuple[RDN, ...], ...]

    def holds(self, value: tuple[RDN, ...], /) -> bool:
        """See `NameSet.holds`; `value` has the RDNs in order."""
        return any(value[: len(prefix)] == prefix for prefix in self.prefixes)

    def parts(self) -> tuple[Self, ...]:
        """See `NameSet.parts`."""
        return tuple(type(self)((prefix,)) for prefix in self.prefixes)

    def covers(self, other: Self, /) -> bool:
        """See `NameSet.covers`."""
        return all(self.holds(prefix) for prefix in other.prefixes)

    def overlaps(self, other: Self, /) -> bool:
        """See `NameSet.overlaps`."""
        mine, theirs = self.prefixes, other.prefixes
        return any(map(other.holds, mine)) or any(map(self.holds, theirs))

    def __str__(self) -> str:
        return ", ".join(map(_directory_text, self.prefixes))


def _merged(networks: Iterable[Network]) -> list[Network]:
    """Join neighbours, so that two halves cover their whole."""
    given = list(networks)
    four = [one for one in given if isinstance(one, ipaddress.IPv4Network)]
    six = [one for one in given if isinstance(one, ipaddress.IPv6Network)]
    return [
        *ipaddress.collapse_addresses(four),
        *ipaddress.collapse_addresses(six),
    ]


def _directory_text(prefix: tuple[RDN, ...]) -> str:
    rdns = (
        "+".join(f"{oid}={value!s}" for oid, value in sorted(rdn, key=str))
        for rdn in prefix
    )
    return "/".join(rdns) or "(every directory name)"
