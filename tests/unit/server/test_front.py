"""Which headers are held while a call waits."""

import pytest

from bridge.server.front import has_too_long_headers


@pytest.mark.parametrize(
    "headers",
    [
        None,
        (),
        (("authorization", "x" * 32_000),),
        tuple((f"x-{number}", "v" * 100) for number in range(200)),
        (("x-bin", bytes(32_000)),),
    ],
    ids=["none", "no header", "long", "many", "bytes"],
)
def test_what_a_token_may_stand_beside_is_held(
    headers: tuple[tuple[str, str | bytes], ...] | None,
) -> None:
    assert not has_too_long_headers(headers)


@pytest.mark.parametrize(
    "headers",
    [
        (("x", "v" * 64 * 1024),),
        (("x" * 64 * 1024, ""),),
        (("x-bin", bytes(64 * 1024)),),
        (("x", "v" * 3900),) * 17,
        (("x", ""),) * 330,
    ],
    ids=["a value", "a name", "bytes", "one again and again", "next to nothing each"],
)
def test_what_is_sent_for_little_and_held_for_long_is_not(
    headers: tuple[tuple[str, str | bytes], ...],
) -> None:
    assert has_too_long_headers(headers)
