"""What linkerd2-proxy cannot verify, told when a chain is loaded.

That rustls says the same of each chain is in `tests/interop/constraints`.
"""

from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

from bridge.dataplanes.linkerd import linkerd_problems
from bridge.x509.der import content, elements, splice, tlv
from tests.support.parts.pki import NOW, Authority, new_key, new_root, shared_key

DNS, URI, MAIL = x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name
DIRECTORY = x509.DirectoryName(
    x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Corp")])
)


def path(
    issuing: x509.NameConstraints | None = None,
    regional: x509.NameConstraints | None = None,
) -> list[x509.Certificate]:
    above = new_root().issue_ca("regional", constraints=regional)
    authority = above.issue_ca("issuing", constraints=issuing)
    return [*authority.chain, authority.root]


def permits(*names: x509.GeneralName) -> x509.NameConstraints:
    return x509.NameConstraints(names, None)


def excludes(*names: x509.GeneralName) -> x509.NameConstraints:
    return x509.NameConstraints(None, names)


def complaints(
    certificates: Sequence[x509.Certificate], *, with_uri: bool = False
) -> list[tuple[int, str]]:
    return [*linkerd_problems(certificates, with_uri=with_uri)]


GOOD = [
    None,
    permits(DNS("corp.example"), DNS(".corp.example")),
    permits(DNS("")),
    excludes(DNS("dev.corp.example"), DNS("under_score.example")),
    excludes(DNS("CORP.example")),
    permits(DNS("7.example"), DNS("a-b.example")),
    excludes(MAIL("corp.example")),
    permits(x509.RegisteredID(ObjectIdentifier("1.2.3"))),
    # Without a URI name in the leaf, nothing is held against it.
    permits(URI("corp.example")),
]


@pytest.mark.parametrize("constraints", GOOD)
@pytest.mark.parametrize("tier", ["issuing", "regional"])
def test_a_proxy_can_live_with(
    tier: str, constraints: x509.NameConstraints | None
) -> None:
    assert complaints(path(**{tier: constraints})) == []


BAD_CONSTRAINTS = [
    (permits(DIRECTORY), "has a directory name constraint, under which"),
    (excludes(DIRECTORY), "has a directory name constraint, under which"),
    (permits(DNS("-a.example")), "has the DNS constraint '-a.example', under which"),
    (excludes(DNS("a-.example")), "has the DNS constraint 'a-.example'"),
    (excludes(DNS(".corp.1")), "has the DNS constraint '.corp.1'"),
    (permits(DNS("a" * 64 + ".example")), "has the DNS constraint 'aaaa"),
]


@pytest.mark.parametrize(("constraints", "text"), BAD_CONSTRAINTS)
@pytest.mark.parametrize("tier", ["issuing", "regional"])
def test_a_constraint_under_which_every_leaf_is_rejected(
    tier: str, constraints: x509.NameConstraints, text: str
) -> None:
    ((index, complaint),) = complaints(path(**{tier: constraints}))
    assert index == ["issuing", "regional"].index(tier)
    assert complaint.startswith(text)
    assert complaint.endswith("reissue it without")


@pytest.mark.parametrize("constraints", [permits(URI("a")), excludes(URI("a"))])
def test_a_uri_constraint_and_a_uri_name_do_not_go_together(
    constraints: x509.NameConstraints,
) -> None:
    ((index, complaint),) = complaints(path(None, constraints), with_uri=True)
    assert index == 1
    assert "set fronts.linkerd.spiffe_uri to false, or reissue it" in complaint


def test_the_constraints_of_the_anchor_count() -> None:
    root = new_root()
    narrow = root.issue_ca("anchor", constraints=permits(DIRECTORY))
    issuing = narrow.issue_ca("issuing")
    ((index, _),) = complaints([issuing.certificate, narrow.certificate])
    assert index == 1


@pytest.mark.parametrize(
    ("own", "form"),
    [(URI("spiffe://corp.example/ca"), "URI"), (MAIL("ca@corp.example"), "e-mail")],
)
def test_a_ca_certificate_with_a_name_of_a_form_that_is_not_evaluated(
    own: x509.GeneralName, form: str
) -> None:
    kind = URI("corp.example") if form == "URI" else MAIL("corp.example")
    regional = new_root().issue_ca("regional", constraints=permits(kind))
    issuing = with_names(regional, own)
    ((index, complaint),) = complaints([issuing, regional.certificate, regional.root])
    assert index == 1
    assert complaint.startswith(f"constrains {form} names, and a CA certificate below")


def with_names(issuer: Authority, *names: x509.GeneralName) -> x509.Certificate:
    """Return a CA certificate with names of its own."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "named")]))
        .issuer_name(issuer.certificate.subject)
        .public_key(new_key().public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(issuer.certificate.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


# Algorithms. Identifiers in DER, by what stands in the TBSCertificate and outside.

SHA1 = bytes.fromhex("300d06092a864886f70d0101050500")
SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")
SHA256_BARE = bytes.fromhex("300b06092a864886f70d01010b")
SHA512 = bytes.fromhex("300d06092a864886f70d01010d0500")
PSS_BARE = bytes.fromhex("300b06092a864886f70d01010a")
ED448 = bytes.fromhex("300506032b6571")


def resigned(inner: bytes, outer: bytes) -> list[x509.Certificate]:
    """Return a chain whose issuing CA names these algorithms of its signature."""
    key = shared_key("rsa2048")
    assert isinstance(key, rsa.RSAPrivateKey)
    root = new_root(key=key)
    found = root.issue_ca("issuing").certificate
    fields = [*elements(content(found.tbs_certificate_bytes))]
    tbs = tlv(0x30, b"".join([*fields[:2], inner, *fields[3:]]))
    signature = key.sign(tbs, padding.PKCS1v15(), hashes.SHA256())
    der = splice(tbs, outer, signature)
    return [x509.load_der_x509_certificate(der), root.certificate]


@pytest.mark.parametrize("identifier", [SHA256, SHA512])
def test_a_signature_that_a_proxy_knows(identifier: bytes) -> None:
    assert complaints(resigned(identifier, identifier)) == []


BAD_SIGNATURES = [
    (SHA1, SHA1, ["which linkerd2-proxy does not accept in a chain"]),
    (PSS_BARE, PSS_BARE, ["which linkerd2-proxy does not accept in a chain"]),
    (ED448, ED448, ["which linkerd2-proxy does not accept in a chain"]),
    (SHA256_BARE, SHA256_BARE, ["lacks the parameters NULL"]),
]


@pytest.mark.parametrize(("inner", "outer", "texts"), BAD_SIGNATURES)
def test_a_signature_that_a_proxy_does_not_know(
    inner: bytes, outer: bytes, texts: list[str]
) -> None:
    found = complaints(resigned(inner, outer))
    assert [index for index, _ in found] == [0] * len(texts)
    for (_, complaint), text in zip(found, texts, strict=True):
        assert text in complaint


def test_the_signature_upon_the_anchor_is_of_no_account() -> None:
    anchor, _ = resigned(SHA1, SHA1)
    assert complaints([path()[0], anchor]) == []


KEYS = {
    "p256": True,
    "p384": True,
    "p521": True,
    "rsa2048": True,
    "ed25519": True,
    "rsa1024": False,
}


def with_key(kind: str) -> x509.Certificate:
    """Return a CA certificate with a key of a kind."""
    key = rsa1024() if kind == "rsa1024" else shared_key(kind)
    return new_root().issue_ca("issuing", key=key).certificate


def rsa1024() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused


@pytest.mark.parametrize(("kind", "known"), KEYS.items())
@pytest.mark.parametrize("role", ["issuing CA", "trust anchor"])
def test_a_key_is_of_a_kind_that_a_proxy_knows(
    kind: str, role: str, *, known: bool
) -> None:
    certificate = with_key(kind)
    below = path()[:1] if role == "trust anchor" else []
    above = path()[-1:] if role == "issuing CA" else []
    found = complaints([*below, certificate, *above])
    assert [index for index, _ in found] == ([] if known else [len(below)])
    for _, complaint in found:
        assert "linkerd2-proxy" in complaint
