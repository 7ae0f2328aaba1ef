import gc
import inspect
import logging
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bridge import errors
from bridge.errors import (
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
    BridgeError,
    CallerError,
    CSRError,
    MisissuedError,
    OperatorError,
    OverloadedError,
    ReviewError,
    drop_tracebacks,
)
from bridge.resilience.budget import Budget
from tests.support.harness.core import World, two_authorities
from tests.support.harness.fake_ca import lie_called

EVERY: list[type[BridgeError]] = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, BridgeError)
]


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_has_one_root_and_one_family(kind: type[Exception]) -> None:
    assert issubclass(kind, BridgeError)
    families = (
        CallerError,
        BackendError,
        OperatorError,
        OverloadedError,
        ReviewError,
    )
    assert kind is BridgeError or sum(issubclass(kind, one) for one in families) == 1


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_names_its_rule(kind: type[BridgeError]) -> None:
    error = kind("text")
    assert error.rule == kind.default_rule
    assert error.detail == ""
    named = kind("text", rule="a.b", detail="secret")
    assert (str(named), named.rule, named.detail) == ("text", "a.b", "secret")


def test_the_detail_is_not_in_the_text_for_peers() -> None:
    error = CSRError("the CSR does not parse", detail="0xdead")
    assert "0xdead" not in str(error)
    assert "0xdead" not in repr(error)


def test_after_two_errors_a_certificate_may_exist() -> None:
    assert {kind for kind in EVERY if kind.certificate_may_exist} == {
        BackendTimeoutError,
        MisissuedError,
    }


def test_a_throttled_backend_may_say_when_to_come_back() -> None:
    assert BackendThrottledError("slow").retry_after_seconds == 0
    later = BackendThrottledError("slow", retry_after_seconds=1.5)
    assert later.retry_after_seconds == 1.5


# A call is let go once it has ended, also where nobody collects garbage: the transport
# counts it as a stream of its connection until it is gone, and what a call holds adds
# up where calls fail.

DOWN = BackendUnavailableError("down")


class Peer:
    """What a call holds, as it holds the context of the transport."""

    def __call__(self) -> bool:
        return True


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # pytest keeps what is logged, with its tracebacks.
    log = logging.getLogger("bridge.resilience.boundary")
    monkeypatch.setattr(log, "disabled", True)
    with World(tmp_path, authorities=two_authorities()) as made:
        gc.disable()
        try:
            yield made
        finally:
            gc.enable()


def ended(world: World, **changed: Any) -> tuple[weakref.ref[Peer], str]:
    """Make a call as a front does. Returns its peer, and the rule that it broke."""
    peer = Peer()
    budget = Budget(time.monotonic() + 30, peer)
    rule = ""
    try:
        world.issue(budget=budget, **changed)
    except BridgeError as error:
        rule = error.rule
        drop_tracebacks(error)
    return weakref.ref(peer), rule


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        pytest.param({}, "", id="a certificate"),
        pytest.param({"a": DOWN}, "", id="a certificate of the second CA"),
        pytest.param(
            {"a": DOWN, "b": DOWN}, "backend.unavailable", id="both CAs are down"
        ),
        pytest.param(
            {"a": DOWN, "b": BackendTimeoutError("late")},
            "backend.unavailable",
            id="one CA is down and one is late",
        ),
        pytest.param(
            {"a": BackendRefusedError("no")}, "", id="a CA refuses, the other does not"
        ),
        pytest.param(
            {"a": ValueError("bug"), "b": DOWN},
            "backend.unavailable",
            id="a plugin fails oddly",
        ),
    ],
)
def test_a_call_is_let_go_whatever_its_issuing_cas_did(
    world: World, errors: Mapping[str, BaseException], expected: str
) -> None:
    for name, error in errors.items():
        world.cas[name].error = error
    peer, rule = ended(world)
    assert rule == expected
    assert peer() is None


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"token": "a.b.c"}, "token.format", id="a bad token"),
        pytest.param({"pem": "none"}, "csr.pem", id="no CSR"),
        pytest.param({"cluster": "other"}, "cluster.unknown", id="another cluster"),
    ],
)
def test_a_refused_call_is_let_go(
    world: World, changed: Mapping[str, Any], expected: str
) -> None:
    peer, rule = ended(world, **changed)
    assert rule == expected
    assert peer() is None


def test_a_call_whose_answer_was_no_honest_one_is_let_go(world: World) -> None:
    world.cas["a"].lie = lie_called("other key")
    peer, rule = ended(world)
    assert rule
    assert peer() is None


def test_an_error_without_a_traceback_has_none_dropped() -> None:
    drop_tracebacks(None)
    error = BackendError("never raised")
    drop_tracebacks(error)
    assert error.__traceback__ is None
