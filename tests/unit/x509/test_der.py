import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from bridge.x509.der import SEQUENCE, content, elements, splice, tlv
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
