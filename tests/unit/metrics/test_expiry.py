"""When a certificate has to be replaced: one level, with its words and its metric."""

from datetime import UTC, datetime, timedelta

import pytest

from bridge.metrics.expiry import OTHER_ANCHOR, CertificateExpiry, ExpiryLevel
from bridge.metrics.instruments import Metrics

NOW = datetime(2026, 5, 1, tzinfo=UTC)
YEAR, DAY, HOUR = timedelta(days=365), timedelta(days=1), timedelta(hours=1)
SECOND = timedelta(seconds=1)
OK, NOTE, WARNING, ERROR = ExpiryLevel


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


LIFE = 100 * DAY
TIERS = ("issuing", "intermediate", "anchor", "serving")


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("left", "level"),
    [
        (50 * DAY + SECOND, OK),
        (50 * DAY, NOTE),
        (20 * DAY + SECOND, NOTE),
        (20 * DAY, WARNING),
        (5 * DAY + SECOND, WARNING),
        (5 * DAY, ERROR),
    ],
    ids=["before half", "half", "before 80 %", "80 %", "before 95 %", "95 %"],
)
def test_an_alarm_is_raised_at_each_share_of_the_life_of_every_tier(
    tier: str, left: timedelta, level: ExpiryLevel
) -> None:
    assert expiry(left, tier, LIFE).level(NOW) is level


@pytest.mark.parametrize(
    ("one", "level"),
    [
        pytest.param(expiry(YEAR, life=YEAR), OK, id="new"),
        pytest.param(
            expiry(DAY, life=DAY), ERROR, id="new, and no longer than its leaves"
        ),
        pytest.param(
            expiry(40 * DAY, life=60 * DAY, longest=40 * DAY),
            ERROR,
            id="the longest lifetime is left",
        ),
        pytest.param(
            expiry(40 * DAY + SECOND, life=60 * DAY, longest=40 * DAY),
            OK,
            id="a second more is left",
        ),
        pytest.param(
            expiry(timedelta(), longest=timedelta()), ERROR, id="ends this second"
        ),
        pytest.param(expiry(-DAY, "serving"), ERROR, id="has ended"),
        pytest.param(
            expiry(5 * DAY, OTHER_ANCHOR, LIFE), WARNING, id="95 % of another anchor's"
        ),
        pytest.param(
            expiry(-DAY, OTHER_ANCHOR, LIFE), WARNING, id="another anchor has ended"
        ),
        pytest.param(
            expiry(50 * DAY, OTHER_ANCHOR, LIFE), NOTE, id="half of another anchor's"
        ),
    ],
)
def test_the_level_is_by_life_and_longest_lifetime(
    one: CertificateExpiry, level: ExpiryLevel
) -> None:
    assert one.level(NOW) is level


@pytest.mark.parametrize(
    ("one", "text"),
    [
        pytest.param(
            expiry(YEAR, life=YEAR),
            "ends 2027-05-01T00:00:00Z, in 365 days",
            id="nothing to do",
        ),
        pytest.param(
            expiry(9 * DAY, life=18 * DAY),
            "ends 2026-05-10T00:00:00Z, in 9 days; half of its life is over: plan its "
            "replacement",
            id="half",
        ),
        pytest.param(
            expiry(9 * DAY, life=45 * DAY),
            "ends 2026-05-10T00:00:00Z, in 9 days; 80 % of its life is over: replace "
            "it before",
            id="80 %",
        ),
        pytest.param(
            expiry(9 * DAY),
            "ends 2026-05-10T00:00:00Z, in 9 days; 95 % of its life is over: replace "
            "it now",
            id="95 %",
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
            "ends 2026-05-01T00:00:01Z, in less than 1 hour; 95 % of its life is over: "
            "replace it now",
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
    ("left", "value"),
    [(11 * YEAR, 0), (9 * YEAR, 1), (3 * YEAR, 2), (9 * DAY, 3), (HOUR, 3), (-HOUR, 3)],
)
def test_the_level_is_a_metric(left: timedelta, value: int) -> None:
    metrics = Metrics(now=lambda: NOW)
    metrics.expiries.replace("seoul-1", [expiry(left)])
    labels = {
        "issuing_ca": "seoul-1",
        "tier": "issuing",
        "subject": "CN=Seoul",
        "serial": "0a",
    }
    name = "meshca_certificate_expiry_level"
    assert metrics.registry.get_sample_value(name, labels) == value
