"""Fuzz target: SPIFFE IDs.

Any text is an ID, written back byte for byte, or a `RequestError`.
"""

import re

from bridge.errors import RequestError
from bridge.spiffe import SpiffeID
from tests.fuzz.engine import main

# Written anew, not the pattern of the code under test.
_ID = re.compile(
    r"spiffe://(?=[^/]{1,253}/)(?!\d+\.\d+\.\d+\.\d+/)[a-z0-9_-]{1,63}"
    r"(?:\.[a-z0-9_-]{1,63})*(?:/(?!\.{1,2}(?:/|\Z))[a-zA-Z0-9._-]+)+\Z",
    re.ASCII,
)
_LONGEST = 2048
_BY_CHANCE = 40
"""Characters of a text that a message may hold by chance."""


def run(data: bytes) -> None:
    """Parse `data` as text."""
    text = data.decode("utf-8", "surrogateescape")
    expected = len(text) <= _LONGEST and _ID.match(text) is not None
    try:
        found = SpiffeID.parse(text)
    except RequestError as error:
        if expected:
            raise AssertionError("a good ID was refused") from error
        if len(text) > _BY_CHANCE and text in str(error):
            raise AssertionError("the message repeats the text") from error
        return
    if not expected:
        raise AssertionError("a bad ID was accepted")
    if str(found) != text:
        raise AssertionError("it is not written as it was read")
    if found.service_account is not None:
        namespace, name = found.service_account
        if text.split("/")[3:] != ["ns", namespace, "sa", name]:
            raise AssertionError("another service account than the text says")


if __name__ == "__main__":
    main(run)
