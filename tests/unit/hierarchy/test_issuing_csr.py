"""Of the CSR of an issuing CA only its key is used, and only if the CSR proves it."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bridge.dataplanes.planes import DataPlane
from bridge.errors import ConfigError
from bridge.hierarchy.issuing_csr import read_issuing_key
from bridge.hierarchy.throwaway import ThrowawaySpec, make
from bridge.spiffe import TrustDomain
from bridge.x509.algorithm import algorithm_of
from bridge.x509.path import validate_chain
from tests.support.parts.pki import NOW, Key, new_chain, shared_key

VECTORS = Path(__file__).parents[2] / "vectors/csr"
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever the tool wrote")])
NO_CSR = r"issuing\.csr: expected one CSR \(PKCS#10\), in PEM or DER"


def csr(key: Key) -> x509.CertificateSigningRequest:
    """A CSR with a subject and an extension, both of which are to be ignored."""
    constraints = x509.BasicConstraints(ca=True, path_length=7)
    builder = x509.CertificateSigningRequestBuilder(NAME)
    return builder.add_extension(constraints, critical=True).sign(
        key, algorithm_of(key.public_key()).hash
    )


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "ed25519"])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_every_kind_of_ca_key_is_read_from_pem_and_der(
    tmp_path: Path, kind: str, encoding: Encoding
) -> None:
    file = tmp_path / "issuing.csr"
    file.write_bytes(csr(shared_key(kind)).public_bytes(encoding))
    assert read_issuing_key(file) == shared_key(kind).public_key()


def test_the_issuing_ca_has_the_key_and_nothing_else_of_the_csr(tmp_path: Path) -> None:
    file = tmp_path / "issuing.csr"
    file.write_bytes(csr(shared_key("rsa2048")).public_bytes(Encoding.PEM))
    planes = frozenset({DataPlane.SIDECAR})
    spec = ThrowawaySpec(
        trust_domains=(TrustDomain("corp.example"),), data_planes=planes
    )
    made = make(spec, clock=lambda: NOW, issuing_key=read_issuing_key(file))
    found, usual = made.issuing.certificate, make(spec, clock=lambda: NOW).issuing
    assert found.public_key() == shared_key("rsa2048").public_key()
    assert made.issuing.key is None
    assert made.intermediate.key is not None
    assert NAME.rfc4514_string() not in found.subject.rfc4514_string()
    assert [one.oid for one in found.extensions] == [
        one.oid for one in usual.certificate.extensions
    ]
    basic = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.value.path_length == 0
    tiers = made.intermediate.certificate, made.root.certificate
    validate_chain(found, tiers[:1], tiers[1:], now=NOW, source="test")


BAD_KEY = "its key or its signature is of no kind that a CA may have: expected RSA"
NOT_PROVEN = "the CSR's signature is not that of its key"


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        ("der-cut", "one CSR .* in PEM or DER .found other or damaged DER"),
        ("der-two-requests", "one CSR .* in PEM or DER .found other or damaged DER"),
        ("der-version-1", "one CSR .* in PEM or DER .found other or damaged DER"),
        ("key-brainpool-p256r1", "a CA's EC key must be on P-256, P-384 or P-521"),
        ("key-dsa", "a CA's key must be RSA, EC on P-256"),
        ("key-p256-off-curve", BAD_KEY),
        ("key-rsa-1024", "RSA key must have 2048, 3072 or 4096 bits"),
        ("key-rsa-exponent-3", "RSA key must have the exponent 65537"),
        ("key-rsa-roca", "CVE-2017-15361"),
        ("key-rsa-close-primes", "primes that are too close"),
        ("pem-other-label", "does not start with -----BEGIN CERTIFICATE REQUEST"),
        ("pem-text-before", "text stands before the PEM block"),
        ("pem-two-blocks", "more than one PEM block"),
        ("signature-md5-rsa", r"with SHA-256, SHA-384 or SHA-512 \(found md5"),
        ("signature-sha1-ecdsa", r"with SHA-256, SHA-384 or SHA-512 \(found sha1"),
        ("signature-other-key", NOT_PROVEN),
        ("signature-other-hash", NOT_PROVEN),
        ("signature-zero", NOT_PROVEN),
        ("signature-rsa-algorithm-on-ec-key", NOT_PROVEN),
    ],
)
def test_a_csr_that_proves_no_good_key_is_refused(vector: str, says: str) -> None:
    file = VECTORS / f"bad-{vector}.pem"
    with pytest.raises(ConfigError, match=rf"bad-{vector}\.pem: .*{says}") as refusal:
        read_issuing_key(file)
    assert refusal.value.rule == "hierarchy.csr"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the text is empty"),
        (b"\xff\xfe", "found neither"),
        (b"hello", "the text holds no PEM block"),
        (bytes.fromhex("3003020100"), "found other or damaged DER"),
        (new_chain().pem, "does not start with -----BEGIN CERTIFICATE REQUEST-----"),
    ],
    ids=["empty", "binary", "text", "other DER", "a certificate"],
)
def test_what_is_no_csr_is_told_with_what_is_expected(
    tmp_path: Path, content: bytes, says: str
) -> None:
    file = tmp_path / "issuing.csr"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{NO_CSR} \(.*{says}"):
        read_issuing_key(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"issuing\.csr: "):
        read_issuing_key(tmp_path / "issuing.csr")
