"""The bundle of trust anchors: what is sent, in which order, and what is told."""

from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import ConfigError
from bridge.snapshot.trust_bundle import TrustBundle, parse_bundle
from bridge.x509.der import SEQUENCE, content, elements, tlv
from bridge.x509.pem import encode_certificate, parse_certificates
from tests.support.parts.pki import NOW, bundle, new_key, new_root
from tests.unit.x509.test_path import changed

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
KEY = new_key()
OLD = new_root("root", key=KEY, not_before=NOW - 9 * DAY, not_after=NOW).certificate
NEW = new_root("root", key=KEY, not_before=NOW - DAY).certificate
NEXT = new_root("root", key=KEY, not_before=NOW + DAY).certificate
REKEYED = new_root("root", not_before=NOW - DAY).certificate
OTHER = new_root("other", not_before=NOW - 9 * DAY, not_after=NOW).certificate


def sent(anchors: TrustBundle, now: datetime) -> list[x509.Certificate]:
    return [*parse_certificates(anchors.pem(now).encode(), "bundle")]


@pytest.mark.parametrize(
    ("given", "now", "order"),
    [
        ([OLD, NEW], NOW - HOUR, [OLD, NEW]),
        ([OLD, NEW], NOW, [NEW, OLD]),
        ([NEW, OLD], NOW, [NEW, OLD]),
        ([OLD, REKEYED], NOW, [REKEYED, OLD]),
        ([OLD, NEW], NOW - 2 * DAY, [OLD, NEW]),
        ([NEXT, NEW], NOW, [NEW, NEXT]),
        ([NEXT, NEW], NOW + DAY, [NEXT, NEW]),
        ([OTHER, OLD, NEW], NOW, [OTHER, NEW, OLD]),
        ([OLD, OTHER, NEW], NOW, [NEW, OTHER, OLD]),
        ([OTHER, NEW], NOW, [OTHER, NEW]),
        ([NEW, NEW, OTHER, NEW], NOW, [NEW, OTHER]),
    ],
    ids=[
        *("before the end", "the first has expired", "the second has expired"),
        *("another key", "before the second begins", "not valid yet", "begun"),
        *("an expired one of another name", "others keep their place"),
        *("no good one of its name", "twice"),
    ],
)
def test_an_anchor_that_is_not_valid_is_not_sent_ahead_of_a_good_one(
    given: list[x509.Certificate], now: datetime, order: list[x509.Certificate]
) -> None:
    assert sent(TrustBundle(given), now) == order


def test_an_anchor_that_expires_is_told_from_then_on() -> None:
    anchors = TrustBundle([OLD, NEW])
    assert anchors.problems(NOW - HOUR) == []
    told = "trust anchor (CN=root) expired on 2026-06-01T12:00:00+00:00"
    assert anchors.problems(NOW) == [told]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ca": False}, "is not a CA certificate"),
        ({"key": "k256-root"}, "has an unfit key"),
        ({"not_before": NOW + DAY}, "is not valid before"),
    ],
)
def test_what_is_wrong_with_an_anchor_is_told(
    change: dict[str, object], says: str
) -> None:
    odd = changed("root", **change)["root"].make()
    told = TrustBundle([odd, NEW]).problems(NOW)
    assert f"trust anchor (CN=root) {says}" in "; ".join(told)


def test_an_anchor_that_programs_in_go_cannot_read_is_told() -> None:
    der = NEW.public_bytes(Encoding.DER)
    serial = NEW.serial_number.to_bytes(2)
    negative = x509.load_der_x509_certificate(
        der.replace(b"\2\2" + serial, b"\2\2\x80" + serial[1:], 1)
    )
    (told,) = TrustBundle([negative]).problems(NOW)
    assert "has a negative serial number, and programs in Go leave it out" in told


UNREADABLE = bundle(NEW).replace(b"MII", b"MIH", 1)


def test_an_anchor_of_version_1_with_extensions_is_left_out() -> None:
    # Envoy cannot read it, and refuses the bundle.
    _, algorithm, signature = elements(content(NEW.public_bytes(Encoding.DER)))
    _, *fields = elements(content(NEW.tbs_certificate_bytes))
    tbs = tlv(SEQUENCE, b"".join(fields))
    odd = encode_certificate(tlv(SEQUENCE, tbs + algorithm + signature)).encode()
    found = parse_bundle(odd + bundle(OTHER), "roots.pem")
    assert found.anchors == (OTHER,)
    (told,) = found.problems(NOW - HOUR)
    assert "of version 1, and has extensions; it is left out" in told


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_anchor_that_cannot_be_read_is_left_out_and_told(place: int) -> None:
    blocks = [bundle(OTHER), bundle(REKEYED)]
    blocks.insert(place, UNREADABLE)
    found = parse_bundle(b"".join(blocks), "roots.pem")
    assert found.anchors == (OTHER, REKEYED)
    (told,) = found.problems(NOW - HOUR)
    assert told.startswith(f"roots.pem: block {place + 1} (line ")
    assert told.endswith("it is left out, and the others are used")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (UNREADABLE, r"block 1 \(line 1\): expected a certificate that can be read"),
        (bundle(NEW) + UNREADABLE[:99], r"block 2 \(line \d+\) has no END line"),
        (bundle(NEW)[:99] + bundle(OTHER), "more than one PEM block"),
        (b"", "expected one or more CERTIFICATE blocks"),
    ],
    ids=["none can be read", "cut", "cut before another", "empty"],
)
def test_a_bundle_that_is_not_whole_is_refused(content: bytes, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refusal:
        parse_bundle(content, "roots.pem")
    assert refusal.value.rule == "config.pem"
