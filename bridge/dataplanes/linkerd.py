"""Check at load that linkerd2-proxy can verify what a chain issues.

`bridge.x509.path` checks every chain for what all verifiers require, this one included:
at most six CA certificates below the anchor, an extended key usage with both purposes
or none, names byte for byte, version 3, no critical extension that is not evaluated, no
`minimum` in a constraint, own names inside the constraints. This module checks what
linkerd2-proxy alone requires.

Source:
    linkerd2-proxy, linkerd/rustls/src/crypto.rs (the list of algorithms); rustls-webpki
    0.103, src/subject_name (constraints) and src/cert.rs.
"""

from collections.abc import Iterator, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from bridge.x509.algorithm import (
    ECDSA_SIGNATURES,
    ED25519_SIGNATURE,
    RSA_SIGNATURES,
    RSA_SIGNATURES_WITHOUT_NULL,
)
from bridge.x509.certificate import (
    extensions_of,
    name_of,
    signature_identifiers,
    value_in,
)
from bridge.x509.name_constraints import Kind, NameConstraints
from bridge.x509.name_forms import FORMS, is_dns_name

_SIGNATURES = RSA_SIGNATURES | ECDSA_SIGNATURES | {ED25519_SIGNATURE}
_PROXY = "linkerd2-proxy"
_RSA_BITS = range(2048, 8193)
_ALGORITHMS = (
    "RSA (PKCS#1 v1.5, 2048 to 8192 bits) or ECDSA (P-256, P-384, P-521) with SHA-256, "
    "SHA-384 or SHA-512, or Ed25519"
)
_ONLY_IF_PRESENT: tuple[Kind, ...] = (x509.UniformResourceIdentifier, x509.RFC822Name)


def linkerd_problems(
    path: Sequence[x509.Certificate], *, with_uri: bool
) -> Iterator[tuple[int, str]]:
    """Yield the index of each certificate that linkerd2-proxy rejects, and the reason.

    Args:
        path: A chain that `bridge.x509.path.validate_chain` has proven: issuing CA
            first, trust anchor last.
        with_uri: Leaves have a SPIFFE ID beside their DNS name.
    """
    last = len(path) - 1
    for index, certificate in enumerate(path):
        texts = constraint_problems(
            path[:index], certificate, with_uri=with_uri, proxy=_PROXY
        )
        for text in texts:
            yield index, text
        # Of an anchor only the key, the subject and the constraints are read.
        if index < last:
            for text in _signature_problems(certificate):
                yield index, text
        for text in _key_problems(certificate):
            yield index, text


def constraint_problems(
    below: Sequence[x509.Certificate],
    certificate: x509.Certificate,
    *,
    with_uri: bool,
    proxy: str,
) -> Iterator[str]:
    """Yield why a proxy with rustls rejects what a constrained CA issues.

    Args:
        below: The CA certificates below it.
        certificate: Any of a path.
        with_uri: Leaves have a URI name.
        proxy: The name of the proxy for people.
    """
    found = NameConstraints.of(certificate)
    if found is None:
        return
    way_out = "set fronts.linkerd.spiffe_uri to false, or " if proxy == _PROXY else ""
    if x509.UniformResourceIdentifier in found.constrained and with_uri:
        yield (
            f"has a URI constraint, under which {proxy} rejects every leaf with "
            f"a URI name, whether it matches or not: {way_out}reissue it without the "
            "URI constraint"
        )
    if x509.DirectoryName in found.constrained:
        yield (
            f"has a directory name constraint, under which {proxy} rejects every "
            "certificate, also with an empty subject: reissue it without"
        )
    for kind in _ONLY_IF_PRESENT:
        if kind in found.constrained and any(_has(one, kind) for one in below):
            yield (
                f"constrains {FORMS[kind].label} names, and a CA certificate below it "
                f"has one, which {proxy} then rejects, whether it matches or not: "
                "reissue one of the two without"
            )
    for host in _hosts(certificate):
        if host and not is_dns_name(host.removeprefix(".")):
            yield (
                f"has the DNS constraint {host!r}, under which {proxy} rejects "
                "every leaf, as it is no DNS name to it: no label of more than 63 "
                "characters or with a hyphen at an end, and the last one is no number; "
                "reissue it without"
            )


def _signature_problems(certificate: x509.Certificate) -> Iterator[str]:
    _, outer = signature_identifiers(certificate)
    if outer in _SIGNATURES:
        return
    oid = name_of(certificate.signature_algorithm_oid)
    if outer in RSA_SIGNATURES_WITHOUT_NULL:
        yield (
            f"is signed with {oid}, and its AlgorithmIdentifier lacks the parameters "
            "NULL, without which linkerd2-proxy does not know it (RFC 4055, 5): have "
            "it signed by another tool"
        )
        return
    yield (
        f"is signed with {oid}, which linkerd2-proxy does not accept in a chain: have "
        f"it signed with {_ALGORITHMS}"
    )


def _key_problems(certificate: x509.Certificate) -> Iterator[str]:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size not in _RSA_BITS:
        yield (
            f"has an RSA key of {key.key_size} bits: linkerd2-proxy takes 2048 to 8192"
        )


def _has(certificate: x509.Certificate, kind: Kind) -> bool:
    names = value_in(extensions_of(certificate), x509.SubjectAlternativeName)
    return any(type(name) is kind for name in names or ())


def _hosts(certificate: x509.Certificate) -> Iterator[str]:
    value = (
        extensions_of(certificate).get_extension_for_class(x509.NameConstraints).value
    )
    for subtrees in (value.permitted_subtrees, value.excluded_subtrees):
        for name in subtrees or ():
            if isinstance(name, x509.DNSName):
                yield name.value
