"""Which data planes work with the name constraints of a chain.

Source:
    Run against ztunnel, linkerd2-proxy (rustls-webpki 0.103.12 to 0.103.14, RUSTSEC-
    2026-0098), Go 1.26 and OpenSSL 3.0; from source for Envoy (BoringSSL, v3_ncons.cc).
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum

from cryptography import x509

from bridge.x509.certificate import extensions_of, readable
from bridge.x509.name_constraints import NameConstraints
from bridge.x509.name_forms import OTHER_FORMS


class DataPlane(StrEnum):
    """What verifies the leaves."""

    SIDECAR = "sidecar"
    """Envoy, beside each workload or as a gateway."""
    AMBIENT = "ambient"
    """Istio's ztunnel."""
    LINKERD = "linkerd"
    """linkerd2-proxy."""


RUSTLS_PLANES = frozenset({DataPlane.AMBIENT, DataPlane.LINKERD})
"""rustls-webpki refuses every URI name under a URI constraint (RUSTSEC-2026-0098)."""


def data_plane_problems(certificates: Sequence[x509.Certificate]) -> list[str]:
    """Return which data planes do not work with the constraints of a chain.

    Args:
        certificates: All CA certificates, the issuing CA first and the trust anchor
            last: rustls holds those of an anchor against a path too.

    Returns:
        Sentences that say what happens and what to change; empty if all work.

    Raises:
        ConfigError: See `NameConstraints.of`.
    """
    problems: list[str] = []
    for tier, certificate in enumerate(certificates, 1):
        found = NameConstraints.of(certificate)
        if found is not None:
            subject = _text(readable(certificate).subject)
            where = f"the certificate of tier {tier} ({subject})"
            problems.extend(f"{where} {text}" for text in _clashes(found))
            problems.extend(f"{where} {text}" for text in _ambiguous(certificate))
    return problems


def _clashes(found: NameConstraints) -> Iterator[str]:
    """Yield what a verifier does not evaluate, or always refuses."""
    if x509.UniformResourceIdentifier in found.constrained:
        yield (
            "has a URI constraint: ztunnel (Istio ambient) rejects every certificate "
            "under it, and linkerd2-proxy every one with a URI name; leave it out of "
            "chains for these (the bridge holds the trust domain itself), and use it "
            "for chains of sidecars only"
        )
    if x509.DirectoryName in found.constrained:
        yield (
            "has a directory name constraint: ztunnel and linkerd2-proxy reject every "
            "path with one, and Go does if it is critical; leave it out"
        )
    if x509.IPAddress in found.constrained:
        yield (
            "has an IP constraint: Envoy rejects leaves with an IP address under it; "
            "leave it out, or issue no IP addresses to sidecars and gateways"
        )
    if found.unsupported:
        yield (
            "constrains a form that no verifier evaluates "
            f"({', '.join(sorted(OTHER_FORMS[kind] for kind in found.unsupported))}); "
            "leave it out"
        )
    if not found.critical:
        yield (
            "has name constraints that are not critical: a verifier that does not "
            "know them ignores them; mark the extension as critical"
        )


def _ambiguous(certificate: x509.Certificate) -> Iterator[str]:
    """Yield URI hosts that OpenSSL and Go read differently."""
    extension = extensions_of(certificate).get_extension_for_class(x509.NameConstraints)
    for word, names in (
        ("permits", extension.value.permitted_subtrees or ()),
        ("excludes", extension.value.excluded_subtrees or ()),
    ):
        hosts = {
            name.value.lower()
            for name in names
            if isinstance(name, x509.UniformResourceIdentifier)
        }
        for host in sorted(hosts):
            if not host:
                yield (
                    f"{word} the empty URI host: that is every URI for Go and none for "
                    "OpenSSL; write a host"
                )
            elif host[0] != "." and f".{host}" not in hosts:
                yield (
                    f"{word} the URI host {host!r} without {'.' + host!r}: Go up to "
                    "1.27 includes subdomains, OpenSSL and Envoy do not; write both "
                    "if subdomains are meant"
                )


def _text(subject: x509.Name) -> str:
    return subject.rfc4514_string() or "empty subject"
