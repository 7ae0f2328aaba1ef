import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from bridge.x509.algorithm import CAPrivateKey
from bridge.x509.certificate import issuer_of, subject_of
from bridge.x509.der import splice
from bridge.x509.leaf_encoding import ExpectedLeaf
from bridge.x509.leaf_profile import LeafProfile
from tests.interop.planes.certificates import build, private_key
from tests.interop.planes.oddities import change_of
from tests.support.harness.fake_ca import sign
from tests.support.parts.pki import (
    KEY_KINDS,
    NOW,
    Authority,
    new_chain,
    new_key,
    new_root,
)

URI = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/web")
DNS = x509.DNSName("web.shop.serviceaccount.identity.linkerd.cluster.local")


def leaf(
    chain: Authority, *names: x509.GeneralName, serial: int = 1 << 126
) -> x509.Certificate:
    profile = LeafProfile(chain.certificate)
    tbs = profile.tbs(
        new_key().public_key(), names or (URI,), serial, NOW, NOW + timedelta(hours=1)
    )
    return x509.load_der_x509_certificate(
        splice(tbs, profile.algorithm.der, sign(chain.key, tbs))
    )


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_a_leaf_of_each_kind_of_ca_verifies(kind: str, tmp_path: Path) -> None:
    chain = new_chain(kind)
    made = leaf(chain)
    made.verify_directly_issued_by(chain.certificate)
    (tmp_path / "leaf.pem").write_bytes(made.public_bytes(Encoding.PEM))
    above = [*chain.chain[1:], chain.certificate]
    (tmp_path / "above.pem").write_bytes(
        b"".join(one.public_bytes(Encoding.PEM) for one in above)
    )
    (tmp_path / "root.pem").write_bytes(chain.root.public_bytes(Encoding.PEM))
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver"]
    command += ["-attime", str(int(NOW.timestamp()) + 60), "-CAfile", "root.pem"]
    command += ["-untrusted", "above.pem", "leaf.pem"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout == "leaf.pem: OK\n", done.stderr


def test_the_profile_is_the_meshs() -> None:
    chain = new_chain()
    made = leaf(chain, URI, DNS)
    assert made.version is x509.Version.v3
    assert made.subject == x509.Name([])
    assert made.issuer == chain.certificate.subject
    assert made.serial_number == 1 << 126
    assert made.not_valid_before_utc == NOW
    assert made.not_valid_after_utc == NOW + timedelta(hours=1)
    found = [(item.oid._name, item.critical) for item in made.extensions]
    assert found == [
        ("keyUsage", True),
        ("extendedKeyUsage", False),
        ("basicConstraints", True),
        ("authorityKeyIdentifier", False),
        ("subjectAltName", True),
    ]
    usage = made.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert usage.key_encipherment
    assert not usage.key_cert_sign
    assert not usage.crl_sign
    assert not usage.content_commitment
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    uses = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [use._name for use in uses] == ["serverAuth", "clientAuth"]
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [*names] == [URI, DNS]


def test_a_subject_is_copied_byte_for_byte() -> None:
    key = new_key()
    printable = x509.Name(
        [
            x509.NameAttribute(
                NameOID.COMMON_NAME, "Plain", _type=x509.name._ASN1Type.PrintableString
            )
        ]
    )
    root = new_root(key=key)
    certificate = x509.CertificateBuilder(
        printable,
        printable,
        key.public_key(),
        7,
        NOW.replace(tzinfo=None),
        (NOW + timedelta(days=1)).replace(tzinfo=None),
    ).sign(key, root.certificate.signature_hash_algorithm)  # type: ignore[arg-type]
    made = leaf(Authority(certificate, key))
    assert made.issuer.public_bytes() == printable.public_bytes()


@pytest.mark.parametrize(
    "oddity",
    [
        *("latin-1-in-teletex-subject", "latin-1-in-ia5-subject", "bmp-subject"),
        *("letters-in-numeric-subject", "universal-subject"),
        *("latin-1-in-policy-notice", "latin-1-in-ia5-policy-notice"),
    ],
)
def test_a_leaf_has_the_very_bytes_of_its_issuers_odd_name(oddity: str) -> None:
    der = build(change_of(oddity, "issuing"), NOW).cas[0]
    issuing = x509.load_der_x509_certificate(der)
    key = private_key("p256", "issuing")
    assert isinstance(key, CAPrivateKey)
    made = leaf(Authority(issuing, key))
    assert issuer_of(made) == subject_of(issuing)
    expected = ExpectedLeaf(issuing)
    spki = made.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    times = made.not_valid_before_utc, made.not_valid_after_utc
    assert made.tbs_certificate_bytes == expected.tbs(
        spki, [URI], made.serial_number, *times
    )
