"""Lints the certificate of a CA, before the real key signs it and again afterwards.

What is linted first has the bytes of the real TBSCertificate and the signature of a
throwaway key. Two linters look at it: our own rules, which know the data planes, and
pkilint, which knows RFC 5280 and was written by others. Every finding is a failure.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import ConfigError
from bridge.hierarchy.certificate import IssuerName
from bridge.x509.algorithm import signature_problem
from bridge.x509.ca_certificate import BOTH_WAYS, Usages, ca_problems
from bridge.x509.certificate import UNREADABLE, issuer_of, subject_of

_SERIAL_BITS = range(64, 159 + 1)
"""Baseline Requirements 7.1: 64 random bits; RFC 5280, 4.1.2.2: at most 20 octets."""
_CRITICAL = (x509.BasicConstraints, x509.KeyUsage, x509.NameConstraints)
_HARMLESS = frozenset({"DEBUG", "INFO"})
_CONSTRAINTS = ".nameConstraints."
_IDENTIFIER = "pkix.unknown_subject_key_identifier_calculation_method"
"""Of a root of another program: what it signed names the identifier that it has."""
_NO_NAMES = frozenset(
    {
        "pkix.invalid_domain_name_syntax",
        "pkix.invalid_email_address_syntax",
        "pkix.invalid_uri_syntax",
    }
)
"""pkilint reads the base of a name constraint as a name. It is none: `.corp.example`,
`svc`, `invalid` and, for e-mail, a bare host are what RFC 5280, 4.2.1.10 and verifiers
have. Our own reader of constraints (`bridge.x509.name_forms`) judges them."""


def findings(
    certificate: x509.Certificate,
    issuer: IssuerName | None,
    *,
    with_pkilint: bool,
    own_identifier: x509.SubjectKeyIdentifier | None = None,
    usages: Usages = BOTH_WAYS,
) -> Iterator[str]:
    """Yield what is wrong with the certificate of a CA, whoever signed it.

    Args:
        certificate: It may have the signature of a throwaway key.
        issuer: Who is to sign it; None for a root.
        with_pkilint: Whether pkilint looks at it too.
        own_identifier: The key identifier that it has to have; by default the SHA-1 of
            its key.
        usages: What the leaves below it are used for.
    """
    # Its own first moment: whether it is valid now is not a matter of its form.
    start = certificate.not_valid_before_utc
    yield from ca_problems(certificate, cas_below=0, now=start, usages=usages)
    problem = signature_problem(certificate)
    if problem is not None:
        yield problem
    try:
        yield from _form(certificate)
        yield from _identifiers(certificate, issuer, own_identifier)
    except x509.ExtensionNotFound as error:
        yield f"has no extension {error.oid.dotted_string}, which every CA's has"
    except UNREADABLE as error:
        yield f"cannot be read: {error}"
    if with_pkilint:
        yield from _of_pkilint(certificate, is_own=own_identifier is None)


def require_clean(found: Iterable[str], *, source: str) -> None:
    """Refuse what a linter finds anything in.

    Args:
        found: Of `findings`, or of `crl_findings`.
        source: What was linted; each line of the message begins with it.

    Raises:
        ConfigError: The message has all findings, a line each.
    """
    if lines := [f"{source} {text}" for text in found]:
        raise ConfigError("\n".join(lines), rule="hierarchy.lint")


def _form(certificate: x509.Certificate) -> Iterator[str]:
    bits = certificate.serial_number.bit_length()
    if certificate.serial_number <= 0 or bits not in _SERIAL_BITS:
        yield (
            f"has a serial number of {bits} bits: expected a positive one of "
            f"{_SERIAL_BITS.start} to {_SERIAL_BITS[-1]} bits"
        )
    if certificate.not_valid_after_utc <= certificate.not_valid_before_utc:
        yield "has a notAfter that is not above its notBefore"
    for extension in certificate.extensions:
        expected = isinstance(extension.value, _CRITICAL)
        # Constraints that are not critical are a warning of the plan.
        is_choice = isinstance(extension.value, x509.NameConstraints)
        if extension.critical is not expected and not is_choice:
            word = "not critical" if expected else "critical"
            yield f"has the extension {extension.oid.dotted_string} marked as {word}"
    get = certificate.extensions.get_extension_for_class
    if get(x509.BasicConstraints).value.path_length is None:
        yield "has no path length: expected one, so that no key below adds tiers"


def _identifiers(
    certificate: x509.Certificate,
    issuer: IssuerName | None,
    expected: x509.SubjectKeyIdentifier | None,
) -> Iterator[str]:
    get = certificate.extensions.get_extension_for_class
    own = get(x509.SubjectKeyIdentifier).value
    by_key = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    if own != (expected or by_key):
        of_what = "the root's" if expected else "the SHA-1 of its key"
        yield f"has a subject key identifier that is not {of_what}"
    subject = issuer.subject.public_bytes() if issuer else subject_of(certificate)
    if issuer_of(certificate) != subject:
        yield "has another issuer than the subject of the CA that signs, byte for byte"
    above = issuer.key_identifier if issuer else own
    if get(x509.AuthorityKeyIdentifier).value.key_identifier != above.digest:
        yield "has an authority key identifier that is not that of the CA that signs"


def crl_findings(crl: x509.CertificateRevocationList) -> Iterator[str]:
    """Yield what pkilint finds in the CRL of a CA about CA certificates."""
    load, validator = _pkilint_of_crls()
    yield from _found(validator, load(crl.public_bytes(Encoding.DER), "crl"))


def _of_pkilint(certificate: x509.Certificate, *, is_own: bool) -> Iterator[str]:
    load, validator = _pkilint()
    document = load(certificate.public_bytes(Encoding.DER), "certificate")
    yield from _found(validator, document, is_own=is_own)


def _found(validator: Any, document: Any, *, is_own: bool = True) -> Iterator[str]:
    for result in validator.validate(document.root):
        for found in result.finding_descriptions:
            kind = found.finding
            path = str(result.node.path)
            is_constraint = _CONSTRAINTS in path and kind.code in _NO_NAMES
            is_kept = not is_own and kind.code == _IDENTIFIER
            is_harmless = kind.severity.name in _HARMLESS or is_constraint or is_kept
            if not is_harmless:
                told = f": {found.message}" if found.message else ""
                yield f"has a finding of pkilint, {kind.code} at {path}{told}"


@cache
def _pkilint() -> tuple[Any, Any]:
    # It takes most of a second to import, and no command but these needs it.
    from pkilint import loader  # noqa: PLC0415
    from pkilint.pkix import certificate, extension, name  # noqa: PLC0415

    validator = certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(
            name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS
        ),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )
    return loader.load_certificate, validator


@cache
def _pkilint_of_crls() -> tuple[Any, Any]:
    from pkilint import loader, pkix  # noqa: PLC0415
    from pkilint.pkix import crl, extension, name  # noqa: PLC0415

    validator = crl.create_pkix_crl_validator_container(
        [
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [
            crl.create_issuer_validator_container([]),
            crl.create_validity_validator_container(),
            crl.create_extensions_validator_container([]),
        ],
    )
    return loader.load_crl, validator
