from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID

from bridge.errors import ConfigError, MisissuedError
from bridge.issuance.signing import new_serial
from bridge.policy.issued import PinnedIssuer, names_of, require_as_prepared
from bridge.spi import LeafRequest
from tests.support.harness.fake_ca import LIES, Answer, Lie, LyingCA
from tests.support.parts.pki import KEY_KINDS, NOW, Authority, new_chain, new_key

URI = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/web")
CHAIN = new_chain()
KEY = new_key().public_key()
BOTH = [
    pytest.param(lie, builds, f"misissued.{rule}", id=f"{name}, {how}")
    for name, lie, with_tbs, without in LIES
    for builds, rule, how in ((False, with_tbs, "ours"), (True, without, "built"))
    if rule
]


def request(*names: x509.GeneralName) -> LeafRequest:
    return LeafRequest(
        attempt="0" * 32,
        public_key=KEY,
        spki=KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        csr=b"",
        names=names or (URI,),
        serial=new_serial(),
        not_before=NOW,
        not_after=NOW + timedelta(hours=1),
    )


def pinned(chain: Authority = CHAIN, **more: Any) -> PinnedIssuer:
    intermediates = [one.public_bytes(Encoding.DER) for one in chain.chain]
    return PinnedIssuer(chain.certificate, intermediates, **more)


@pytest.mark.parametrize("kind", KEY_KINDS)
@pytest.mark.parametrize("builds_tbs", [False, True])
def test_an_honest_certificate_passes(kind: str, *, builds_tbs: bool) -> None:
    chain = new_chain(kind)
    ca = LyingCA(chain, builds_tbs=builds_tbs)
    prepared = ca.prepare(request())
    issued = ca.issue(prepared, timeout=1)
    leaf = require_as_prepared(prepared, issued, pinned(chain))
    assert leaf.public_bytes(Encoding.DER) == issued.leaf


def answered(
    lie: Lie,
    *names: x509.GeneralName,
    issuer: PinnedIssuer | None = None,
    builds_tbs: bool = True,
) -> x509.Certificate:
    """Have a backend answer, by default one that builds; verify the answer."""
    ca = LyingCA(CHAIN, builds_tbs=builds_tbs, lie=lie)
    prepared = ca.prepare(request(*names))
    issued = ca.issue(prepared, timeout=1)
    return require_as_prepared(prepared, issued, issuer or pinned())


@pytest.mark.parametrize(("lie", "builds_tbs", "rule"), BOTH)
def test_each_deviation_breaks_its_rule(
    lie: Lie, rule: str, *, builds_tbs: bool
) -> None:
    with pytest.raises(MisissuedError, match="the issued certificate is ref") as found:
        answered(lie, builds_tbs=builds_tbs)
    assert found.value.rule == rule


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("3003020163", id="a TLS feature without a name"),
        pytest.param("3005a003020163", id="no list of TLS features"),
    ],
)
def test_a_certificate_that_cannot_be_read_stops_its_issuing_ca(value: str) -> None:
    # `cryptography` raises no ValueError for the first: as any other error than ours,
    # it would leave the issuing CA in service.
    oid = x509.TLSFeature.oid

    def lie(answer: Answer) -> None:
        odd = x509.UnrecognizedExtension(oid, bytes.fromhex(value))
        answer.extensions.append((odd, False))

    with pytest.raises(MisissuedError, match="it cannot be read") as found:
        answered(lie)
    assert found.value.rule == "misissued.unreadable"


def test_a_backend_may_add_the_key_identifier_of_the_leaf_and_order_as_it_likes() -> (
    None
):
    def as_vault_does(answer: Answer) -> None:
        answer.extensions.reverse()
        identifier = x509.SubjectKeyIdentifier.from_public_key(KEY)
        answer.extensions.append((identifier, False))

    answered(as_vault_does)


def moved(*, begins: int = 0, ends: int = 0) -> Lie:
    """Move the ends of the validity by seconds."""

    def lie(answer: Answer) -> None:
        answer.not_before += timedelta(seconds=begins)
        answer.not_after += timedelta(seconds=ends)

    return lie


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        (30, 0),  # a clock that is behind
        (-30, 0),  # a clock that is ahead
        (0, 5),  # the request was under way
        (0, -5),
        (30, -5),  # both at once
    ],
)
def test_a_backend_dates_by_its_own_clock(begins: int, ends: int) -> None:
    answered(moved(begins=begins, ends=ends))


@pytest.mark.parametrize(
    ("begins", "ends", "complaint"),
    [
        (31, 0, "notBefore is not the requested one"),
        (-31, 0, "notBefore is not the requested one"),  # it was not asked to date back
        (0, 6, "notAfter is not the requested one"),  # longer than the policy allows
        (0, -6, "notAfter is not the requested one"),
        (0, 3600, "notAfter is not the requested one"),  # the role's own lifetime
        (-3600, -3600, "notBefore is not the requested one"),  # right length, moved
    ],
)
def test_a_validity_that_no_clock_explains_is_refused(
    begins: int, ends: int, complaint: str
) -> None:
    with pytest.raises(MisissuedError, match=complaint) as found:
        answered(moved(begins=begins, ends=ends))
    assert found.value.rule == "misissued.validity"


def test_no_leaf_outlives_the_chain_of_its_issuer() -> None:
    ends = request().not_after
    answered(moved(), issuer=pinned(ends=ends))
    with pytest.raises(MisissuedError, match="outlives the chain") as found:
        answered(moved(ends=1), issuer=pinned(ends=ends))
    assert found.value.rule == "misissued.validity"


def test_the_chain_ends_with_the_issuing_ca_unless_told_otherwise() -> None:
    assert pinned().ends == CHAIN.certificate.not_valid_after_utc


@pytest.mark.parametrize("seconds", [-1, 1])
def test_what_the_bridge_builds_is_dated_exactly(seconds: int) -> None:
    with pytest.raises(MisissuedError, match="not the prepared one"):
        answered(moved(begins=seconds), builds_tbs=False)


DNS = x509.DNSName("a.example")


def test_a_backend_has_an_order_of_names_of_its_own() -> None:
    # Vault writes DNS names before URIs, whatever the order of the request.
    answered(lambda answer: answer.names.reverse(), URI, DNS)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        pytest.param((URI, DNS), [URI, DNS, DNS], id="a doubled name"),
        pytest.param((URI, DNS), [URI, URI], id="one doubled in place of another"),
        pytest.param((URI, DNS), [URI], id="a name too few"),
        pytest.param((URI,), [x509.DNSName(URI.value)], id="its text as a DNS name"),
        pytest.param(
            (DNS,), [x509.UniformResourceIdentifier(DNS.value)], id="its text as a URI"
        ),
        pytest.param((DNS,), [x509.RFC822Name(DNS.value)], id="its text as an email"),
        pytest.param((DNS,), [x509.DNSName("A.example")], id="another spelling"),
    ],
)
def test_the_names_are_those_of_the_request_by_type_and_number(
    names: tuple[x509.GeneralName, ...], found: list[x509.GeneralName]
) -> None:
    def lie(answer: Answer) -> None:
        answer.names = found

    with pytest.raises(MisissuedError, match="names are not the requested") as caught:
        answered(lie, *names)
    assert caught.value.rule == "misissued.names"


def aia(url: str = "http://pki.example/ca") -> x509.AuthorityInformationAccess:
    place = x509.UniformResourceIdentifier(url)
    description = x509.AccessDescription(
        AuthorityInformationAccessOID.CA_ISSUERS, place
    )
    return x509.AuthorityInformationAccess([description])


def crl_points(url: str = "http://pki.example/crl") -> x509.CRLDistributionPoints:
    place = x509.UniformResourceIdentifier(url)
    return x509.CRLDistributionPoints(
        [x509.DistributionPoint([place], None, None, None)]
    )


def extension(
    value: x509.ExtensionType, *, critical: bool = False
) -> x509.Extension[x509.ExtensionType]:
    return x509.Extension(value.oid, critical, value)


Added = list[tuple[x509.ExtensionType, bool]]


def adding(added: Added) -> Lie:
    return lambda answer: answer.extensions.extend(added)


@pytest.mark.parametrize("values", [[aia()], [crl_points()], [crl_points(), aia()]])
def test_a_backend_may_add_what_its_configuration_says(
    values: list[x509.ExtensionType],
) -> None:
    issuer = pinned(added=[extension(value) for value in values])
    answered(adding([(value, False) for value in values]), issuer=issuer)


@pytest.mark.parametrize(
    ("configured", "added"),
    [
        pytest.param([], [(aia(), False)], id="AIA where none is configured"),
        pytest.param([], [(crl_points(), False)], id="a CRL point where none is"),
        pytest.param([aia()], [(aia("http://evil.example"), False)], id="another URL"),
        pytest.param([aia()], [(aia(), True)], id="a critical AIA"),
        pytest.param(
            [aia()], [(aia(), False), (crl_points(), False)], id="a CRL point besides"
        ),
        pytest.param([aia(), crl_points()], [(aia(), False)], id="one of two is gone"),
        pytest.param([crl_points()], [(aia(), False)], id="one for the other"),
        pytest.param(
            [aia()],
            [(aia(), False), (x509.OCSPNoCheck(), False)],
            id="another extension besides",
        ),
    ],
)
def test_nothing_else_is_added(
    configured: list[x509.ExtensionType], added: Added
) -> None:
    issuer = pinned(added=[extension(value) for value in configured])
    with pytest.raises(MisissuedError, match="not those of the profile") as found:
        answered(adding(added), issuer=issuer)
    assert found.value.rule == "misissued.extensions"


@pytest.mark.parametrize(
    "added",
    [
        pytest.param([extension(aia(), critical=True)], id="critical"),
        pytest.param([extension(aia()), extension(aia())], id="twice"),
        pytest.param([extension(x509.OCSPNoCheck())], id="not one of the two"),
        pytest.param(
            [extension(x509.BasicConstraints(True, None))], id="the profile's"
        ),
    ],
)
def test_a_description_adds_nothing_that_the_profile_is_about(
    added: list[x509.Extension[x509.ExtensionType]],
) -> None:
    with pytest.raises(ConfigError, match=r"the backend adds .* expected at most"):
        pinned(added=added)


def test_a_certificate_for_an_earlier_request_is_refused() -> None:
    ca = LyingCA(CHAIN)
    earlier, prepared = ca.prepare(request()), ca.prepare(request())
    issued = ca.issue(earlier, timeout=1)
    with pytest.raises(MisissuedError, match="TBSCertificate is not the prepared"):
        require_as_prepared(prepared, issued, pinned())


def test_a_chain_of_the_same_key_and_another_certificate_is_not_the_pinned_one() -> (
    None
):
    # Renewed behind our back: same key, same name, another certificate.
    other = CHAIN.above[0].issue_ca("other", key=CHAIN.key, path_length=0)
    ca = LyingCA(other)
    prepared = ca.prepare(request())
    issued = ca.issue(prepared, timeout=1)
    with pytest.raises(MisissuedError, match="chain is not that of the pinned"):
        require_as_prepared(prepared, issued, pinned())


@pytest.mark.parametrize("bits", [63, 160])
def test_a_serial_number_of_a_backend_has_64_to_159_bits(bits: int) -> None:
    def lie(answer: Answer) -> None:
        answer.serial = 1 << 158  # the builder takes no more
        wide = (1 << 158).to_bytes(20, "big")
        short = (1 << (bits - 1)).to_bytes(20, "big") if bits < 64 else b"\x80" * 20
        old = b"\x02\x14" + wide
        new = b"\x02\x15\x00" + short if bits > 159 else b"\x02\x08" + short[-8:]
        answer.edit = lambda tbs: resized(tbs, old, new)

    with pytest.raises(MisissuedError, match="serial number is too short or too long"):
        answered(lie)


def test_a_negative_serial_number_is_refused() -> None:
    def lie(answer: Answer) -> None:
        answer.serial = 0x40 << 64
        # The sign bit of nine octets.
        answer.edit = lambda tbs: resized(tbs, b"\x02\x09\x40", b"\x02\x09\x80")

    with pytest.raises(MisissuedError, match="serial number is too short"):
        answered(lie)


def resized(tbs: bytes, old: bytes, new: bytes) -> bytes:
    """Replace a part of a TBSCertificate (of 256 bytes or more) and mend its length."""
    assert tbs[:2] == b"\x30\x82"
    assert tbs.count(old) == 1
    content = tbs[4:].replace(old, new)
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def test_names_are_written_with_their_kind() -> None:
    made = request(URI, x509.DNSName("a.example"))
    assert names_of(made) == [f"URI:{URI.value}", "DNS:a.example"]
