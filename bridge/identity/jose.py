"""Check the encodings of tokens and keys, in front of PyJWT: base64url and JSON.

Two readers that disagree about a token are a vulnerability, so what can be read in two
ways is refused: padding, white space and stray bits in base64url; repeated names, NaN,
other encodings than UTF-8 and excessive depth in JSON. PyJWT accepts these.

Source:
    RFC 7515, section 2 and appendix C; RFC 8259, sections 4 and 8.1.
"""

import json
import re
from typing import Any, NoReturn

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
# The last characters that carry only 2 or 4 bits: the other bits must be zero.
_LAST = {0: None, 2: frozenset("AQgw"), 3: frozenset("AEIMQUYcgkosw048")}


def require_base64url(text: str) -> None:
    """Refuse what is not the one unpadded base64url encoding of its bytes.

    Raises:
        ValueError: The text has another character, an impossible length, or unused
            bits that are not zero.
    """
    rest = len(text) % 4
    if rest not in _LAST or not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    last = _LAST[rest]
    if last is not None and text[-1] not in last:
        raise ValueError("not the one base64url encoding of its bytes")


def json_object(data: bytes) -> dict[str, Any]:
    """Read one JSON object, in UTF-8.

    Raises:
        ValueError: The text is not a JSON object, repeats a name in an object at any
            depth, or is nested too deeply.
    """
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one error for all text
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is repeated")
    return found


def _no_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
