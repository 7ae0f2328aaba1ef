from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.policy.refresh import valid_until

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
