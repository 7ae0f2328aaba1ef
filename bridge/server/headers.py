"""Headers that are too much to be held for as long as a call waits.

They are there before anything is known of a peer, and cost it next to nothing: a header
that was sent once is repeated by a byte. Thousands of calls may stand in line, each
with what it came with.

Source:
    RFC 7541, 6.1 and 7.3.
"""

from collections.abc import Iterable

from bridge.errors import RequestError

LONGEST_HEADERS_BYTES = 128 * 1024
"""As they are held. A token has at most 16 KiB."""
_EACH_BYTES = 200
"""What a header takes beside its text."""


def are_too_long(headers: Iterable[tuple[str, str | bytes]] | None) -> bool:
    """Say whether a call with these headers must not wait."""
    held = 0
    for name, value in headers or ():
        held += _EACH_BYTES + len(name) + len(value)
    return held > LONGEST_HEADERS_BYTES


def refusal() -> RequestError:
    """Return what a peer is told whose headers are too long."""
    return RequestError("the headers of the call are too long", rule="request.headers")
