"""The name forms that constraints are evaluated for: how names and constraints read.

A name that verifiers read in different ways (a port or userinfo in a URI, a wildcard, a
trailing dot) is not read at all: under a constraint on its form it is refused.

Source:
    RFC 5280, 4.2.1.6, 4.2.1.10 and 7; RFC 3986, 3.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier

from bridge.x509.name_forms import (
    RDN,
    Address,
    AddressSet,
    DirectorySet,
    HostSet,
    MailSet,
    NameSet,
    Network,
)

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
        if found is None:
            raise ValueError(
                f"the e-mail constraint {value!r} is no mailbox, such as "
                "'ops@corp.example'"
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
