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
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import ConfigError
from bridge.x509.certificate import name_of, name_text
from bridge.x509.der import content, elements, tlv
from bridge.x509.name_constraints import Kind, NameConstraints
from bridge.x509.name_forms import is_dns_name

_NULL = "0500"
_SIGNATURES = frozenset(
    bytes.fromhex(identifier)
    for identifier in (
        *(f"300d06092a864886f70d0101{hash_}{_NULL}" for hash_ in ("0b", "0c", "0d")),
        *(f"300a06082a8648ce3d0403{hash_}" for hash_ in ("02", "03", "04")),
        "300506032b6570",  # Ed25519
    )
)
"""AlgorithmIdentifiers of signatures; webpki compares them byte for byte."""
_KEYS = frozenset(
    bytes.fromhex(identifier)
    for identifier in (
        f"300d06092a864886f70d010101{_NULL}",
        "301306072a8648ce3d020106082a8648ce3d030107",  # P-256
        "301006072a8648ce3d020106052b81040022",  # P-384
        "301006072a8648ce3d020106052b81040023",  # P-521
        "300506032b6570",  # Ed25519
    )
)
"""AlgorithmIdentifiers of keys."""
_RSA_BITS = range(2048, 8193)
_ALGORITHMS = (
    "RSA (PKCS#1 v1.5, 2048 to 8192 bits) or ECDSA (P-256, P-384, P-521) with SHA-256, "
    "SHA-384 or SHA-512, or Ed25519"
)
_VERSION = 0xA0  # [0] EXPLICIT
_INNER_SIGNATURE, _KEY = 2, 6  # where a TBSCertificate has them behind a version
_ONLY_IF_PRESENT: tuple[Kind, ...] = (x509.UniformResourceIdentifier, x509.RFC822Name)
_LABELS: dict[Kind, str] = {
    x509.UniformResourceIdentifier: "URI",
    x509.RFC822Name: "e-mail",
}


def require_verifiable(
    path: Sequence[x509.Certificate], *, with_uri: bool, source: str
) -> None:
    """Refuse a chain under which linkerd2-proxy would reject every leaf.

    Args:
        path: A chain that `bridge.x509.path.validate_chain` has proven: issuing CA
            first, trust anchor last.
        with_uri: Leaves have a SPIFFE ID beside their DNS name.
        source: The name of the chain for people; each message begins with it.

    Raises:
        ConfigError: The message has a line for each problem, with what to change.
    """
    problems = [*linkerd_problems(path, with_uri=with_uri)]
    if problems:
        raise ConfigError(
            "\n".join(
                f"{source}: {_title(path, index)} {text}" for index, text in problems
            ),
            rule="config.chain",
        )


def linkerd_problems(
    path: Sequence[x509.Certificate], *, with_uri: bool
) -> Iterator[tuple[int, str]]:
    """Yield the index of each certificate that linkerd2-proxy rejects, and the reason.

    Args:
        path: See `require_verifiable`.
        with_uri: See `require_verifiable`.
    """
    last = len(path) - 1
    for index, certificate in enumerate(path):
        for text in _constraint_problems(path[:index], certificate, with_uri=with_uri):
            yield index, text
        # Of an anchor only the key, the subject and the constraints are read.
        if index < last:
            for text in _signature_problems(certificate):
                yield index, text
        for text in _key_problems(certificate):
            yield index, text


def _constraint_problems(
    below: Sequence[x509.Certificate], certificate: x509.Certificate, *, with_uri: bool
) -> Iterator[str]:
    found = NameConstraints.of(certificate)
    if found is None:
        return
    if x509.UniformResourceIdentifier in found.constrained and with_uri:
        yield (
            "has a URI constraint, under which linkerd2-proxy rejects every leaf with "
            "a URI name, whether it matches or not: set fronts.linkerd.spiffe_uri to "
            "false, or reissue it without the URI constraint"
        )
    if x509.DirectoryName in found.constrained:
        yield (
            "has a directory name constraint, under which linkerd2-proxy rejects every "
            "certificate, also with an empty subject: reissue it without"
        )
    for kind in _ONLY_IF_PRESENT:
        if kind in found.constrained and any(_has(one, kind) for one in below):
            yield (
                f"constrains {_LABELS[kind]} names, and a CA certificate below it has "
                "one, which linkerd2-proxy then rejects, whether it matches or not: "
                "reissue one of the two without"
            )
    for host in _hosts(certificate):
        if host and not is_dns_name(host.removeprefix(".")):
            yield (
                f"has the DNS constraint {host!r}, under which linkerd2-proxy rejects "
                "every leaf, as it is no DNS name to it: no label of more than 63 "
                "characters or with a hyphen at an end, and the last one is no number; "
                "reissue it without"
            )


def _signature_problems(certificate: x509.Certificate) -> Iterator[str]:
    signed = [*elements(content(_der(certificate)))]
    inner, outer = _fields(certificate)[_INNER_SIGNATURE], signed[1]
    if inner != outer:
        yield (
            "names one signature algorithm inside and another one outside what is "
            "signed, byte for byte: reissue it"
        )
    if outer in _SIGNATURES:
        return
    oid = name_of(certificate.signature_algorithm_oid)
    if _with_null(outer) in _SIGNATURES:
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
    identifier = next(elements(content(_fields(certificate)[_KEY])))
    if identifier not in _KEYS:
        oid = name_of(certificate.public_key_algorithm_oid)
        yield (
            f"has a key of the kind {oid}, or written in a way, that linkerd2-proxy "
            f"does not know: it takes signatures of {_ALGORITHMS}"
        )
        return
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size not in _RSA_BITS:
        yield (
            f"has an RSA key of {key.key_size} bits: linkerd2-proxy takes 2048 to 8192"
        )


def _with_null(identifier: bytes) -> bytes:
    # An AlgorithmIdentifier without parameters, with NULL in their place.
    inside = content(identifier) + bytes.fromhex(_NULL)
    return tlv(identifier[0], inside)


def _has(certificate: x509.Certificate, kind: Kind) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except x509.ExtensionNotFound:
        return False
    return any(type(name) is kind for name in names)


def _hosts(certificate: x509.Certificate) -> Iterator[str]:
    value = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    for subtrees in (value.permitted_subtrees, value.excluded_subtrees):
        for name in subtrees or ():
            if isinstance(name, x509.DNSName):
                yield name.value


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _fields(certificate: x509.Certificate) -> list[bytes]:
    fields = [*elements(content(certificate.tbs_certificate_bytes))]
    return fields if fields[0][0] == _VERSION else [b"", *fields]


def _title(path: Sequence[x509.Certificate], index: int) -> str:
    role = "trust anchor" if index == len(path) - 1 else f"certificate {index + 1}"
    return f"{role} ({name_text(path[index], 'subject')})"
