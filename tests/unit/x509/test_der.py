import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from bridge.x509.der import SEQUENCE, content, elements, splice, subject_of, tlv
from tests.support.parts.pki import NOW, new_chain

CHAIN = new_chain()
LEAF = CHAIN.issue_leaf(x509.DNSName("a.example"), not_before=NOW)


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, "3000"),
        (1, "3001"),
        (127, "307f"),
        (128, "308180"),
        (255, "3081ff"),
        (256, "30820100"),
        (65_535, "3082ffff"),
        (65_536, "3083010000"),
    ],
)
def test_a_length_is_written_as_short_as_it_can_be(size: int, header: str) -> None:
    element = tlv(SEQUENCE, b"x" * size)
    assert element == bytes.fromhex(header) + b"x" * size
    assert content(element) == b"x" * size
    assert [*elements(element)] == [element]


def test_a_certificate_is_spliced_of_its_three_parts() -> None:
    der = LEAF.public_bytes(Encoding.DER)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    assert splice(LEAF.tbs_certificate_bytes, algorithm, LEAF.signature) == der


def test_elements_stand_one_after_the_other() -> None:
    parts = [tlv(2, b"\x01"), tlv(4, b"x" * 200), tlv(5, b"")]
    assert [*elements(b"".join(parts))] == parts
    assert [*elements(b"")] == []


@pytest.mark.parametrize(
    ("der", "says"),
    [
        ("30", "cut off"),
        ("3001", "cut off"),
        ("300501", "cut off"),
        ("3080", "not encoded as DER"),  # indefinite
        ("30800000", "not encoded as DER"),
        ("308100", "not encoded as DER"),  # not minimal
        ("30817f" + "00" * 127, "not encoded as DER"),
        ("308200ff" + "00" * 255, "not encoded as DER"),
        ("3081", "not encoded as DER"),
        ("3082ff", "cut off"),
        ("30ff" + "ff" * 130, "cut off"),
        ("300000", "cut off"),  # a byte too many
    ],
)
def test_what_is_not_der_is_refused(der: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(elements(bytes.fromhex(der)))


@pytest.mark.parametrize("certificate", [LEAF, CHAIN.certificate, CHAIN.root])
def test_the_subject_is_its_very_bytes(certificate: x509.Certificate) -> None:
    found = subject_of(certificate.public_bytes(Encoding.DER))
    assert found == certificate.subject.public_bytes()


def test_a_certificate_of_version_1_has_no_version_before_its_fields() -> None:
    name = tlv(SEQUENCE, b"")
    fields = [tlv(2, b"\x01"), tlv(SEQUENCE, b""), name, tlv(SEQUENCE, b""), name]
    subject = tlv(SEQUENCE, tlv(0x31, b""))
    fields[4] = subject
    assert subject_of(tlv(SEQUENCE, tlv(SEQUENCE, b"".join(fields)))) == subject


@pytest.mark.parametrize(
    "der", ["", "3000", "30023000", "300430020500", "3006300402010102", "0500", "ff"]
)
def test_what_is_no_certificate_has_no_subject(der: str) -> None:
    with pytest.raises(ValueError, match=r"an element is cut off|more fields"):
        subject_of(bytes.fromhex(der))


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda b: tlv(48, b)))
def test_any_bytes_are_walked_or_refused(der: bytes) -> None:
    for walk in (lambda: list(elements(der)), lambda: content(der)):
        try:
            walk()
        except ValueError:
            continue
    try:
        found = [*elements(der)]
    except ValueError:
        return
    assert b"".join(found) == der


@given(st.binary(max_size=60).map(lambda body: tlv(SEQUENCE, tlv(SEQUENCE, body))))
def test_any_bytes_have_a_subject_or_are_refused(der: bytes) -> None:
    try:
        found = subject_of(der)
    except ValueError:
        return
    assert found in der
