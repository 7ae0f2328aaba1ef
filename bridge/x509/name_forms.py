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
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, Self

from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
RDN = frozenset[tuple[str, str | bytes]]
"""One relative distinguished name: dotted OID and folded value of each attribute."""
SMTP_UTF8_MAILBOX = ObjectIdentifier("1.3.6.1.5.5.7.8.9")
"""An otherName that is an e-mail address and under its constraints (RFC 9598)."""

_HOST = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# Narrower than what OpenSSL and Go read: to rustls nothing else is a DNS name, and a
# certificate with one is refused under any DNS constraint.
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")
_HOST_CONSTRAINT = re.compile(rf"(?:\.?{_HOST})?")
# Narrower than RFC 3986 on purpose: a ':' or '@' behind the scheme moves the host for
# OpenSSL and BoringSSL, a '%' or '?' does for others. SPIFFE IDs have none of them.
_URI = re.compile(
    rf"[A-Za-z][A-Za-z0-9+.-]*://({_HOST})(?:/[A-Za-z0-9._~!$&'()*+,;=/-]*)?"
)
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_MAILBOX = re.compile(rf"({_ATOM}(?:\.{_ATOM})*)@({_HOST})")
_SPACES = re.compile(r"[ \t\n\v\f\r]+")
_ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


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


_LABELS = {
    "2.5.4.3": "CN",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
}
"""The attributes that RFC 4514 has a name for."""


def _directory_text(prefix: tuple[RDN, ...]) -> str:
    # As `rfc4514_string`, which shows the names that are held against it.
    rdns = (
        "+".join(
            f"{_LABELS.get(oid, oid)}={value!s}" for oid, value in sorted(rdn, key=str)
        )
        for rdn in reversed(prefix)
    )
    return ",".join(rdns) or "(every directory name)"


class UnreadableNameError(Exception):
    """A name of this spelling means different things to verifiers.

    Its text is fixed words without the name.
    """


@dataclass(frozen=True, slots=True)
class Form:
    """One name form that can be evaluated."""

    label: str
    """How messages call it."""
    read: Callable[[Any], Any]
    """Turns the value of a GeneralName into what the sets hold, or raises
    `UnreadableNameError`."""
    permitted: Callable[[list[Any]], NameSet]
    """Makes the strict set of constraint values; `ValueError` says what is wrong."""
    excluded: Callable[[list[Any]], NameSet]
    """Makes the loose set of constraint values; `ValueError` says what is wrong."""


def is_dns_name(value: str) -> bool:
    """Tell whether every verifier reads a text as one full host name."""
    return _DNS_NAME.fullmatch(value) is not None


def read_dns(value: str) -> str:
    """Return a host, lower-case. Raises `UnreadableNameError`."""
    if not is_dns_name(value):
        raise UnreadableNameError(
            "a DNS name under a DNS constraint is a full host name: no wildcard, no "
            "dot at either end, not empty, no label with a hyphen at an end or more "
            "than 63 characters, and the last one no number"
        )
    return value.lower()


def read_uri(value: str) -> str:
    """Return the host of a URI, lower-case. Raises `UnreadableNameError`."""
    found = _URI.fullmatch(value)
    if found is None:
        raise UnreadableNameError(
            "a URI under a URI constraint is scheme://host/path: no userinfo, port, "
            "query, fragment or percent-encoding, and a host without a dot at either "
            "end"
        )
    host = found[1].lower()
    # What ends in a number is an address to some parsers and a name to others.
    if host.rpartition(".")[2].isdecimal():
        raise UnreadableNameError("the host of a URI is a name, not an IP address")
    return host


def read_mail(value: str) -> tuple[str, str]:
    """Return local part and lower-case host. Raises `UnreadableNameError`."""
    found = _MAILBOX.fullmatch(value)
    if found is None:
        raise UnreadableNameError(
            "an e-mail address under a constraint is local@host, without quotes"
        )
    return found[1], found[2].lower()


def read_address(value: Address | Network) -> Address:
    """Return an address as it is. Raises `UnreadableNameError`."""
    if isinstance(value, ipaddress.IPv4Address):
        return value
    if isinstance(value, ipaddress.IPv6Address) and value.ipv4_mapped is None:
        return value
    # Go up to 1.25 reads a mapped address as IPv4, OpenSSL as IPv6.
    raise UnreadableNameError(
        "an IP address under an IP constraint is one IPv4 or IPv6 address, and none "
        "of IPv4 mapped into IPv6"
    )


def read_directory(name: x509.Name) -> tuple[RDN, ...]:
    """Return the RDNs, folded as OpenSSL does: ASCII case and runs of white space."""
    return tuple(
        frozenset((item.oid.dotted_string, _fold(item.value)) for item in rdn)
        for rdn in name.rdns
    )


def _fold(value: str | bytes) -> str | bytes:
    if isinstance(value, bytes):
        return value
    return _SPACES.sub(" ", value).strip(" ").translate(_ASCII_LOWER)


def _hosts(kind: str, values: Iterable[str]) -> list[str]:
    """Check the constraints of a form that consist of a host."""
    checked = list(values)
    for value in checked:
        if not _HOST_CONSTRAINT.fullmatch(value):
            _bad_host(kind, value)
        if kind == "URI" and value.rpartition(".")[2].isdecimal():
            raise ValueError(
                f"the URI constraint {value!r} is no host: an IP address cannot be one"
            )
    return checked


def _bad_host(kind: str, value: str) -> NoReturn:
    host = re.search(_HOST, value.partition("://")[2] or value)
    hint = host[0] if host else "corp.example"
    raise ValueError(
        f"the {kind} constraint {value!r} is no host: write {hint!r} for the host or "
        f"{'.' + hint!r} for its subdomains, without scheme, userinfo, port, path, "
        "wildcard or trailing dot"
    )


def _mails(values: Iterable[str], hosts: Callable[[Iterable[str]], HostSet]) -> MailSet:
    given = list(values)
    mailboxes = []
    for value in given:
        if "@" not in value:
            continue
        found = _MAILBOX.fullmatch(value)
        # A local part may have a star. Who writes one means all mailboxes of the host.
        if found is None or "*" in value:
            raise ValueError(
                f"the e-mail constraint {value!r} is no mailbox, such as "
                "'ops@corp.example'; all mailboxes of a host are the host alone"
            )
        mailboxes.append((found[1], found[2].lower()))
    rest = [value for value in given if "@" not in value]
    return MailSet(frozenset(mailboxes), hosts(_hosts("e-mail", rest)))


def _addresses(values: list[Any]) -> NameSet:
    return AddressSet(tuple(values))


def _directories(values: list[x509.Name]) -> NameSet:
    return DirectorySet(tuple(read_directory(value) for value in values))


FORMS: Mapping[type[x509.GeneralName], Form] = MappingProxyType(
    {
        # For DNS names, RFC 5280 itself is loose.
        x509.DNSName: Form(
            "DNS",
            read_dns,
            lambda values: HostSet.loose(_hosts("DNS", values)),
            lambda values: HostSet.loose(_hosts("DNS", values)),
        ),
        x509.UniformResourceIdentifier: Form(
            "URI",
            read_uri,
            lambda values: HostSet.strict(_hosts("URI", values)),
            lambda values: HostSet.loose(_hosts("URI", values)),
        ),
        x509.RFC822Name: Form(
            "e-mail",
            read_mail,
            lambda values: _mails(values, HostSet.strict),
            lambda values: _mails(values, HostSet.loose),
        ),
        x509.IPAddress: Form("IP", read_address, _addresses, _addresses),
        x509.DirectoryName: Form(
            "directory", read_directory, _directories, _directories
        ),
    }
)

OTHER_FORMS: Mapping[type[x509.GeneralName], str] = MappingProxyType(
    {x509.OtherName: "other name", x509.RegisteredID: "registered ID"}
)
"""Forms that no constraint can be evaluated for."""
