"""Two encoders of one profile, held against each other."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from bridge.issuance.signing import new_serial
from bridge.x509.leaf_encoding import ExpectedLeaf
from bridge.x509.leaf_profile import LeafProfile
from tests.support.parts.pki import KEY_KINDS, new_chain, new_key

_CHAINS = {kind: new_chain(kind) for kind in KEY_KINDS}
_LEAF_KEYS = [new_key(kind).public_key() for kind in ("p256", "p384", "rsa2048")]
_DAY = timedelta(days=1)

uris = st.from_regex(
    r"spiffe://[a-z0-9.-]{1,60}(/[A-Za-z0-9._-]{1,70}){1,4}", fullmatch=True
)
hosts = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}\.){1,8}[a-z]{2,10}", fullmatch=True)
names = st.lists(
    uris.map(x509.UniformResourceIdentifier) | hosts.map(x509.DNSName),
    min_size=1,
    max_size=4,
)
# From before the change from two digits of a year to four, and after it.
moments = st.integers(631152000, 4102444800).map(
    lambda seconds: datetime.fromtimestamp(seconds, UTC)
)


@given(
    kind=st.sampled_from(KEY_KINDS),
    key=st.sampled_from(_LEAF_KEYS),
    names=names,
    serial=st.integers(1, (1 << 159) - 1) | st.builds(new_serial),
    start=moments,
)
def test_both_encoders_write_the_same_bytes(
    kind: str,
    key: object,
    names: list[x509.GeneralName],
    serial: int,
    start: datetime,
) -> None:
    issuing = _CHAINS[kind].certificate
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    built = LeafProfile(issuing).tbs(key, names, serial, start, start + _DAY)  # type: ignore[arg-type]
    written = ExpectedLeaf(issuing).tbs(spki, names, serial, start, start + _DAY)
    assert written == built


def test_an_issuing_ca_without_a_key_identifier_gets_none_into_its_leaves() -> None:
    own_key = new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "plain")])
    issuing = (
        x509.CertificateBuilder(name, name, own_key.public_key(), 1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
        .sign(own_key, SHA256())
    )
    key = _LEAF_KEYS[0]
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    names = [x509.DNSName("a.example")]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    built = LeafProfile(issuing).tbs(key, names, 5, now, now + _DAY)
    assert ExpectedLeaf(issuing).tbs(spki, names, 5, now, now + _DAY) == built
    assert b"\x06\x03\x55\x1d\x23" not in built


@pytest.mark.parametrize(
    "name",
    [
        x509.RFC822Name("a@corp.example"),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
    ],
    ids=["e-mail", "registered ID"],
)
def test_a_name_that_no_leaf_has_is_refused(name: x509.GeneralName) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    expected = ExpectedLeaf(_CHAINS["p256"].certificate)
    with pytest.raises(ValueError, match="no leaf has a name of the type"):
        expected.tbs(b"", [name], 5, now, now + _DAY)
