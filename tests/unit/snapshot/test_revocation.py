"""A list revokes what its CA lists, however old; one that is no list is refused."""

import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import ConfigError
from bridge.snapshot.revocation import RevocationLists, read_lists
from bridge.x509.crl.revocation_list import parse_lists
from tests.support.parts.pki import NOW, Authority, new_key, new_root, revoking

ROOT = new_root()
REGION = ROOT.issue_ca("region", path_length=1)
ISSUING = REGION.issue_ca("issuing", path_length=0)
PATH = [one.certificate for one in (ISSUING, REGION, ROOT)]
OTHER = new_root("another")


def lists(*data: bytes) -> RevocationLists:
    return RevocationLists([one for item in data for one in parse_lists(item, "x.crl")])


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize(
    ("by", "what"), [(REGION, ISSUING), (ROOT, REGION)], ids=["issuing", "region"]
)
def test_a_revoked_certificate_of_the_path_is_named(
    by: Authority, what: Authority, encoding: Encoding
) -> None:
    told = lists(revoking(by, what, encoding=encoding)).revoked(PATH)
    assert re.search(rf"serial {what.certificate.serial_number:x}\) is revoked", told)


def test_an_overdue_list_still_revokes_and_is_told() -> None:
    found = lists(revoking(REGION, ISSUING, next_update=NOW - timedelta(seconds=1)))
    assert found.revoked(PATH)
    assert re.search("update is overdue", "".join(found.warnings(PATH, NOW)))


@pytest.mark.parametrize(
    ("left", "is_told"),
    [(timedelta(days=29), ["in 29 days"]), (timedelta(days=31), []), (None, [])],
    ids=["a month before", "earlier", "in a short life"],
)
def test_a_list_is_told_of_before_its_next_update(
    left: timedelta | None, is_told: list[str]
) -> None:
    # One of 31 days, from the day before: a quarter of its life is 8 days.
    ends = NOW + timedelta(days=30 if left is None else 300)
    found = lists(revoking(REGION, next_update=ends))
    now = NOW if left is None else ends - left
    assert re.findall(r"in \d+ days", "".join(found.warnings(PATH, now))) == is_told
    (update,) = found.updates()
    assert (update.issuer, update.number, update.next_update) == (
        "CN=region",
        "1",
        ends,
    )


@pytest.mark.parametrize(
    ("by", "what"),
    [(REGION, REGION), (ROOT, ISSUING), (OTHER, ISSUING)],
    ids=["no entry", "by the CA above", "by another CA"],
)
def test_what_its_own_ca_does_not_list_is_not_revoked(
    by: Authority, what: Authority
) -> None:
    assert lists(revoking(by, what)).revoked(PATH) == ""


def test_a_forged_list_revokes_nothing_and_is_refused() -> None:
    forged = lists(revoking(REGION, ISSUING, key=new_key()))
    assert forged.revoked(PATH) == ""
    with pytest.raises(ConfigError, match=r"expected a list that this CA has signed"):
        forged.require_signed(PATH)


def test_the_list_of_a_ca_of_no_chain_is_told() -> None:
    found = lists(revoking(OTHER, ISSUING))
    found.require_signed(PATH)
    assert "no chain has this CA" in "".join(found.warnings(PATH, NOW))


@pytest.mark.parametrize(
    ("later", "found"),
    [([4], "found 4"), ([], "found none"), ([None], "found none")],
    ids=["lower", "gone", "without number"],
)
def test_an_older_list_does_not_take_a_revocation_back(
    later: list[int | None], found: str
) -> None:
    before = lists(revoking(REGION, ISSUING, number=5))
    with pytest.raises(ConfigError, match=rf"number 5 or above \({found}\)"):
        lists(*(revoking(REGION, number=one) for one in later)).require_newer(before)


def test_the_list_of_another_key_is_not_a_later_one() -> None:
    of_old, of_new = (
        revoking(
            REGION, number=number, extra=x509.AuthorityKeyIdentifier(key, None, None)
        )
        for number, key in ((5, b"old"), (6, b"new"))
    )
    before = lists(of_old)
    with pytest.raises(ConfigError, match=r"number 5 or above \(found none\)"):
        lists(of_new).require_newer(before)
    lists(of_new, of_old).require_newer(before)


@pytest.mark.parametrize("number", [5, 6])
def test_the_same_or_a_later_list_is_taken(number: int) -> None:
    before = lists(revoking(REGION, ISSUING, number=5))
    lists(revoking(REGION, ISSUING, number=number)).require_newer(before)


def with_extension(value: x509.ExtensionType) -> bytes:
    return revoking(REGION, ISSUING, extra=value)


def distribution_point(**given: bool) -> bytes:
    values = {
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    } | given
    return with_extension(
        x509.IssuingDistributionPoint(
            full_name=None, relative_name=None, only_some_reasons=None, **values
        )
    )


def test_a_list_of_ca_certificates_alone_is_taken() -> None:
    assert lists(distribution_point(only_contains_ca_certs=True)).revoked(PATH)


PEM = revoking(REGION, ISSUING, encoding=Encoding.PEM)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", r"expected revocation lists, .*found 0 of 0"),
        (lambda: b"no list", r"expected revocation lists"),
        (lambda: PEM + ISSUING.pem, r"found 1 of 2 blocks"),
        (lambda: PEM[: len(PEM) // 2], r"found 0 of 1 blocks"),
        (lambda: revoking(REGION)[:-5], r"found a damaged one"),
        (lambda: distribution_point(indirect_crl=True), r"an indirect one"),
        (lambda: distribution_point(only_contains_user_certs=True), r"UserCerts"),
        (lambda: with_extension(x509.DeltaCRLIndicator(1)), r"extension 2\.5\.29\.27"),
    ],
    ids=["empty", "text", "more", "cut", "damaged", "indirect", "users", "delta"],
)
def test_what_is_no_complete_list_is_refused(
    make: Callable[[], bytes], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"x\.crl: {message}|x\.crl: .*{message}"):
        lists(make())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "not a regular file"),
        (str, "No such file"),
        (lambda path: path.write_bytes(b"0" * 50_000_000), "larger than 1048576 bytes"),
    ],
    ids=["a FIFO, which would stop the start for ever", "absent", "50 MB"],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "ca.crl"
    make(path)
    with pytest.raises(ConfigError, match=f"crls: .*ca.crl: cannot be read: {reason}"):
        read_lists([path])
