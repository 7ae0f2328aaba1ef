import inspect

import pytest

from bridge import errors
from bridge.errors import (
    BackendError,
    BackendThrottledError,
    BackendTimeoutError,
    BridgeError,
    CallerError,
    CSRError,
    MisissuedError,
    OperatorError,
    OverloadedError,
    ReviewError,
)

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
