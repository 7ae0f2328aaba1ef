"""Load-time validation of a chain: what is wrong with which certificate."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache, partial

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from bridge.errors import ConfigError, DeniedError
from bridge.x509.algorithm import algorithm_of, signature_of
from bridge.x509.certificate import key_usage
from bridge.x509.der import content, elements, splice, tlv
from bridge.x509.path import (
    FoundChain,
    ValidatedChain,
    find_chain,
    validate_chain,
    verify_leaf_signature,
)
from tests.support.parts.pki import NOW, Authority, new_chain, new_root

Hash = hashes.SHA224 | hashes.SHA256 | hashes.SHA512 | hashes.SHA3_256
CA_USAGE = key_usage(key_cert_sign=True, crl_sign=True)
Key = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)
UTF8, PRINTABLE = x509.name._ASN1Type.UTF8String, x509.name._ASN1Type.PrintableString
DAY = timedelta(days=1)
PATIENCE_SECONDS = 20.0


@cache
def key(name: str) -> Key:
    """Return one key for each name; what comes before a dash is its kind."""
    makers: dict[str, Callable[[], Key]] = {
        "p521": partial(ec.generate_private_key, ec.SECP521R1()),
        "p384": partial(ec.generate_private_key, ec.SECP384R1()),
        "k256": partial(ec.generate_private_key, ec.SECP256K1()),
        "rsa2048": partial(rsa.generate_private_key, 65537, 2048),
        "rsa1024": partial(rsa.generate_private_key, 65537, 1024),  # to be refused
        "rsa2056": partial(rsa.generate_private_key, 3, 2056),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "ed448": ed448.Ed448PrivateKey.generate,
    }
    p256 = partial(ec.generate_private_key, ec.SECP256R1())
    return makers.get(name.partition("-")[0], p256)()


def named(name: str, kind: x509.name._ASN1Type = UTF8) -> x509.Name:
    if not name:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, kind)])


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One CA certificate to be made; `None` leaves an extension out."""

    subject: x509.Name
    issuer: x509.Name
    key: str
    signing_key: str
    hash: Hash | None = field(default_factory=hashes.SHA256)
    pss: bool = False
    not_before: datetime = NOW - DAY
    not_after: datetime = NOW + 100 * DAY
    ca: bool | None = True
    path_length: int | None = None
    usage: x509.KeyUsage | None = CA_USAGE
    extended: tuple[ObjectIdentifier, ...] = ()
    constraints: x509.ExtensionType | None = None
    identifier: bytes | None = None
    authority: x509.AuthorityKeyIdentifier | None = None
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = ()
    version: int = 3

    def make(self) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(self.issuer)
            .public_key(key(self.key).public_key())
            .serial_number(77)
            .not_valid_before(self.not_before)
            .not_valid_after(self.not_after)
        )
        for extension, critical in self._extensions():
            builder = builder.add_extension(extension, critical=critical)
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if self.pss else None
        made = builder.sign(key(self.signing_key), self.hash, rsa_padding=pss)
        return made if self.version == 3 else _without_extensions(made)

    def _extensions(self) -> list[tuple[x509.ExtensionType, bool]]:
        found: list[tuple[x509.ExtensionType | None, bool]] = [
            (self.usage, True),
            (self.constraints, True),
            (self.authority, False),
            *self.extra,
        ]
        if self.ca is not None:
            path_length = self.path_length if self.ca else None
            found.append((x509.BasicConstraints(self.ca, path_length), True))
        if self.extended:
            found.append((x509.ExtendedKeyUsage(self.extended), False))
        if self.identifier is not None:
            found.append((x509.SubjectKeyIdentifier(self.identifier), False))
        return [(one, critical) for one, critical in found if one is not None]


def _without_extensions(made: x509.Certificate) -> x509.Certificate:
    # Of version 1. Nobody verifies the signature upon an anchor.
    fields = [*elements(content(made.tbs_certificate_bytes))]
    _, algorithm, signature = elements(content(made.public_bytes(Encoding.DER)))
    tbs = tlv(0x30, b"".join(fields[1:7]))
    return x509.load_der_x509_certificate(tlv(0x30, tbs + algorithm + signature))


Tiers = dict[str, Tier]
ORDER = ("issuing", "regional", "root")


def good() -> Tiers:
    """Return issuing CA, regional intermediate and root, nothing wrong with them."""
    issuers = {"issuing": "regional", "regional": "root", "root": "root"}
    return {
        name: Tier(
            subject=named(name),
            issuer=named(issuers[name]),
            key=name,
            signing_key=issuers[name],
            path_length={"issuing": 0, "regional": 1, "root": None}[name],
            identifier=name.encode(),
            authority=x509.AuthorityKeyIdentifier(issuers[name].encode(), None, None),
        )
        for name in ORDER
    }


def changed(tier: str, **change: object) -> Tiers:
    tiers = good()
    tiers[tier] = replace(tiers[tier], **change)  # type: ignore[arg-type]
    return tiers


def validate(tiers: Tiers) -> ValidatedChain:
    issuing, regional, root = (tiers[name].make() for name in ORDER)
    return validate_chain(issuing, [regional], [root], now=NOW, source="chain.pem")


def permitted(*names: x509.GeneralName) -> x509.NameConstraints:
    return x509.NameConstraints(names, None)


def test_a_good_chain_is_described() -> None:
    tiers = changed("root", not_after=NOW + 50 * DAY)
    tiers["issuing"] = replace(tiers["issuing"], not_before=NOW - timedelta(hours=1))
    chain = validate(tiers)
    assert [(role, name.subject) for role, name in chain.tiers()] == [
        ("issuing CA", named("issuing")),
        ("intermediate", named("regional")),
        ("trust anchor", named("root")),
    ]
    assert chain.not_before == NOW - timedelta(hours=1)
    assert chain.not_after == NOW + 50 * DAY


Change = tuple[str, dict[str, object]]
GOOD: list[Change] = [
    ("issuing", {"path_length": None}),
    ("issuing", {"key": "rsa2048-issuing"}),
    ("issuing", {"key": "p521-issuing"}),
    ("issuing", {"key": "ed25519-issuing"}),
    ("root", {"key": "p384-root", "signing_key": "p384-root"}),
    ("root", {"key": "p521-root", "signing_key": "p521-root"}),
    ("root", {"key": "ed25519-root", "signing_key": "ed25519-root", "hash": None}),
    (
        "issuing",
        {
            "extended": (
                ExtendedKeyUsageOID.CLIENT_AUTH,
                ExtendedKeyUsageOID.SERVER_AUTH,
            )
        },
    ),
    ("root", {"hash": hashes.SHA224()}),
    ("issuing", {"hash": hashes.SHA512()}),
    ("issuing", {"identifier": None}),
    ("regional", {"authority": None}),
    ("issuing", {"not_before": NOW}),
    ("issuing", {"not_after": NOW + timedelta(seconds=1)}),
    (
        "issuing",
        {"extra": ((x509.UnrecognizedExtension(NameOID.TITLE, b"\5\0"), False),)},
    ),
    ("issuing", {"usage": key_usage(key_cert_sign=True)}),
    ("regional", {"path_length": 5}),
    ("root", {"path_length": 2}),
    ("root", {"usage": None}),
    ("regional", {"usage": None}),
    ("issuing", {"usage": None}),
    ("root", {"constraints": permitted(x509.DNSName("corp.example"))}),
    ("issuing", {"subject": x509.Name([x509.NameAttribute(NameOID.TITLE, "i")])}),
]


@pytest.mark.parametrize(("tier", "change"), GOOD)
def test_a_chain_may_be_like_this(tier: str, change: dict[str, object]) -> None:
    tiers = changed(tier, **change)
    if tier == "root" and "signing_key" in change:
        root = str(change["signing_key"])
        ways = {"ed25519-root": None}
        tiers["regional"] = replace(
            tiers["regional"],
            signing_key=root,
            hash=ways.get(root, hashes.SHA256()),
        )
    assert validate(tiers).issuing.issuer == named("regional")


def root_key(name: str) -> Callable[[Tiers], Tiers]:
    def alter(tiers: Tiers) -> Tiers:
        tiers["root"] = replace(tiers["root"], key=name, signing_key=name)
        tiers["regional"] = replace(tiers["regional"], signing_key=name)
        return tiers

    return alter


def intermediate_named(name: x509.Name) -> Callable[[Tiers], Tiers]:
    def alter(tiers: Tiers) -> Tiers:
        tiers["regional"] = replace(tiers["regional"], subject=name)
        tiers["issuing"] = replace(tiers["issuing"], issuer=name)
        return tiers

    return alter


def root_named(name: x509.Name) -> Callable[[Tiers], Tiers]:
    def alter(tiers: Tiers) -> Tiers:
        tiers["root"] = replace(tiers["root"], subject=name, issuer=name)
        tiers["regional"] = replace(tiers["regional"], issuer=name)
        return tiers

    return alter


def old_root(tiers: Tiers) -> Tiers:
    tiers["root"] = replace(tiers["root"], version=1)
    return tiers


ANCHORS: dict[str, Callable[[Tiers], Tiers]] = {
    "of version 1": old_root,
    "an RSA key of an odd size and exponent 3": root_key("rsa2056-root"),
    "an empty subject": root_named(named("")),
    "the subject of the issuing CA": root_named(named("issuing")),
    "the subject of the intermediate": root_named(named("regional")),
}


@pytest.mark.parametrize("alter", ANCHORS.values(), ids=ANCHORS)
def test_an_anchor_may_be_like_this(alter: Callable[[Tiers], Tiers]) -> None:
    tiers = alter(good())
    assert validate(tiers).anchor.issuer == tiers["root"].subject


def intermediate_key(tiers: Tiers) -> Tiers:
    tiers["regional"] = replace(tiers["regional"], key="rsa2056-x")
    tiers["issuing"] = replace(tiers["issuing"], signing_key="rsa2056-x")
    return tiers


INTERMEDIATES: dict[str, Callable[[Tiers], Tiers]] = {
    "an RSA key of an odd size and exponent 3": intermediate_key,
    "an empty subject": intermediate_named(named("")),
    "the subject of the anchor": intermediate_named(named("root")),
}


@pytest.mark.parametrize("alter", INTERMEDIATES.values(), ids=INTERMEDIATES)
def test_an_intermediate_may_be_like_this(alter: Callable[[Tiers], Tiers]) -> None:
    tiers = alter(good())
    assert validate(tiers).intermediates[0].subject == tiers["regional"].subject


@pytest.mark.parametrize("name", ["issuing", "regional"])
@pytest.mark.parametrize(
    ("tier", "lacks"),
    [("root", "identifier"), ("", "identifier"), ("regional", "authority")],
    ids=["of the anchor", "of its namesake", "of their issuer"],
)
def test_an_anchor_with_the_subject_of_a_ca_needs_key_identifiers(
    name: str, tier: str, lacks: str
) -> None:
    tiers = root_named(named(name))(good())
    tiers[tier or name] = replace(tiers[tier or name], **{lacks: None})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"trust anchor .* no key identifiers tell"):
        validate(tiers)


@pytest.mark.parametrize(
    ("tier", "change", "complaint"),
    [
        ("issuing", {"version": 1}, "is no X.509 version 3 certificate"),
        ("regional", {"version": 1}, "is no X.509 version 3 certificate"),
        ("issuing", {"key": "rsa2056-x"}, "must have 2048, 3072 or 4096 bits"),
    ],
)
def test_a_ca_below_the_anchor_is_not_held_to_what_an_anchor_is(
    tier: str, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        validate(changed(tier, **change))


def test_an_anchor_of_version_1_is_self_signed() -> None:
    tiers = old_root(good())
    tiers["root"] = replace(tiers["root"], issuer=named("another"))
    with pytest.raises(ConfigError, match=r"of X\.509 version 1 and not self-signed"):
        validate(tiers)


ISSUING = r"certificate 1 \(CN=issuing\)"
REGIONAL = r"certificate 2 \(CN=regional\)"
ROOT = r"trust anchor \(CN=root\)"


FAULTS: list[tuple[str, dict[str, object], str]] = [
    ("issuing", {"ca": None}, f"{ISSUING} is not a CA certificate"),
    ("regional", {"ca": False}, f"{REGIONAL} is not a CA"),
    ("root", {"ca": None}, f"{ROOT} is not a CA"),
    ("regional", {"path_length": 0}, f"{REGIONAL} has the pathLen 0 and 1 CA"),
    ("root", {"path_length": 1}, f"{ROOT} has the pathLen 1 and 2 CA"),
    ("issuing", {"usage": key_usage(crl_sign=True)}, f"{ISSUING} .* keyCertSign"),
    ("regional", {"usage": key_usage(crl_sign=True)}, f"{REGIONAL} .* keyCertSign"),
    ("root", {"usage": key_usage(crl_sign=True)}, f"{ROOT} .* no keyCertSign"),
    (
        "issuing",
        {"extended": (ExtendedKeyUsageOID.CLIENT_AUTH,)},
        f"{ISSUING} .* both serverAuth and clientAuth",
    ),
    (
        "regional",
        {"extended": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)},
        f"{REGIONAL} .* both serverAuth and clientAuth",
    ),
    (
        "issuing",
        {"extra": ((x509.UnrecognizedExtension(NameOID.TITLE, b"\5\0"), True),)},
        f"{ISSUING} has the critical extension .*2.5.4.12",
    ),
    (
        "regional",
        {"extra": ((x509.PolicyConstraints(0, None), True),)},
        f"{REGIONAL} has the critical extension policyConstraints",
    ),
    ("issuing", {"not_after": NOW}, f"{ISSUING} expired on"),
    ("root", {"not_after": NOW - timedelta(seconds=1)}, f"{ROOT} expired on"),
    (
        "regional",
        {"not_before": NOW + timedelta(seconds=1)},
        f"{REGIONAL} is not valid before 2026-06-01T12:00:01",
    ),
    ("issuing", {"hash": hashes.SHA224()}, f"{ISSUING} is signed with .*SHA224"),
    ("issuing", {"hash": hashes.SHA3_256()}, f"{ISSUING} is signed with"),
    ("issuing", {"key": "k256-issuing"}, f"{ISSUING} has an unfit key: .*P-521"),
    ("issuing", {"key": "ed448-issuing"}, f"{ISSUING} has an unfit key: .*Ed25519"),
    ("issuing", {"key": "rsa1024-issuing"}, f"{ISSUING} has an unfit key: .*2048"),
    ("issuing", {"signing_key": "other"}, "certificate 1 .*the signature is not"),
    ("regional", {"signing_key": "other"}, "certificate 2 .*the signature is not"),
    ("issuing", {"issuer": named("root")}, r"\(CN=root\) is not the other's subj"),
    (
        "issuing",
        {"issuer": named("regional", PRINTABLE)},
        r"\(CN=regional\) is not the other's subject \(CN=regional\), byte for",
    ),
    (
        "regional",
        {"issuer": named("root", PRINTABLE)},
        r"\(CN=root\), which is none of the trust anchors \(CN=root\)",
    ),
    (
        "issuing",
        {"authority": x509.AuthorityKeyIdentifier(b"another", None, None)},
        "certificate 1 .* authority key identifier is not",
    ),
    (
        "regional",
        {"authority": x509.AuthorityKeyIdentifier(b"another", None, None)},
        "certificate 2 .* authority key identifier is not",
    ),
    (
        "issuing",
        {
            "authority": x509.AuthorityKeyIdentifier(
                None, [x509.DirectoryName(named("root"))], 78
            )
        },
        "certificate 1 .* another serial number",
    ),
    (
        "issuing",
        {"constraints": permitted(x509.UniformResourceIdentifier("spiffe://x"))},
        f"{ISSUING} has name constraints that cannot be used: .*'spiffe://x' is no",
    ),
    (
        "root",
        {"constraints": x509.UnrecognizedExtension(x509.NameConstraints.oid, b"")},
        f"{ROOT} has .*cannot be read",
    ),
    (
        "root",
        {"constraints": permitted(x509.DirectoryName(named("regional")))},
        f"{ISSUING} has a name that the constraints above it do not allow",
    ),
]


@pytest.mark.parametrize(("tier", "change", "complaint"), FAULTS)
def test_a_chain_with_one_fault_is_refused(
    tier: str, change: dict[str, object], complaint: str
) -> None:
    tiers = changed(tier, **change)
    with pytest.raises(ConfigError, match=complaint) as caught:
        validate(tiers)
    assert str(caught.value).startswith("chain.pem: ")
    assert caught.value.rule == "config.chain"


@pytest.mark.parametrize(("tier", "change"), [fault[:2] for fault in FAULTS])
def test_a_search_takes_no_chain_that_is_refused_where_it_is_given(
    tier: str, change: dict[str, object]
) -> None:
    issuing, regional, root = made(changed(tier, **change))
    with pytest.raises(ConfigError, match=r"^chain\.pem: ") as caught:
        find_chain(issuing, [root, regional], [root], now=NOW, source="chain.pem")
    assert caught.value.rule == "config.chain"


def pss(tiers: Tiers) -> Tiers:
    tiers["regional"] = replace(tiers["regional"], key="rsa2048-regional")
    tiers["issuing"] = replace(
        tiers["issuing"], signing_key="rsa2048-regional", pss=True
    )
    return tiers


def same_subject(tiers: Tiers) -> Tiers:
    tiers["issuing"] = replace(tiers["issuing"], subject=named("regional"))
    return tiers


def same_key(tiers: Tiers) -> Tiers:
    tiers["issuing"] = replace(tiers["issuing"], key="root")
    return tiers


def forbidden_san(tiers: Tiers) -> Tiers:
    names = x509.SubjectAlternativeName([x509.DNSName("ca.evil.example")])
    tiers["issuing"] = replace(tiers["issuing"], extra=((names, False),))
    rule = permitted(x509.DNSName("corp.example"))
    tiers["root"] = replace(tiers["root"], constraints=rule)
    return tiers


def mail_in_subject(tiers: Tiers) -> Tiers:
    subject = x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, "ca@corp.example")])
    tiers["issuing"] = replace(tiers["issuing"], subject=subject)
    rule = permitted(x509.RFC822Name("corp.example"))
    tiers["regional"] = replace(tiers["regional"], constraints=rule)
    return tiers


def empty_subject(tiers: Tiers) -> Tiers:
    tiers["issuing"] = replace(tiers["issuing"], subject=named(""))
    return tiers


@pytest.mark.parametrize(
    ("alter", "complaint"),
    [
        (same_subject, "certificate 2 .* has the subject of certificate 1"),
        (same_key, "trust anchor .* has the key of certificate 1"),
        (forbidden_san, "certificate 1 .* 'ca.evil.example' is not in: corp.example"),
        (mail_in_subject, "certificate 1 .* e-mail address in its subject"),
        (empty_subject, r"certificate 1 \(no name\) has an empty subject"),
    ],
)
def test_a_chain_whose_tiers_clash_is_refused(
    alter: Callable[[Tiers], Tiers], complaint: str
) -> None:
    tiers = alter(good())
    with pytest.raises(ConfigError, match=complaint):
        validate(tiers)


def test_a_pss_signature_is_taken() -> None:
    # What refuses it is linkerd2-proxy alone: see `bridge.dataplanes.acceptance`.
    assert len(validate(pss(good())).intermediates) == 1


def test_a_key_that_is_restricted_to_pss_signs_no_leaf() -> None:
    # The leaves' PKCS#1 v1.5 signatures would be refused by every verifier that reads
    # the restriction.
    authority = new_chain("rsa2048")
    parent = authority.above[0]
    of_any_rsa = bytes.fromhex("300d06092a864886f70d0101010500")
    of_pss = bytes.fromhex("300d06092a864886f70d01010a3000")
    tbs = authority.certificate.tbs_certificate_bytes
    assert tbs.count(of_any_rsa) == 1
    tbs = tbs.replace(of_any_rsa, of_pss)
    algorithm = algorithm_of(parent.key.public_key())
    signed = splice(tbs, algorithm.der, signature_of(parent.key, algorithm, tbs))
    certificate = x509.load_der_x509_certificate(signed)
    with pytest.raises(ConfigError, match=r"certificate 1 .* is restricted to RSA-PSS"):
        validate_chain(
            certificate,
            [parent.certificate],
            [authority.root],
            now=NOW,
            source="chain.pem",
        )


def made(tiers: Tiers | None = None) -> list[x509.Certificate]:
    given = tiers or good()
    return [given[name].make() for name in ORDER]


@pytest.mark.parametrize(
    ("given", "anchors", "complaint"),
    [
        ((0, 1), (), "chain.pem: there are no trust anchors"),
        ((0, 1, 2), (2,), r"certificate 3 \(CN=root\) is itself a trust anchor"),
        ((0, 1), (1,), r"certificate 2 \(CN=regional\) is itself a trust anchor"),
        ((2,), (2,), r"certificate 1 \(CN=root\) is itself a trust anchor"),
        ((0, 1, 2), (0,), "certificate 3 .* is issued by itself, and is none of"),
        ((0,), (2,), r"is issued by \(CN=regional\), which is none of .*\(CN=root\)"),
        ((1, 0), (2,), "certificate 1 .* is not issued by the next"),
        ((0, 0), (1,), "has the subject of certificate 1"),
    ],
)
def test_a_chain_that_does_not_lead_to_an_anchor_is_refused(
    given: tuple[int, ...], anchors: tuple[int, ...], complaint: str
) -> None:
    chain = made()
    issuing, *rest = (chain[index] for index in given)
    trusted = [chain[index] for index in anchors]
    with pytest.raises(ConfigError, match=complaint):
        validate_chain(issuing, rest, trusted, now=NOW, source="chain.pem")


def test_an_intermediate_may_be_the_anchor() -> None:
    issuing, regional, _ = made()
    chain = validate_chain(issuing, [], [regional], now=NOW, source="chain.pem")
    assert chain.anchor == regional


def test_a_bundle_may_hold_an_intermediate_and_its_root_during_a_rotation() -> None:
    issuing, regional, root = made()
    chain = validate_chain(
        issuing, [regional], [regional, root], now=NOW, source="chain.pem"
    )
    assert chain.anchor == root


def test_of_an_anchor_and_its_renewal_the_valid_and_lasting_one_is_taken() -> None:
    issuing, regional, root = made()
    later = replace(good()["root"], not_after=NOW + 900 * DAY).make()
    expired = replace(good()["root"], not_after=NOW - timedelta(hours=1)).make()
    not_yet = replace(
        good()["root"], not_before=NOW + DAY, not_after=NOW + 999 * DAY
    ).make()
    chain = validate_chain(
        issuing, [regional], [expired, root, later, not_yet], now=NOW, source="c"
    )
    assert chain.anchor == later


def test_an_anchor_of_the_same_name_with_another_key_is_none() -> None:
    issuing, regional, _ = made()
    other = replace(good()["root"], key="other", signing_key="other").make()
    with pytest.raises(ConfigError, match="issued by a trust anchor, but the signatu"):
        validate_chain(issuing, [regional], [other], now=NOW, source="chain.pem")


def test_all_faults_are_listed_at_once() -> None:
    ended = NOW - timedelta(hours=1)
    tiers = changed("issuing", usage=key_usage(crl_sign=True), not_after=ended)
    tiers["root"] = replace(tiers["root"], ca=False)
    with pytest.raises(ConfigError, match="keyCertSign") as caught:
        validate(tiers)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("chain.pem: ") for line in lines)


def test_more_tiers_than_rustls_builds_a_path_from_are_refused() -> None:
    names = [f"ca{number}" for number in range(8)]
    chain = [
        Tier(subject=named(own), issuer=named(above), key=own, signing_key=above).make()
        for own, above in zip(names, [*names[1:], names[-1]], strict=True)
    ]
    with pytest.raises(ConfigError, match=r"one of 7 CA certificates .* at most 6"):
        validate_chain(chain[0], chain[1:-1], chain[-1:], now=NOW, source="c")
    short = validate_chain(chain[1], chain[2:-1], chain[-1:], now=NOW, source="c")
    assert len(short.tiers()) == 7


def test_extensions_that_cannot_be_read_are_refused() -> None:
    tiers = good()
    doubled = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.14"), b"\4\1x")
    tiers["issuing"] = replace(tiers["issuing"], identifier=None)
    certificate = replace(
        tiers["issuing"],
        extra=(
            (doubled, False),
            (x509.UnrecognizedExtension(NameOID.TITLE, b"\5\0"), False),
        ),
    ).make()
    title, identifier = b"\6\3\x55\4\x0c", b"\6\3\x55\x1d\x0e"
    raw = certificate.public_bytes(Encoding.DER).replace(title, identifier)
    broken = x509.load_der_x509_certificate(raw)
    regional, root = tiers["regional"].make(), tiers["root"].make()
    with pytest.raises(ConfigError, match="has extensions that cannot be read"):
        validate_chain(broken, [regional], [root], now=NOW, source="chain.pem")


def test_the_constraints_of_every_tier_count() -> None:
    for tier in ORDER:
        rule = permitted(x509.UniformResourceIdentifier("corp.example"))
        chain = validate(changed(tier, constraints=rule))
        inside = x509.UniformResourceIdentifier("spiffe://corp.example/x")
        outside = x509.UniformResourceIdentifier("spiffe://evil.example/x")
        chain.constraints.require_permitted([inside])
        with pytest.raises(DeniedError, match=f"of tier {ORDER.index(tier) + 1} of"):
            chain.constraints.require_permitted([outside])


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, True),
        ({"signing_key": "other"}, False),
        ({"issuer": named("root")}, False),
        ({"hash": hashes.SHA224()}, False),
    ],
)
def test_the_leaf_is_the_issuing_cas_or_it_is_not(
    change: dict[str, object],
    verdict: bool,  # noqa: FBT001 - a column of the table
) -> None:
    issuing, regional, _ = made(changed("issuing", **change))
    assert verify_leaf_signature(issuing, regional) is verdict


ROOT_A, ROOT_B = new_root("A"), new_root("B")
UPPER = ROOT_A.issue_ca("upper")
UPPER_OF_B = ROOT_B.issue_ca("upper", key=UPPER.key)
"""The other half of a cross-signed pair: name and key of `UPPER`, by another root."""
CA = UPPER.issue_ca("lower")
CA_OF_B = ROOT_B.issue_ca("lower", key=CA.key)
A_BY_B = ROOT_B.issue_ca("A", key=ROOT_A.key)
"""A cross-certificate of the root A."""
B_BY_A = ROOT_A.issue_ca("B", key=ROOT_B.key)
SHORT_A_BY_B = ROOT_B.issue_ca("A", key=ROOT_A.key, not_after=NOW + 29 * DAY)
ENDED_UPPER = ROOT_A.issue_ca("upper", key=UPPER.key, not_after=NOW - timedelta(1))
RENEWED_UPPER = ROOT_A.issue_ca("upper", key=UPPER.key, not_after=NOW + 3660 * DAY)
STRANGER = new_root("C").issue_ca("stranger")
SAME_NAME = ROOT_A.issue_ca("upper")
"""An intermediate of the same name with another key."""


def found(others: list[Authority], anchors: list[Authority]) -> FoundChain:
    return find_chain(
        CA.certificate,
        [one.certificate for one in others],
        [one.certificate for one in anchors],
        now=NOW,
        source="chain.pem",
    )


@pytest.mark.parametrize(
    ("others", "anchors", "path"),
    [
        ([UPPER], [ROOT_A], [CA, UPPER, ROOT_A]),
        ([ROOT_A, UPPER, CA], [ROOT_A], [CA, UPPER, ROOT_A]),
        ([UPPER, UPPER, ROOT_A], [ROOT_A, ROOT_A], [CA, UPPER, ROOT_A]),
        ([STRANGER, UPPER, ROOT_B], [ROOT_B, ROOT_A], [CA, UPPER, ROOT_A]),
        ([SAME_NAME, UPPER], [ROOT_A], [CA, UPPER, ROOT_A]),
        ([UPPER_OF_B, UPPER], [ROOT_A], [CA, UPPER, ROOT_A]),
        ([UPPER, UPPER_OF_B], [ROOT_B], [CA, UPPER_OF_B, ROOT_B]),
        ([CA_OF_B, UPPER], [ROOT_A], [CA, UPPER, ROOT_A]),
        ([CA_OF_B, UPPER], [ROOT_B], [CA_OF_B, ROOT_B]),
        ([A_BY_B, UPPER], [ROOT_A], [CA, UPPER, ROOT_A]),
        ([A_BY_B, UPPER], [ROOT_B], [CA, UPPER, A_BY_B, ROOT_B]),
        ([A_BY_B, UPPER], [ROOT_A, ROOT_B], [CA, UPPER, A_BY_B, ROOT_B]),
        ([SHORT_A_BY_B, UPPER], [ROOT_A, ROOT_B], [CA, UPPER, ROOT_A]),
        ([SHORT_A_BY_B, UPPER], [ROOT_B], [CA, UPPER, SHORT_A_BY_B, ROOT_B]),
        ([A_BY_B, B_BY_A, UPPER], [ROOT_A], [CA, UPPER, ROOT_A]),
        ([ENDED_UPPER, UPPER], [ROOT_A], [CA, UPPER, ROOT_A]),
        ([UPPER, UPPER_OF_B], [UPPER], [CA, UPPER]),
        ([UPPER, ROOT_A], [UPPER], [CA, UPPER]),
        ([UPPER], [UPPER, ROOT_A], [CA, UPPER, ROOT_A]),
    ],
    ids=[
        "nothing else",
        "the root and the issuing CA among them",
        "everything twice",
        "strangers",
        "the same name with another key",
        *("a pair, of which A is trusted", "a pair, of which B is trusted"),
        *("a pair of issuing CAs, A", "a pair of issuing CAs, B"),
        "a cross-certificate of an issuer that is not trusted",
        "a cross-certificate of the only issuer that is trusted",
        "a cross-certificate is served to peers that know one of the roots",
        "a cross-certificate that ends soon is not served",
        "a cross-certificate that ends soon, and no other path",
        "roots that issued each other",
        "an intermediate and the expired one before it",
        *("a trusted intermediate", "a trusted intermediate below its root"),
        "an intermediate and its root are trusted",
    ],
)
def test_the_path_is_found_among_what_is_given(
    others: list[Authority], anchors: list[Authority], path: list[Authority]
) -> None:
    for given in (others, others[::-1]):
        result = found(given, anchors)
        tiers = [certificate for _, certificate in result.chain.tiers()]
        assert tiers == [one.certificate for one in path]
        everything = dict.fromkeys([CA.certificate, *(o.certificate for o in given)])
        assert result.left_out == tuple(
            one for one in everything if one not in tiers[:-1]
        )


def test_of_two_halves_the_one_that_lasts_longer_is_served() -> None:
    lasting = ROOT_B.issue_ca(
        "upper", key=UPPER.key, not_after=NOW + 20 * DAY, not_before=NOW
    )
    short = ROOT_A.issue_ca("upper", key=UPPER.key, not_after=NOW + 10 * DAY)
    for given in ([lasting, short], [short, lasting]):
        anchor = found(given, [ROOT_A, ROOT_B]).chain.anchor
        assert anchor == ROOT_B.certificate


@pytest.mark.parametrize(
    ("others", "anchors", "complaint"),
    [
        (
            [],
            [ROOT_A],
            (
                r"^chain\.pem: certificate 1 \(CN=lower\) is issued by \(CN=upper\), "
                r"which is none of the trust anchors \(CN=A\) and not in the chain; .* "
                r"add the certificate of this issuer \(CN=upper, key identifier "
            ),
        ),
        (
            [STRANGER, ROOT_A],
            [ROOT_A],
            r"\(CN=lower\) is issued by \(CN=upper\), which",
        ),
        ([UPPER], [ROOT_B], r"^chain\.pem: certificate 2 \(CN=upper\) is issued by"),
        (
            [SAME_NAME],
            [ROOT_A],
            (
                r"certificate 1 \(CN=lower\) is named as issued by a certificate of "
                r"the chain, but the signature is not .*; add the one that issued it "
                r"\(CN=upper, key identifier"
            ),
        ),
        ([UPPER, ROOT_A], [ROOT_B], r"certificate 3 \(CN=A\) is issued by itself"),
        ([], [CA], r"certificate 1 \(CN=lower\) is itself a trust anchor"),
        ([UPPER, A_BY_B, B_BY_A], [STRANGER], "CA certificates issued each other"),
        ([ENDED_UPPER], [ROOT_A], r"certificate 2 \(CN=upper\) expired on"),
        ([UPPER], [], "there are no trust anchors"),
    ],
    ids=[
        *("no intermediate", "only strangers", "another anchor", "another key"),
        *("an untrusted root", "the issuing CA is an anchor", "a circle", "expired"),
        "no anchors",
    ],
)
def test_where_no_path_leads_the_missing_issuer_is_named(
    others: list[Authority], anchors: list[Authority], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        found(others, anchors)


def test_each_end_of_a_search_has_its_line() -> None:
    with pytest.raises(ConfigError, match=r"\(CN=A, key") as caught:
        found([UPPER, UPPER_OF_B], [STRANGER])
    assert len(str(caught.value).splitlines()) == 2


def test_a_path_that_a_data_plane_rejects_is_not_taken() -> None:
    def require(chain: ValidatedChain) -> None:
        if chain.anchor == ROOT_A.certificate:
            raise ConfigError("not with this root", rule="config.chain")

    given = [UPPER.certificate, UPPER_OF_B.certificate]
    anchors = [ROOT_A.certificate, ROOT_B.certificate]
    search = partial(find_chain, now=NOW, source="chain.pem", require=require)
    assert search(CA.certificate, given, anchors).chain.anchor == anchors[1]
    with pytest.raises(ConfigError, match="not with this root"):
        search(CA.certificate, given, anchors[:1])


def test_a_search_is_bounded() -> None:
    # Ten CAs that have all certified each other: nine million paths, and none ends.
    keys = {name: new_root(name) for name in map(str, range(10))}
    crossed = [
        keys[upper].issue_ca(lower, key=keys[lower].key)
        for upper in keys
        for lower in keys
        if upper != lower
    ]
    start = keys["0"].issue_ca("lower")
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="the search of a path was given up"):
        find_chain(
            start.certificate,
            [one.certificate for one in crossed],
            [STRANGER.certificate],
            now=NOW,
            source="chain.pem",
        )
    assert time.monotonic() - begun < PATIENCE_SECONDS
