"""Names and policies are read where verifiers do not read their text."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bridge.x509.certificate import (
    extensions_of,
    name_text,
    policy_texts,
    readable,
    subject_of,
)
from tests.interop.planes.certificates import build
from tests.interop.planes.oddities import change_of
from tests.support.parts.pki import NOW, new_key, new_root


def odd(oddity: str) -> x509.Certificate:
    return x509.load_der_x509_certificate(
        build(change_of(oddity, "issuing"), NOW).cas[0]
    )


@pytest.mark.parametrize(
    ("oddity", "text"),
    [
        ("latin-1-in-teletex-subject", "CN=K\xf6nigs CA"),
        ("latin-1-in-ia5-subject", "CN=K\xf6nigs CA"),
        ("letters-in-numeric-subject", "CN=CA 1"),
        ("universal-subject", "CN=K\xf6nigs CA"),
        ("latin-1-in-utf8-subject", None),
        ("plain", "CN=issuing"),
    ],
)
def test_a_name_is_read_in_latin_1_where_its_type_has_no_encoding(
    oddity: str, text: str | None
) -> None:
    certificate = odd(oddity)
    assert name_text(certificate, "subject") == text


def test_a_policy_is_read_without_its_notice() -> None:
    found = extensions_of(odd("latin-1-in-policy-notice"))
    (policy,) = found.get_extension_for_class(x509.CertificatePolicies).value
    assert policy.policy_qualifiers is None
    plain = extensions_of(odd("plain"))
    without = [one for one in found if one.oid != x509.CertificatePolicies.oid]
    assert {one.oid for one in without} == {one.oid for one in plain}


@pytest.mark.parametrize(
    ("oddity", "tags"),
    [
        ("plain", []),
        ("policies", []),
        ("latin-1-in-policy-notice", [26]),
        ("latin-1-in-utf8-policy-notice", [12]),
    ],
)
def test_the_texts_of_policies_are_found(oddity: str, tags: list[int]) -> None:
    assert [text[0] for text in policy_texts(odd(oddity))] == tags


def test_a_name_inside_an_extension_is_read_as_well() -> None:
    root, key = new_root(), new_key()
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Muller")])
    made = (
        x509.CertificateBuilder()
        .subject_name(issuer)
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(
            x509.AuthorityKeyIdentifier(b"abc", [x509.DirectoryName(issuer)], 9),
            critical=False,
        )
        .sign(root.key, root.certificate.signature_hash_algorithm)  # type: ignore[arg-type]
    )
    der = made.public_bytes(Encoding.DER)
    latin = der.replace(b"\x0c\6Muller", b"\x14\6M\xfcller")
    certificate = x509.load_der_x509_certificate(latin)
    found = extensions_of(certificate).get_extension_for_class(
        x509.AuthorityKeyIdentifier
    )
    names = found.value.authority_cert_issuer
    assert names == [x509.DirectoryName(readable(certificate).subject)]
    assert subject_of(certificate).endswith(b"\x14\6M\xfcller")


def test_what_can_be_read_is_left_as_it_is() -> None:
    certificate = odd("plain")
    assert readable(certificate) is certificate
