"""Tell what is a DNS label, a subdomain, a host and an address, for every part.

Source:
    RFC 1035, 2.3.1; RFC 1123, 2.1; Kubernetes, "Object Names and IDs".
"""

import re

LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
"""A DNS-1123 label, such as the name of a namespace, as a regular expression."""
_PART = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
SUBDOMAIN = rf"{_PART}(?:\.{_PART})*"
"""A DNS-1123 subdomain, as a regular expression without a bound on its length."""
LONGEST = 253
"""Characters of a DNS name without its last dot."""

_LABEL = re.compile(LABEL)
_SUBDOMAIN = re.compile(SUBDOMAIN)
_PORT = re.compile(r"[0-9]{1,5}")
_HIGHEST_PORT = 65535


def is_label(text: str) -> bool:
    """Tell whether `text` is a DNS-1123 label, as a namespace's name must be."""
    return _LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """Tell whether `text` is a DNS-1123 subdomain, as a service account's name must be.

    Kubernetes bounds the whole name, and not each label.
    """
    return len(text) <= LONGEST and _SUBDOMAIN.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """Tell whether `text` is a DNS name, in lower case and without a last dot.

    A name that ends in a number is none to rustls: it may be an IP address.
    """
    labels = text.split(".")
    return (
        len(text) <= LONGEST
        and all(map(is_label, labels))
        and not labels[-1].isdecimal()
    )


def is_address(value: object) -> bool:
    """Tell whether `value` is a `host:port`, with an IPv6 address in brackets."""
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not host or not _PORT.fullmatch(port):
        return False
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return False
    return int(port) <= _HIGHEST_PORT
