"""What is told of certificates that end: in the log, in readiness, and by not ready."""

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bridge.snapshot.expiry import PART, ExpiryWatch
from bridge.snapshot.revocation import RevocationLists
from bridge.x509.crl.revocation_list import parse_lists
from tests.support.harness.core import World, two_authorities
from tests.support.parts.pki import NOW, new_root, revoking

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
BACKDATE = timedelta(minutes=2)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    root = new_root(not_after=NOW + 4000 * DAY)
    one = {
        name: root.issue_ca(name, path_length=0, not_after=NOW + days * DAY)
        for name, days in (("a", 130), ("b", 200))
    }
    with World(tmp_path, authorities=one) as made:
        yield made


def watch(world: World) -> ExpiryWatch:
    snapshot = world.snapshot
    known = [
        one for each in snapshot.issuers.values() for one in snapshot.expiries(each)
    ]
    return ExpiryWatch(lambda: known, lambda: snapshot, world.clock)


def test_nothing_is_told_of_what_lasts(world: World) -> None:
    assert watch(world).warnings() == {}


def test_readiness_has_each_certificate_once_and_the_errors_first(world: World) -> None:
    world.clock.now = NOW + 130 * DAY - HOUR
    (text,) = watch(world).warnings().values()
    assert text.startswith("error: the issuing CA (CN=a) of a ends ")
    assert ", in 1 hour, within the longest lifetime that may be issued" in text
    world.clock.now = NOW + 180 * DAY
    texts = watch(world).warnings()[PART].split("; warning: ")
    assert texts[0].startswith("error: the issuing CA (CN=a) of a ended ")
    assert texts[1].startswith("the issuing CA (CN=b) of b ends ")
    world.clock.now = NOW + 3300 * DAY
    told = watch(world).warnings()[PART]
    assert told.count("the trust anchor (CN=root) of a, b ends ") == 1


def test_the_log_has_a_change_once_and_again_the_next_day(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    watched = watch(world)
    caplog.set_level(logging.INFO, "bridge.snapshot.expiry")

    def told() -> list[tuple[str, str]]:
        watched.look()
        found = [(one.levelname, one.getMessage()) for one in caplog.records]
        caplog.clear()
        return found

    assert told() == []
    world.clock.forward(days=110, hours=1)
    ((level, text),) = told()
    assert level == "WARNING"
    assert "the issuing CA (CN=a) of a ends" in text
    assert told() == []
    world.clock.forward(hours=22)
    assert told() == []
    world.clock.forward(hours=2)
    ((level, text),) = told()
    assert "in 18 days" in text
    world.clock.forward(days=19)
    ((level, text),) = told()
    assert level == "ERROR"
    assert "ended" in text


@pytest.mark.parametrize(
    ("after", "unusable", "says"),
    [
        pytest.param(99 * DAY, (), (), id="nothing has ended"),
        pytest.param(99 * DAY, ("a", "b"), (), id="all fail for another reason"),
        pytest.param(130 * DAY, (), (), id="another one lasts"),
        pytest.param(130 * DAY, ("b",), ("a",), id="the other one cannot sign"),
        pytest.param(200 * DAY, (), ("a", "b"), id="all have ended"),
        pytest.param(
            200 * DAY - BACKDATE, (), ("a", "b"), id="too late for a certificate"
        ),
        pytest.param(
            200 * DAY - BACKDATE - HOUR, (), (), id="a short certificate is possible"
        ),
    ],
)
def test_the_bridge_is_not_ready_once_the_last_usable_chain_has_ended(
    world: World, after: timedelta, unusable: tuple[str, ...], says: tuple[str, ...]
) -> None:
    world.clock.now = NOW + after
    told = watch(world).problem(unusable)
    ends = {"a": NOW + 130 * DAY, "b": NOW + 200 * DAY}
    assert told == ("front istio can issue nothing: " if says else "") + ", ".join(
        f"the issuing CA (CN={name}) of {name} "
        f"{'ended' if ends[name] <= NOW + after else 'ends'} "
        f"{ends[name]:%Y-%m-%dT%H:%M:%SZ}: replace it"
        for name in says
    )


@pytest.mark.parametrize(
    ("days", "fronts"),
    [(99, ""), (130, "linkerd"), (200, "istio, linkerd")],
    ids=["both last", "one front's CA has ended", "both have"],
)
def test_each_front_needs_a_chain_that_lasts(
    world: World, days: int, fronts: str
) -> None:
    routes = {"istio": dict.fromkeys(("b", "a"), ()), "linkerd": {"a": ()}}
    rules = replace(world.snapshot.rules, routes=routes)
    world.snapshot = replace(world.snapshot, rules=rules)
    world.clock.now = NOW + days * DAY
    told = watch(world).problem(())
    assert ", ".join(re.findall("front ([a-z]+) can issue nothing", told)) == fronts


def test_the_chain_ends_with_the_first_of_its_certificates(tmp_path: Path) -> None:
    authorities = two_authorities(not_after=NOW + 9 * DAY)
    with World(tmp_path, authorities=authorities) as world:
        world.clock.forward(days=10)
        told = watch(world).problem(())
    assert told.startswith("front istio can issue nothing: the ")


def test_a_front_is_not_ready_once_its_last_usable_chain_is_revoked(
    world: World,
) -> None:
    region = world.authorities["a"].above[0]
    told = []
    for names in (("a",), ("a", "b")):
        content = revoking(region, *(world.authorities[name] for name in names))
        lists = RevocationLists(parse_lists(content, "x"))
        world.snapshot = world.snapshot.under(lists)
        told.append(watch(world).problem(()))
    assert told[0] == ""
    assert "issue nothing" in told[1]
    assert "is revoked since" in told[1]
