"""Who may renew by certificate, and for how long without a token."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from cryptography import x509

from bridge.config import RenewalConfig
from bridge.errors import AuthenticationError, DeniedError, ReviewError
from bridge.identity.caller import Caller
from bridge.ledger.lineage import ShownCertificate
from bridge.policy.certificate_renewal import CertificateRenewal
from bridge.spiffe import SpiffeID
from tests.support.parts.pki import NOW, new_root

MONTH = timedelta(days=30)
ROOT = new_root(not_before=NOW - timedelta(days=300))


def caller(namespace: str = "shop", account: str = "vm") -> Caller:
    return Caller(
        spiffe_id=SpiffeID.parse(f"spiffe://corp.example/ns/{namespace}/sa/{account}"),
        cluster="Kubernetes",
        credential="certificate",
        verified_by="certificate",
        namespace=namespace,
        service_account=account,
    )


def leaf(age: timedelta = timedelta(hours=1)) -> x509.Certificate:
    name = x509.UniformResourceIdentifier(str(caller().spiffe_id))
    return ROOT.issue_leaf(name, not_before=NOW - age, not_after=NOW + MONTH)


class Told:
    """Answers each look-up with the same."""

    def __init__(self, answer: int | None) -> None:
        self.answer = answer
        self.asked: list[ShownCertificate] = []

    def proven_at(self, shown: ShownCertificate, seconds: float) -> int | None:
        assert seconds == 1.0
        self.asked.append(shown)
        return self.answer


def renewal(
    told: Told | None = None, *identities: dict[str, Sequence[str]]
) -> CertificateRenewal:
    return CertificateRenewal(
        tuple(RenewalConfig.model_validate(one) for one in identities),
        max_age=MONTH,
        lineages=told,
        settling=timedelta(minutes=3),
    )


@pytest.mark.parametrize(
    ("identities", "is_listed"),
    [
        ([], False),
        ([{"namespaces": ["shop"]}], True),
        ([{"service_accounts": ["vm"]}], True),
        ([{"namespaces": ["shop"], "service_accounts": ["vm"]}], True),
        ([{"namespaces": ["other"]}, {"namespaces": ["shop"]}], True),
        ([{"namespaces": ["shop"], "service_accounts": ["other"]}], False),
        ([{"namespaces": ["other"], "service_accounts": ["vm"]}], False),
        ([{"namespaces": ["other"]}, {"service_accounts": ["other"]}], False),
    ],
)
def test_only_callers_that_are_listed_renew(
    identities: list[dict[str, Sequence[str]]], *, is_listed: bool
) -> None:
    policy = renewal(None, *identities)
    if is_listed:
        policy.require_listed(caller())
        return
    with pytest.raises(DeniedError, match="may not renew by certificate") as caught:
        policy.require_listed(caller())
    assert caught.value.rule == "renewal.identity"
    assert "list it under fronts.istio.mtls_identities" in caught.value.detail


def seconds_before(age: timedelta) -> int:
    return int((NOW - age).timestamp())


@pytest.mark.parametrize("age", [timedelta(), timedelta(days=1), MONTH])
def test_the_time_of_the_token_goes_on_to_the_next_certificate(age: timedelta) -> None:
    told = Told(seconds_before(age))
    shown = leaf()
    found = renewal(told).proven(caller(), shown, now=NOW, seconds=1.0)
    assert found.proven_at == told.answer
    assert told.asked[0].serial == shown.serial_number
    assert told.asked[0].caller == str(caller().spiffe_id)


@pytest.mark.parametrize(
    ("proven_at", "since"),
    [
        (seconds_before(MONTH + timedelta(seconds=1)), "at 2026-05-02T11:59:59Z"),
        (0, "at a time that is not on record"),
    ],
)
def test_after_its_time_a_token_has_to_prove_the_caller(
    proven_at: int, since: str
) -> None:
    policy = renewal(Told(proven_at))
    with pytest.raises(DeniedError, match="show one") as caught:
        policy.proven(caller(), leaf(), now=NOW, seconds=1.0)
    assert caught.value.rule == "renewal.age"
    assert since in caught.value.detail
    assert "mtls_max_age is 2592000 s" in caught.value.detail


@pytest.mark.parametrize("told", [Told(None), None])
def test_a_certificate_that_the_ledger_does_not_have_is_refused(
    told: Told | None,
) -> None:
    shown = leaf(timedelta(minutes=3, seconds=1))
    with pytest.raises(AuthenticationError, match="no such certificate") as caught:
        renewal(told).proven(caller(), shown, now=NOW, seconds=1.0)
    assert caught.value.rule == "renewal.unknown"
    assert f"{shown.serial_number:x}" in caught.value.detail


def test_a_new_certificate_may_not_be_in_the_archive_yet() -> None:
    shown = leaf(timedelta(minutes=3))
    with pytest.raises(ReviewError, match="yet; try again") as caught:
        renewal(Told(None)).proven(caller(), shown, now=NOW, seconds=1.0)
    assert caught.value.rule == "renewal.settling"
