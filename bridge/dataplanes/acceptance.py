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
    extensions_of,
    has_unique_id,
    issuer_of,
    key_of,
    policy_texts,
    signature_identifiers,
    subject_of,
    value_in,
)
from bridge.x509.der import content, elements
from bridge.x509.path import tier_title

_NOBODY: frozenset[DataPlane] = frozenset()
_GO_READS = {
    0x12: frozenset(f"{string.digits} ".encode("ascii")),
    0x13: frozenset(
        f"{string.ascii_letters}{string.digits} '()+,-./:=?*&".encode("ascii")
    ),
    0x16: frozenset(range(128)),
}
"""What Go reads in a NumericString, PrintableString (two more than X.680 has) and
IA5String."""
_NO_STRINGS_OF_GO = frozenset({0x1A, 0x1C})
"""VisibleString and UniversalString."""
_ALL = frozenset(range(256))
_UTF8_STRING = 0x0C
_DISPLAY_TEXT = frozenset({_UTF8_STRING, 0x16, 0x1A, 0x1E})
"""And IA5String, VisibleString, BMPString."""
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
        for text in () if index == last else _of_boringssl(certificate):
            yield Objection(index, text, frozenset({DataPlane.SIDECAR}))
        for text in _of_go(certificate):
            yield Objection(index, text, _NOBODY)
        usage = value_in(extensions_of(certificate), x509.KeyUsage)
        if index != last and usage is None:
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
    for extension in extensions_of(certificate):
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


def _of_boringssl(certificate: x509.Certificate) -> Iterator[str]:
    for text in policy_texts(certificate):
        try:
            is_text = text[0] in _DISPLAY_TEXT
            if text[0] == _UTF8_STRING:
                content(text).decode()
        except ValueError:
            is_text = False
        if not is_text:
            yield (
                "has a text in its certificatePolicies that Envoy cannot read (RFC "
                "5280, 4.2.1.4): reissue it with a UTF8String, or without the text"
            )


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
        if not _go_reads(name):
            yield (
                f"has a string in its {which} of a type that does not hold its "
                f"characters, and {cannot}: reissue it with a UTF8String"
            )


def _go_reads(name: bytes) -> bool:
    # A name is a sequence of sets of pairs of an OID and a value.
    for relative in elements(content(name)):
        for pair in elements(content(relative)):
            _, value = elements(content(pair))
            tag, text = value[0], content(value)
            if tag in _NO_STRINGS_OF_GO or not _GO_READS.get(tag, _ALL) >= {*text}:
                return False
    return True


def _lines(
    path: Sequence[x509.Certificate], problems: Sequence[Objection], source: str
) -> str:
    return "\n".join(
        f"{source}: {tier_title(path, len(path) - 1, one.index)} {one.text}"
        for one in sorted(problems, key=lambda one: one.index)
    )
