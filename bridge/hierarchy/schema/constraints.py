"""The name constraints of a CA, as the hierarchy file writes them."""

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Self

from cryptography import x509
from pydantic import AfterValidator, Field, model_validator

from bridge.config.types import Different, Section
from bridge.x509.name_forms import FORMS, is_dns_name


def _checked(kind: type[x509.GeneralName]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not value:
            raise ValueError(
                "expected a host: an empty constraint is every name for one verifier "
                "and none for another"
            )
        # Raises ValueError with the way out: no scheme, port, path or wildcard.
        FORMS[kind].permitted([value])
        if kind is x509.DNSName and not is_dns_name(value.removeprefix(".")):
            raise ValueError(
                "expected a DNS name: no label of more than 63 characters or with a "
                "hyphen at an end, and the last one is no number"
            )
        return value

    return check


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f'expected a network such as "10.0.0.0/8": {error}') from None
    if "/" not in value:
        raise ValueError(f'expected a network: write "{value}/32" or "{value}/128"')
    return value


_Hosts = Annotated[
    tuple[Annotated[str, AfterValidator(_checked(x509.DNSName))], ...],
    Field(strict=False),
    Different,
]
_URIHosts = Annotated[
    tuple[
        Annotated[str, AfterValidator(_checked(x509.UniformResourceIdentifier))], ...
    ],
    Field(strict=False),
    Different,
]
_Mails = Annotated[
    tuple[Annotated[str, AfterValidator(_checked(x509.RFC822Name))], ...],
    Field(strict=False),
    Different,
]
_Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_network)], ...],
    Field(strict=False),
    Different,
]


class Subtrees(Section):
    """`permitted` or `excluded` of a CA's name constraints.

    A host without a leading dot is that host, and for DNS also its subdomains; one with
    a leading dot is its subdomains. Write both where both are meant: verifiers differ.
    """

    dns: _Hosts = ()
    """Hosts such as `corp.example`, with their subdomains; `.corp.example` is these
    alone."""
    uri: _URIHosts = ()
    """Hosts of URIs, such as a trust domain, without `spiffe://`. Write both
    `corp.example` and `.corp.example` for a host and its subdomains."""
    ip: _Networks = ()
    """Networks such as `10.0.0.0/8`."""
    email: _Mails = ()
    """Mailboxes, or hosts for all of theirs. `invalid` is a host that cannot exist."""

    @model_validator(mode="before")
    @classmethod
    def _no_directory(cls, value: object) -> object:
        if isinstance(value, dict) and "directory" in value:
            raise ValueError(
                "leave directory out: ztunnel and linkerd2-proxy reject every path "
                "with a directory name constraint, and programs in Go a critical one"
            )
        return value

    def names(self) -> Iterator[x509.GeneralName]:
        """Yield the names in the order of the forms."""
        yield from map(x509.DNSName, self.dns)
        yield from map(x509.UniformResourceIdentifier, self.uri)
        yield from map(x509.IPAddress, map(ipaddress.ip_network, self.ip))
        yield from map(x509.RFC822Name, self.email)


class ConstraintsEntry(Section):
    """`name_constraints` of a CA."""

    permitted: Subtrees = Subtrees()
    excluded: Subtrees = Subtrees()
    critical: bool = True
    """Whether a verifier that does not know constraints rejects the path."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any((*self.permitted.names(), *self.excluded.names())):
            raise ValueError(
                "expected a constraint: leave name_constraints out where there is none"
            )
        return self

    def value(self) -> x509.NameConstraints:
        """Return the value of the certificate's extension."""
        return x509.NameConstraints(
            _or_none(self.permitted.names()), _or_none(self.excluded.names())
        )


def _or_none(names: Iterable[x509.GeneralName]) -> list[x509.GeneralName] | None:
    # RFC 5280, 4.2.1.10: an empty list of subtrees is left out.
    return [*names] or None
