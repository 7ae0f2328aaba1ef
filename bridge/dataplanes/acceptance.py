"""Hold a chain at load to what each data plane's verifier takes.

`bridge.x509.path` checks every chain for what all verifiers require. This module tells
what only some of them refuse: that is refused where such a data plane is served, and a
warning elsewhere.

Source:
    The table of `tests/interop/planes`, run against Envoy's BoringSSL, Go, and rustls
    as ztunnel and linkerd2-proxy have it.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, PublicKeyAlgorithmOID

from bridge.dataplanes.linkerd import constraint_problems, linkerd_problems
from bridge.dataplanes.planes import RUSTLS_PLANES, DataPlane
from bridge.errors import ConfigError
from bridge.x509.algorithm import ECDSA_SIGNATURES_WITH_NULL
from bridge.x509.certificate import (
    has_unique_id,
    issuer_of,
    key_of,
    name_text,
    signature_identifiers,
    subject_of,
)
from bridge.x509.der import content, elements

_NOBODY: frozenset[DataPlane] = frozenset()
_PRINTABLE_STRING = 0x13
_PRINTABLE = frozenset(
    f"{string.ascii_letters}{string.digits} '()+,-./:=?*&".encode("ascii")
)
"""What Go reads in a PrintableString: as X.680 has it, and two more."""
_COMPRESSED_POINT = frozenset({2, 3})
_NO_KEY_USAGE = (
    "has no keyUsage: every data plane takes it, but X509-SVID (4.3) asks for "
    "keyCertSign, and other verifiers may hold to it; reissue it with keyUsage"
)


@dataclass(frozen=True, slots=True)
class Objection:
    """What some verifiers hold against a certificate of a chain."""

    index: int
    """Of the certificate in the path."""
    text: str
    """A sentence without its subject: who refuses what, and the way out."""
    planes: frozenset[DataPlane]
    """The data planes that reject the chain; empty where only other programs do."""
    is_constraint: bool = False
    """Whether `bridge.dataplanes.planes.data_plane_problems` tells it too."""


def require_accepted(
    path: Sequence[x509.Certificate], served: Mapping[DataPlane, bool], *, source: str
) -> None:
    """Refuse a chain under which a served data plane would reject every leaf.

    Args:
        path: A chain that `bridge.x509.path.validate_chain` has proven: issuing CA
            first, trust anchor last.
        served: The data planes that get leaves of this issuing CA, and whether a leaf
            has a URI name there.
        source: The name of the chain for people; each message begins with it.

    Raises:
        ConfigError: The message has a line for each problem, with what to change.
    """
    problems = [one for one in objections(path, served) if one.planes & served.keys()]
    if problems:
        raise ConfigError(_lines(path, problems, source), rule="config.chain")


def acceptance_warnings(
    path: Sequence[x509.Certificate], served: Mapping[DataPlane, bool], *, source: str
) -> str:
    """Return what verifiers that are not served hold against a chain, a line each.

    Args:
        path: See `require_accepted`.
        served: See `require_accepted`.
        source: See `require_accepted`.
    """
    told = [
        one
        for one in objections(path, served)
        if not one.is_constraint and not one.planes & served.keys()
    ]
    return _lines(path, told, source)


def objections(
    path: Sequence[x509.Certificate], served: Mapping[DataPlane, bool]
) -> Iterator[Objection]:
    """Yield what each verifier holds against the certificates of a chain.

    Args:
        path: See `require_accepted`.
        served: See `require_accepted`.
    """
    last = len(path) - 1
    for index, certificate in enumerate(path):
        for text in _of_rustls(certificate, is_anchor=index == last):
            yield Objection(index, text, RUSTLS_PLANES)
        for text in _of_go(certificate):
            yield Objection(index, text, _NOBODY)
        if index != last and not _has_key_usage(certificate):
            yield Objection(index, _NO_KEY_USAGE, _NOBODY)
        for text in constraint_problems(
            path[:index], certificate, with_uri=True, proxy="ztunnel"
        ):
            ambient = frozenset({DataPlane.AMBIENT})
            yield Objection(index, text, ambient, is_constraint=True)
    with_uri = served.get(DataPlane.LINKERD, False)
    for index, text in linkerd_problems(path, with_uri=with_uri):
        linkerd = frozenset({DataPlane.LINKERD})
        yield Objection(index, text, linkerd, is_constraint="constrain" in text)


def _of_rustls(certificate: x509.Certificate, *, is_anchor: bool) -> Iterator[str]:
    if has_unique_id(certificate):
        yield (
            "has a unique identifier (RFC 5280, 4.1.2.8), and ztunnel and "
            "linkerd2-proxy cannot read it: reissue it without"
        )
    inner, signature = signature_identifiers(certificate)
    if inner != signature:
        yield (
            "names one signature algorithm inside and another one outside what is "
            "signed, and ztunnel and linkerd2-proxy leave such an anchor out: reissue "
            "it"
        )
    if is_anchor:
        return
    for extension in certificate.extensions:
        if extension.oid == ExtensionOID.CERTIFICATE_POLICIES and extension.critical:
            yield (
                "has critical certificatePolicies, which ztunnel and linkerd2-proxy "
                "reject: reissue it with policies that are not critical"
            )
    if signature in ECDSA_SIGNATURES_WITH_NULL:
        yield (
            "is signed with ECDSA, and its AlgorithmIdentifier has the parameters "
            "NULL, with which ztunnel and linkerd2-proxy do not know it (RFC 5758, "
            "3.2): have it signed by another tool"
        )


def _has_key_usage(certificate: x509.Certificate) -> bool:
    return any(one.oid == ExtensionOID.KEY_USAGE for one in certificate.extensions)


def _of_go(certificate: x509.Certificate) -> Iterator[str]:
    cannot = "programs in Go, such as gRPC without a proxy, cannot read it"
    if certificate.serial_number < 0:
        yield (
            f"has a negative serial number, and {cannot}: reissue it with a positive "
            "one"
        )
    kind, (_, key) = certificate.public_key_algorithm_oid, key_of(certificate)
    if kind == PublicKeyAlgorithmOID.EC_PUBLIC_KEY and key[0] in _COMPRESSED_POINT:
        yield (
            f"has a key whose point is compressed, and {cannot}: reissue it with an "
            "uncompressed one"
        )
    for which, name in (
        ("subject", subject_of(certificate)),
        ("issuer", issuer_of(certificate)),
    ):
        if not _is_printable(name):
            yield (
                f"has a PrintableString with other characters in its {which}, and "
                f"{cannot}: reissue it with a UTF8String"
            )


def _is_printable(name: bytes) -> bool:
    # A name is a sequence of sets of pairs of an OID and a value.
    for relative in elements(content(name)):
        for pair in elements(content(relative)):
            _, value = elements(content(pair))
            if value[0] == _PRINTABLE_STRING and not _PRINTABLE.issuperset(
                content(value)
            ):
                return False
    return True


def _lines(
    path: Sequence[x509.Certificate], problems: Sequence[Objection], source: str
) -> str:
    return "\n".join(
        f"{source}: {_title(path, one.index)} {one.text}"
        for one in sorted(problems, key=lambda one: one.index)
    )


def _title(path: Sequence[x509.Certificate], index: int) -> str:
    role = "trust anchor" if index == len(path) - 1 else f"certificate {index + 1}"
    return f"{role} ({name_text(path[index], 'subject')})"
