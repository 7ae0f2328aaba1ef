"""A clock for tests."""

from datetime import datetime, timedelta


class SetClock:
    """A clock that stands until it is moved."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float = 0.0, **by: float) -> None:
        """Move it, by seconds or as `timedelta` has it."""
        self.now += timedelta(seconds=seconds, **by)
