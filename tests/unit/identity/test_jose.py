"""Base64url and JSON with one reading each."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.identity import jose
from tests.support.parts.tokens import base64url


@given(st.binary(max_size=200))
def test_what_an_encoder_writes_is_accepted(data: bytes) -> None:
    jose.require_base64url(base64url(data))


@given(st.text(max_size=60) | st.text("AQgw-_+/= \n", max_size=12))
def test_nothing_else_is_accepted(text: str) -> None:
    try:
        jose.require_base64url(text)
    except ValueError:
        return
    padded = text + "=" * (-len(text) % 4)
    assert base64url(base64.urlsafe_b64decode(padded)) == text


@pytest.mark.parametrize(
    "text",
    ["QQ==", "QQ=", "Q", "QR", "QUJ", "Q Q", "QQ\n", "+/8", "Qé", "\uff21" * 4],
)
def test_a_second_spelling_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base64url"):
        jose.require_base64url(text)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"[]", "object"),
        (b'"a"', "object"),
        (b"", "Expecting"),
        (b'{"a":1}{}', "Extra data"),
        (b'{"a":1,"a":1}', "repeated"),
        (b'{"b":{"a":1,"\\u0061":2}}', "repeated"),
        (b'{"a":NaN}', "not JSON"),
        (b'{"a":-Infinity}', "not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "limit"),
        (b'{"a":"\xff"}', "utf-8"),
        ('{"a":1}'.encode("utf-16"), "utf-8"),
        (b"\xef\xbb\xbf{}", "Expecting"),
        (b'{"a":' + b"[" * 100_000, "deep"),
        (b"{'a':1}", "Expecting"),
    ],
)
def test_json_with_two_readings_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        jose.json_object(data)


def test_an_object_is_read() -> None:
    assert jose.json_object(b' {"a": [1, {"a": null}]} ') == {"a": [1, {"a": None}]}
