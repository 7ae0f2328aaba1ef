"""When a caller is told to come back, so that those that came together do not."""

from datetime import datetime

LEAST_SHARE = 0.01
MOST_SHARE = 0.05


def valid_until(now: datetime, not_after: datetime, draw: float) -> datetime:
    """Return a time a few percent before `not_after`, and later than `now`.

    Linkerd's proxies come back after 70 % of the time until then, without any
    randomness of their own: those of one restart would come together for ever.

    Args:
        now: UTC.
        not_after: The earliest end of all certificates on the path; after `now`.
        draw: From 0 to 1, at random.
    """
    share = LEAST_SHARE + (MOST_SHARE - LEAST_SHARE) * draw
    return now + (not_after - now) * (1 - share)
