from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config import IssuanceConfig
from bridge.errors import RequestError, TTLError
from bridge.policy.issuance_policy import (
    IssuancePolicy,
    valid_until,
    validity,
)
from tests.support.parts.pki import NOW

MINIMUM, DEFAULT, MAXIMUM = 300, 3_600, 86_400


def policy(on_excess_ttl: str = "refuse") -> IssuancePolicy:
    config = IssuanceConfig.model_validate(
        {
            "min_ttl": f"{MINIMUM}s",
            "default_ttl": f"{DEFAULT}s",
            "max_ttl": f"{MAXIMUM}s",
            "on_excess_ttl": on_excess_ttl,
            "issuing_cas": ["a", "b"],
            "cert_signers": {"istio.io/b": ["b"], "istio.io/both": ["b", "a"]},
        }
    )
    return IssuancePolicy.of(config)


# Wanted, what `refuse` grants (or the rule), what `clamp` grants.
LIFETIMES = [
    (-(2**63), DEFAULT, DEFAULT),
    (-1, DEFAULT, DEFAULT),
    (0, DEFAULT, DEFAULT),
    (1, "ttl.minimum", MINIMUM),
    (MINIMUM - 1, "ttl.minimum", MINIMUM),
    (MINIMUM, MINIMUM, MINIMUM),
    (MINIMUM + 1, MINIMUM + 1, MINIMUM + 1),
    (MAXIMUM - 1, MAXIMUM - 1, MAXIMUM - 1),
    (MAXIMUM, MAXIMUM, MAXIMUM),
    (MAXIMUM + 1, "ttl.maximum", MAXIMUM),
    (2**62, "ttl.maximum", MAXIMUM),
    (2**63 - 1, "ttl.maximum", MAXIMUM),
]


@pytest.mark.parametrize(("wanted", "granted", "_clamped"), LIFETIMES)
def test_a_lifetime_outside_the_bounds_is_refused(
    wanted: int, granted: int | str, _clamped: int
) -> None:
    if isinstance(granted, str):
        with pytest.raises(TTLError, match="the requested lifetime is ") as refusal:
            policy().lifetime(wanted)
        assert refusal.value.rule == granted
        return
    lifetime = policy().lifetime(wanted)
    assert lifetime.ttl == timedelta(seconds=granted)
    assert not lifetime.clamped


@pytest.mark.parametrize(("wanted", "granted", "clamped"), LIFETIMES)
def test_a_lifetime_outside_the_bounds_is_clamped(
    wanted: int, granted: int | str, clamped: int
) -> None:
    lifetime = policy("clamp").lifetime(wanted)
    assert lifetime.ttl == timedelta(seconds=clamped)
    assert lifetime.clamped is isinstance(granted, str)


def test_the_refusal_of_a_lifetime_names_the_bound() -> None:
    with pytest.raises(TTLError, match="above the maximum of 86400 s"):
        policy().lifetime(MAXIMUM + 1)


@pytest.mark.parametrize(
    ("cert_signer", "issuing_cas"),
    [("", ("a", "b")), ("istio.io/b", ("b",)), ("istio.io/both", ("b", "a"))],
)
def test_a_signer_is_a_list_of_issuing_cas(
    cert_signer: str, issuing_cas: tuple[str, ...]
) -> None:
    assert policy().route(cert_signer) == issuing_cas


@pytest.mark.parametrize("cert_signer", ["a", "ISTIO.IO/b", "istio.io/b ", "\0"])
def test_a_signer_that_is_not_configured_is_refused(cert_signer: str) -> None:
    with pytest.raises(RequestError, match="names no signer") as refusal:
        policy().route(cert_signer)
    assert refusal.value.rule == "signer.unknown"
    assert repr(cert_signer) in refusal.value.detail


HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.mark.parametrize(
    ("now", "latest", "expected"),
    [
        (NOW, NOW + 2 * HOUR, (NOW - MINUTE, NOW + HOUR)),
        (NOW, NOW + HOUR, (NOW - MINUTE, NOW + HOUR)),
        # Not beyond the chain.
        (NOW, NOW + MINUTE * 2, (NOW - MINUTE, NOW + MINUTE * 2)),
        # In whole seconds.
        (
            NOW + timedelta(microseconds=999_999),
            NOW + 2 * HOUR,
            (NOW - MINUTE, NOW + HOUR),
        ),
        # Half of it must lie ahead.
        (
            NOW,
            NOW + MINUTE + timedelta(seconds=1),
            (NOW - MINUTE, NOW + 61 * MINUTE / 60),
        ),
        (NOW, NOW + MINUTE, None),
        (NOW, NOW + timedelta(seconds=30), None),
        (NOW, NOW, None),
        (NOW, NOW - HOUR, None),
    ],
)
def test_a_validity_ends_with_the_chain(
    now: datetime, latest: datetime, expected: tuple[datetime, datetime] | None
) -> None:
    assert validity(now, HOUR, MINUTE, latest) == expected


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("draw", "share"), [(0.0, 0.99), (0.5, 0.97), (1.0, 0.95)], ids=str
)
def test_the_time_is_cut_by_a_few_percent(draw: float, share: float) -> None:
    left = valid_until(NOW, NOW + timedelta(hours=100), draw) - NOW
    assert left == timedelta(hours=100) * share


@given(
    seconds=st.integers(1, 10**9),
    draw=st.floats(0, 1, exclude_max=True),
    micro=st.integers(0, 999_999),
)
def test_it_is_after_now_and_before_the_end(
    seconds: int, draw: float, micro: int
) -> None:
    now = NOW.replace(microsecond=micro)
    ends = now.replace(microsecond=0) + timedelta(seconds=seconds + 1)
    assert now < valid_until(now, ends, draw) < ends
