from collections.abc import Callable

import pytest

from bridge.errors import (
    BackendBrokenError,
    BackendError,
    BackendUnavailableError,
    BridgeError,
    ConfigError,
    DeniedError,
)
from bridge.resilience.boundary import close_plugin, from_plugin


def raising(error: BaseException) -> Callable[..., object]:
    def method(*_: object, **__: object) -> object:
        raise error

    return method


def test_an_answer_of_the_right_type_comes_back() -> None:
    assert from_plugin(lambda a, *, b: a + b, int, 1, b=2) == 3


@pytest.mark.parametrize(
    ("error", "allowed"),
    [
        (BackendUnavailableError("down"), (BackendError,)),
        (KeyboardInterrupt(), (BackendError,)),
        (ConfigError("an option"), (ConfigError,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_plugin_may_raise_is_left(
    error: BaseException, allowed: tuple[type[BridgeError], ...]
) -> None:
    with pytest.raises(type(error)) as caught:
        from_plugin(raising(error), object, allowed=allowed)
    assert caught.value is error


@pytest.mark.parametrize("may_sign", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret"),
        MemoryError(),
        SystemExit(1),
        BaseException("a panic"),
        # An error of the core's own is none that a plugin may raise: a caller would be
        # told that it is not permitted.
        DeniedError("secret"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_anything_else_is_a_broken_backend(
    error: BaseException, *, may_sign: bool
) -> None:
    with pytest.raises(BackendBrokenError, match="the plugin failed") as caught:
        from_plugin(raising(error), object, may_sign=may_sign)
    assert str(caught.value) == f"the plugin failed: {type(error).__name__}"
    assert caught.value.rule == "backend.plugin"
    assert caught.value.certificate_may_exist is may_sign
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize("answer", [None, "text", b"bytes"])
def test_an_answer_of_another_type_is_one_too(answer: object) -> None:
    with pytest.raises(BackendBrokenError, match="wrong type") as caught:
        from_plugin(lambda: answer, int, may_sign=True)
    assert caught.value.certificate_may_exist


def test_a_plugin_that_cannot_be_closed_does_not_keep_others_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    close_plugin(raising(ValueError("x")))
    assert "could not be closed" in caplog.text
