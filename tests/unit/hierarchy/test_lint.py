"""The linters find each fault of a CA's certificate, whoever signed it."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from bridge.errors import ConfigError
from bridge.hierarchy.certificate import IssuerName
from bridge.hierarchy.lint import findings, require_clean
from bridge.x509.certificate import key_usage
from tests.support.parts.pki import NOW, new_key

KEY, ABOVE = new_key(), new_key()
OWN_ID = x509.SubjectKeyIdentifier.from_public_key(KEY.public_key())
ABOVE_ID = x509.SubjectKeyIdentifier.from_public_key(ABOVE.public_key())
Extensions = dict[type[x509.ExtensionType], tuple[x509.ExtensionType, bool]]


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


ISSUER = IssuerName(name("Root"), ABOVE.public_key(), ABOVE_ID)


def aki(identifier: x509.SubjectKeyIdentifier) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def certificate(
    change: Callable[[Extensions], object] = lambda _: None,
    *,
    serial: int = 1 << 100,
    subject: str = "EU CA",
    issuer: str = "Root",
    digest: hashes.HashAlgorithm | None = None,
) -> x509.Certificate:
    """Make a certificate that is right but for what is changed."""
    extensions: Extensions = {
        x509.BasicConstraints: (x509.BasicConstraints(ca=True, path_length=1), True),
        x509.KeyUsage: (key_usage(key_cert_sign=True, crl_sign=True), True),
        x509.SubjectKeyIdentifier: (OWN_ID, False),
        x509.AuthorityKeyIdentifier: (aki(ABOVE_ID), False),
    }
    change(extensions)
    builder = (
        x509.CertificateBuilder(issuer_name=name(issuer), subject_name=name(subject))
        .public_key(KEY.public_key())
        .serial_number(serial)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=365))
    )
    for value, critical in extensions.values():
        builder = builder.add_extension(value, critical)
    return builder.sign(ABOVE, digest or hashes.SHA256())  # type: ignore[arg-type]


def put(value: x509.ExtensionType, *, critical: bool) -> Callable[[Extensions], object]:
    return lambda extensions: extensions.update({type(value): (value, critical)})


def policies(text: str) -> x509.CertificatePolicies:
    notice = x509.UserNotice(None, text)
    identifier = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
    return x509.CertificatePolicies([x509.PolicyInformation(identifier, [notice])])


def without(kind: type[x509.ExtensionType]) -> Callable[[Extensions], object]:
    return lambda extensions: extensions.pop(kind)


def test_a_signature_of_a_kind_that_no_data_plane_reads_is_found() -> None:
    made = certificate(digest=hashes.SHA3_256())
    (told,) = findings(made, ISSUER, with_pkilint=False)
    assert told.startswith("is signed with ")


def test_nothing_is_found_in_a_good_certificate() -> None:
    require_clean(
        findings(certificate(), ISSUER, with_pkilint=True), source="eu: the certificate"
    )


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: certificate(serial=1 << 62), "a serial number of 63 bits: expected"),
        (
            lambda: certificate(
                put(x509.BasicConstraints(ca=True, path_length=1), critical=False)
            ),
            "has the extension 2.5.29.19 marked as not critical",
        ),
        (
            lambda: certificate(
                put(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            ),
            "has no path length",
        ),
        (
            lambda: certificate(
                put(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            ),
            "is not a CA certificate",
        ),
        (
            lambda: certificate(put(key_usage(crl_sign=True), critical=True)),
            "keyUsage has no keyCertSign",
        ),
        (
            lambda: certificate(without(x509.SubjectKeyIdentifier)),
            "has no extension 2.5.29.14",
        ),
        (
            lambda: certificate(put(ABOVE_ID, critical=False)),
            "has a subject key identifier that is not the SHA-1 of its key",
        ),
        (
            lambda: certificate(put(aki(OWN_ID), critical=False)),
            "has an authority key identifier that is not that of the CA that signs",
        ),
        (
            lambda: certificate(issuer="Another"),
            "has another issuer than the subject of the CA that signs",
        ),
        (
            lambda: certificate(put(policies("x" * 201), critical=False)),
            "a finding of pkilint, pkix",
        ),
    ],
)
def test_a_fault_is_found(made: Callable[[], x509.Certificate], says: str) -> None:
    told = "; ".join(findings(made(), ISSUER, with_pkilint=True))
    assert says in told


def test_a_root_of_another_program_keeps_its_identifier() -> None:
    own = x509.SubjectKeyIdentifier(b"by SHA-256")
    made = certificate(put(own, critical=False))
    require_clean(
        findings(made, ISSUER, with_pkilint=True, own_identifier=own),
        source="new: the certificate",
    )
    told = "; ".join(
        findings(made, ISSUER, with_pkilint=False, own_identifier=ABOVE_ID)
    )
    assert "has a subject key identifier that is not" in told


def test_each_finding_is_a_line_with_the_name_of_the_ca() -> None:
    faulty = certificate(put(aki(OWN_ID), critical=False), serial=1)
    with pytest.raises(ConfigError, match="eu: the certificate has a serial") as found:
        require_clean(
            findings(faulty, ISSUER, with_pkilint=False), source="eu: the certificate"
        )
    assert len(str(found.value).splitlines()) == 2


def test_pkilint_takes_the_base_of_a_constraint_for_a_name_and_is_not_heard() -> None:
    permitted = [
        x509.DNSName(".corp.example"),
        x509.RFC822Name("invalid"),
        # What the plan advises where no SPIFFE ID is meant.
        x509.UniformResourceIdentifier("invalid"),
        x509.UniformResourceIdentifier(".invalid"),
    ]
    constraints = x509.NameConstraints(permitted, None)
    good = certificate(put(constraints, critical=True))
    require_clean(
        findings(good, ISSUER, with_pkilint=True), source="eu: the certificate"
    )
