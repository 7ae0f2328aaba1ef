"""When a certificate has to be replaced: one level, with its words and its metric."""

from datetime import UTC, datetime, timedelta

import pytest

from bridge.metrics.expiry import CertificateExpiry, ExpiryLevel
from bridge.metrics.instruments import Metrics

NOW = datetime(2026, 5, 1, tzinfo=UTC)
YEAR, DAY, HOUR = timedelta(days=365), timedelta(days=1), timedelta(hours=1)
SECOND = timedelta(seconds=1)
OK, WARNING, ERROR = ExpiryLevel


def expiry(
    left: timedelta,
    tier: str = "issuing",
    life: timedelta = 20 * YEAR,
    longest: timedelta = DAY,
) -> CertificateExpiry:
    return CertificateExpiry(
        issuing_ca="seoul-1",
        tier=tier,
        subject="CN=Seoul",
        serial="0a",
        not_before=NOW + left - life,
        not_after=NOW + left,
        longest=longest,
    )


@pytest.mark.parametrize(
    ("one", "level"),
    [
        pytest.param(expiry(30 * DAY), OK, id="issuing CA, 30 days"),
        pytest.param(expiry(30 * DAY - SECOND), WARNING, id="issuing CA, less"),
        pytest.param(expiry(90 * DAY, "intermediate"), OK, id="intermediate, 90"),
        pytest.param(
            expiry(90 * DAY - SECOND, "intermediate"), WARNING, id="intermediate, less"
        ),
        pytest.param(expiry(365 * DAY, "anchor"), OK, id="trust anchor, 365 days"),
        pytest.param(
            expiry(365 * DAY - SECOND, "anchor"), WARNING, id="trust anchor, less"
        ),
        pytest.param(expiry(30 * DAY, "serving"), OK, id="serving, 30 days"),
        pytest.param(expiry(30 * DAY - SECOND, "serving"), WARNING, id="serving, less"),
        pytest.param(
            expiry(10 * DAY, life=40 * DAY), OK, id="a quarter of a short life is left"
        ),
        pytest.param(
            expiry(10 * DAY - SECOND, life=40 * DAY), WARNING, id="less than a quarter"
        ),
        pytest.param(
            expiry(180 * DAY, "anchor", life=YEAR), OK, id="a quarter of an anchor's"
        ),
        pytest.param(
            expiry(DAY + SECOND, life=DAY * 2), OK, id="longer than a leaf, short life"
        ),
        pytest.param(expiry(DAY), ERROR, id="the longest lifetime is left"),
        pytest.param(
            expiry(DAY, "anchor", longest=DAY), ERROR, id="the same, of an anchor"
        ),
        pytest.param(
            expiry(40 * DAY, longest=60 * DAY), ERROR, id="a longest beyond the warning"
        ),
        pytest.param(
            expiry(SECOND, longest=timedelta()), WARNING, id="nothing is issued"
        ),
        pytest.param(
            expiry(timedelta(), longest=timedelta()), ERROR, id="ends this second"
        ),
        pytest.param(expiry(-DAY, "serving"), ERROR, id="has ended"),
    ],
)
def test_the_level_is_by_tier_life_and_longest_lifetime(
    one: CertificateExpiry, level: ExpiryLevel
) -> None:
    assert one.level(NOW) is level


@pytest.mark.parametrize(
    ("one", "text"),
    [
        pytest.param(
            expiry(YEAR), "ends 2027-05-01T00:00:00Z, in 365 days", id="nothing to do"
        ),
        pytest.param(
            expiry(9 * DAY),
            "ends 2026-05-10T00:00:00Z, in 9 days: replace it before",
            id="warning",
        ),
        pytest.param(
            expiry(9 * HOUR),
            "ends 2026-05-01T09:00:00Z, in 9 hours, within the longest lifetime that "
            "may be issued (24 hours): certificates get shorter lifetimes; replace it "
            "now",
            id="error",
        ),
        pytest.param(
            expiry(SECOND, longest=timedelta()),
            "ends 2026-05-01T00:00:01Z, in less than 1 hour: replace it before",
            id="soon",
        ),
        pytest.param(
            expiry(-DAY), "ended 2026-04-30T00:00:00Z: replace it", id="ended"
        ),
    ],
)
def test_the_words_say_when_and_what_to_do(one: CertificateExpiry, text: str) -> None:
    assert one.when(NOW) == text


@pytest.mark.parametrize(
    ("left", "value"), [(YEAR, 0), (9 * DAY, 1), (HOUR, 2), (-HOUR, 2)]
)
def test_the_level_is_a_metric(left: timedelta, value: int) -> None:
    metrics = Metrics(now=lambda: NOW)
    metrics.show_certificates("seoul-1", [expiry(left)])
    labels = {
        "issuing_ca": "seoul-1",
        "tier": "issuing",
        "subject": "CN=Seoul",
        "serial": "0a",
    }
    name = "meshca_certificate_expiry_level"
    assert metrics.registry.get_sample_value(name, labels) == value
