"""SPIFFE IDs and trust domains: parsed once and strictly, typed from then on.

Source:
    SPIFFE-ID standard, sections 2.1 to 2.4; Go, crypto/x509, `domainNameValid`.
"""

import re
from dataclasses import dataclass
from typing import Self

from bridge.dns_names import LONGEST
from bridge.errors import RequestError

_TRUST_DOMAIN = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_IPV4 = re.compile(r"[0-9]+(?:\.[0-9]+){3}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_LONGEST_ID_BYTES = 2048
_SCHEME = "spiffe://"


@dataclass(frozen=True, slots=True)
class TrustDomain:
    """The name of a trust domain, without a scheme."""

    name: str

    def __post_init__(self) -> None:
        # Less than the standard allows. Go parses no certificate whose URI has a host
        # with an empty label, and its versions 1.24.8 and 1.25.2 none whose host is
        # longer than a DNS name, or has a longer label. It matches no IP address
        # against a URI constraint, and then refuses the chain.
        if (
            len(self.name) > LONGEST
            or not _TRUST_DOMAIN.fullmatch(self.name)
            or _IPV4.fullmatch(self.name)
        ):
            raise RequestError(
                "a trust domain has 1 to 253 of the characters a-z 0-9 . - _, no dot "
                "at an end or beside another, at most 63 characters without a dot, and "
                "is no IP address",
                rule="spiffe.trust-domain",
                detail=repr(self.name)[:300],
            )

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class SpiffeID:
    """One workload's name."""

    trust_domain: TrustDomain
    segments: tuple[str, ...]
    """The path's parts, at least one; none is empty, `.` or `..`."""

    def __post_init__(self) -> None:
        if not self.segments or not all(_is_segment(part) for part in self.segments):
            raise _bad(
                "a SPIFFE ID's path has parts of the characters a-z A-Z 0-9 . - _, "
                "none of them empty, '.' or '..'",
                "/".join(self.segments),
            )
        if len(str(self)) > _LONGEST_ID_BYTES:
            raise _bad(f"a SPIFFE ID has at most {_LONGEST_ID_BYTES} bytes", "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `spiffe://<trust domain>/<path>`.

        Raises:
            RequestError: It is anything else: another scheme, userinfo, port, query,
                fragment, percent-encoding, an empty part, or too long.
        """
        if len(text) > _LONGEST_ID_BYTES:
            raise _bad(f"a SPIFFE ID has at most {_LONGEST_ID_BYTES} bytes", text)
        if not text.startswith(_SCHEME):
            raise _bad("a SPIFFE ID starts with spiffe://", text)
        domain, slash, path = text.removeprefix(_SCHEME).partition("/")
        if not slash:
            raise _bad("a workload's SPIFFE ID has a path", text)
        return cls(TrustDomain(domain), tuple(path.split("/")))

    @classmethod
    def of_service_account(
        cls, trust_domain: TrustDomain, namespace: str, service_account: str
    ) -> Self:
        """Build Istio's name of a Kubernetes service account."""
        return cls(trust_domain, ("ns", namespace, "sa", service_account))

    @property
    def service_account(self) -> tuple[str, str] | None:
        """Namespace and service account, if the path is `/ns/<n>/sa/<s>`."""
        match self.segments:
            case ("ns", namespace, "sa", name):
                return namespace, name
        return None

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain.name}/{'/'.join(self.segments)}"


def _is_segment(part: str) -> bool:
    return part not in {".", ".."} and _SEGMENT.fullmatch(part) is not None


def _bad(message: str, text: str) -> RequestError:
    return RequestError(message, rule="spiffe.id", detail=repr(text)[:300])
