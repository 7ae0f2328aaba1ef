from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.errors import MisissuedError
from bridge.issuance.signing import new_serial
from bridge.policy.issued import PinnedIssuer, names_of, require_as_prepared
from bridge.spi import LeafRequest
from tests.support.harness.fake_ca import LIES, Answer, Lie, LyingCA, honest
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
        public_key=KEY,
        spki=KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        csr=b"",
        names=names or (URI,),
        serial=new_serial(),
        not_before=NOW,
        not_after=NOW + timedelta(hours=1),
    )


def pinned(chain: Authority = CHAIN) -> PinnedIssuer:
    intermediates = [one.public_bytes(Encoding.DER) for one in chain.chain]
    return PinnedIssuer(chain.certificate, intermediates)


@pytest.mark.parametrize("kind", KEY_KINDS)
@pytest.mark.parametrize("builds_tbs", [False, True])
def test_an_honest_certificate_passes(kind: str, *, builds_tbs: bool) -> None:
    chain = new_chain(kind)
    ca = LyingCA(chain, builds_tbs=builds_tbs)
    prepared = ca.prepare(request())
    issued = ca.issue(prepared, timeout=1)
    leaf = require_as_prepared(prepared, issued, pinned(chain))
    assert leaf.public_bytes(Encoding.DER) == issued.leaf


@pytest.mark.parametrize(("lie", "builds_tbs", "rule"), BOTH)
def test_each_deviation_breaks_its_rule(
    lie: Lie, rule: str, *, builds_tbs: bool
) -> None:
    ca = LyingCA(CHAIN, builds_tbs=builds_tbs, lie=lie)
    prepared = ca.prepare(request())
    issued = ca.issue(prepared, timeout=1)
    with pytest.raises(MisissuedError, match="the issued certificate is ref") as found:
        require_as_prepared(prepared, issued, pinned())
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

    ca = LyingCA(CHAIN, builds_tbs=True, lie=lie)
    prepared = ca.prepare(request())
    issued = ca.issue(prepared, timeout=1)
    with pytest.raises(MisissuedError, match="it cannot be read") as found:
        require_as_prepared(prepared, issued, pinned())
    assert found.value.rule == "misissued.unreadable"


def test_a_backend_may_add_the_key_identifier_of_the_leaf_and_order_as_it_likes() -> (
    None
):
    def as_vault_does(answer: Answer) -> None:
        answer.extensions.reverse()
        identifier = x509.SubjectKeyIdentifier.from_public_key(KEY)
        answer.extensions.append((identifier, False))

    ca = LyingCA(CHAIN, builds_tbs=True, lie=as_vault_does)
    prepared = ca.prepare(request())
    require_as_prepared(prepared, ca.issue(prepared, timeout=1), pinned())


def test_the_order_of_the_names_is_part_of_the_request() -> None:
    names = (URI, x509.DNSName("a.example"))
    ca = LyingCA(CHAIN, builds_tbs=True, lie=lambda answer: answer.names.reverse())
    prepared = ca.prepare(request(*names))
    issued = ca.issue(prepared, timeout=1)
    with pytest.raises(MisissuedError, match="the names are not the requested"):
        require_as_prepared(prepared, issued, pinned())


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

    ca = LyingCA(CHAIN, builds_tbs=True, lie=lie)
    prepared = ca.prepare(request())
    issued = ca.issue(prepared, timeout=1)
    with pytest.raises(MisissuedError, match="serial number is too short or too long"):
        require_as_prepared(prepared, issued, pinned())


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_negative_serial_number_is_refused() -> None:
    def lie(answer: Answer) -> None:
        answer.serial = 0x40 << 64
        # The sign bit of nine octets.
        answer.edit = lambda tbs: resized(tbs, b"\x02\x09\x40", b"\x02\x09\x80")

    ca = LyingCA(CHAIN, builds_tbs=True, lie=lie)
    prepared = ca.prepare(request())
    issued = ca.issue(prepared, timeout=1)
    with pytest.raises(MisissuedError, match="serial number is too short"):
        require_as_prepared(prepared, issued, pinned())


def resized(tbs: bytes, old: bytes, new: bytes) -> bytes:
    """Replace a part of a TBSCertificate (of 256 bytes or more) and mend its length."""
    assert tbs[:2] == b"\x30\x82"
    assert tbs.count(old) == 1
    content = tbs[4:].replace(old, new)
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def test_names_are_written_with_their_kind() -> None:
    made = request(URI, x509.DNSName("a.example"))
    assert names_of(made) == [f"URI:{URI.value}", "DNS:a.example"]


def test_a_certificate_without_deviation_is_accepted() -> None:
    ca = LyingCA(CHAIN)
    prepared = ca.prepare(request())
    issued = ca.answer(prepared, honest)
    leaf = x509.load_der_x509_certificate(issued.leaf)
    assert leaf.tbs_certificate_bytes == prepared.tbs
