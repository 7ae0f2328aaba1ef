import threading

import pytest

from bridge.resilience.bulkhead import Bulkhead, places_of, shared_places_of


@pytest.mark.parametrize(
    ("threads", "places"), [(1, 1), (2, 1), (4, 3), (24, 18), (256, 192)]
)
def test_one_ca_may_hold_three_quarters_of_the_threads(
    threads: int, places: int
) -> None:
    assert places_of(threads) == places


@pytest.mark.parametrize(
    ("threads", "places"), [(1, 1), (3, 1), (4, 2), (24, 12), (256, 128)]
)
def test_all_api_servers_may_hold_half_of_the_threads(
    threads: int, places: int
) -> None:
    assert shared_places_of(threads) == places


class Door:
    def __init__(self, places: int, spare: threading.Semaphore | None = None) -> None:
        self.now = 0.0
        self.is_stalled = False
        self.waits = 0
        self.bulkhead = Bulkhead(
            places,
            lambda: self.is_stalled,
            spare=spare,
            now=lambda: self.now,
            wait=self.wait,
        )

    def wait(self, turn: threading.Event, seconds: float) -> bool:
        self.waits += 1
        self.now += seconds
        return turn.is_set()


def test_a_place_is_given_back() -> None:
    one = Door(2)
    assert one.bulkhead.enter(1)
    assert one.bulkhead.enter(1)
    one.is_stalled = True
    assert not one.bulkhead.enter(1)
    one.bulkhead.leave()
    assert one.bulkhead.enter(1)
    assert one.waits == 0


def test_at_a_ca_that_stalls_nobody_waits_for_a_place() -> None:
    one = Door(1)
    one.bulkhead.enter(10)
    one.is_stalled = True
    assert not one.bulkhead.enter(10)
    assert (one.waits, one.now) == (0, 0.0)


def test_at_a_ca_that_is_slow_and_well_a_call_waits_until_its_time_is_up() -> None:
    one = Door(1)
    one.bulkhead.enter(1)
    assert not one.bulkhead.enter(1)
    assert 1 <= one.now < 1.1


def test_a_wait_ends_when_the_ca_begins_to_stall() -> None:
    one = Door(1)
    one.bulkhead.enter(100)
    plain = one.wait

    def wait(turn: threading.Event, seconds: float) -> bool:
        one.is_stalled = one.waits == 2
        return plain(turn, seconds)

    one.bulkhead._wait = wait
    assert not one.bulkhead.enter(100)
    assert one.waits == 3


def test_spare_places_are_lent_while_answers_come() -> None:
    spare = threading.Semaphore(2)
    one, other = Door(1, spare), Door(1, spare)
    assert [one.bulkhead.enter(0) for _ in range(4)] == [True, True, True, False]
    # The other has its own place, and what was lent comes back first.
    assert [other.bulkhead.enter(0) for _ in range(2)] == [True, False]
    one.bulkhead.leave()
    assert other.bulkhead.enter(0)


def test_who_has_waited_longest_is_next() -> None:
    one = Door(1, threading.Semaphore(1))
    assert [one.bulkhead.enter(0) for _ in range(2)] == [True, True]
    entered: list[str] = []

    def second(turn: threading.Event, _: float) -> bool:
        one.bulkhead.leave()
        assert not turn.is_set()
        entered.append("second waits")
        one.bulkhead.leave()
        return turn.is_set()

    def first(*_: object) -> bool:
        one.bulkhead._wait = second
        assert one.bulkhead.enter(1)
        entered.append("second")
        return False

    one.bulkhead._wait = first
    assert one.bulkhead.enter(1)
    assert entered == ["second waits", "second"]
    assert not one.bulkhead.enter(0)


def test_a_place_that_is_lent_is_handed_on_and_comes_back() -> None:
    spare = threading.Semaphore(1)
    one, other = Door(1, spare), Door(1, spare)
    assert [one.bulkhead.enter(0) for _ in range(2)] == [True, True]

    def wait(turn: threading.Event, _: float) -> bool:
        one.bulkhead.leave()
        assert turn.is_set()
        return True

    one.bulkhead._wait = wait
    assert one.bulkhead.enter(1)
    assert other.bulkhead.enter(0)
    assert not other.bulkhead.enter(0)
    one.bulkhead.leave()
    assert other.bulkhead.enter(0)


def test_a_place_that_is_lent_is_not_handed_on_at_a_server_that_stalls() -> None:
    spare = threading.Semaphore(1)
    one, other = Door(1, spare), Door(1, spare)
    assert [one.bulkhead.enter(0) for _ in range(2)] == [True, True]

    def wait(turn: threading.Event, _: float) -> bool:
        one.is_stalled = True
        one.bulkhead.leave()
        return turn.is_set()

    one.bulkhead._wait = wait
    assert not one.bulkhead.enter(1)
    assert [other.bulkhead.enter(0) for _ in range(2)] == [True, True]


def test_who_waits_borrows_what_another_gave_back() -> None:
    spare = threading.Semaphore(1)
    one, other = Door(1, spare), Door(1, spare)
    assert [other.bulkhead.enter(0) for _ in range(2)] == [True, True]
    assert one.bulkhead.enter(0)

    def wait(turn: threading.Event, _: float) -> bool:
        other.bulkhead.leave()
        assert not one.bulkhead.enter(0)  # nobody overtakes
        return turn.is_set()

    one.bulkhead._wait = wait
    assert one.bulkhead.enter(1)
    assert not other.bulkhead.enter(0)


def test_a_server_that_stalls_is_lent_no_place() -> None:
    spare = threading.Semaphore(1)
    one, other = Door(1, spare), Door(1, spare)
    one.bulkhead.enter(0)
    one.is_stalled = True
    assert not one.bulkhead.enter(10)
    assert [other.bulkhead.enter(0) for _ in range(2)] == [True, True]
    for _ in range(2):
        other.bulkhead.leave()
    assert [other.bulkhead.enter(0) for _ in range(3)] == [True, True, False]
