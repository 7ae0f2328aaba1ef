"""The few DER steps that `cryptography` does not offer: splicing and walking.

Source:
    X.690, sections 8.1 and 10.1.
"""

from collections.abc import Iterator

SEQUENCE = 0x30
BIT_STRING = 0x03
_LONG_FORM = 0x80


def tlv(tag: int, content: bytes) -> bytes:
    """Encode one element: tag, definite length, content."""
    size = len(content)
    if size < _LONG_FORM:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, _LONG_FORM | len(length))) + length + content


def splice(tbs: bytes, algorithm: bytes, signature: bytes) -> bytes:
    """Make a Certificate, or a CertificationRequest, of its three parts.

    Args:
        tbs: TBSCertificate or CertificationRequestInfo in DER.
        algorithm: AlgorithmIdentifier in DER.
        signature: The signature's bytes, without the BIT STRING around them.

    Source:
        RFC 5280, 4.1.1; RFC 2986, 4.2.
    """
    return tlv(SEQUENCE, tbs + algorithm + tlv(BIT_STRING, b"\x00" + signature))


def elements(der: bytes) -> Iterator[bytes]:
    """Yield each element that follows the one before in `der`, header included.

    Raises:
        ValueError: A length is indefinite, not minimal, or beyond the end.
    """
    position = 0
    while position < len(der):
        start, size = _header(der, position)
        yield der[position : start + size]
        position = start + size


def content(element: bytes) -> bytes:
    """Return what an element holds, without its header. Raises as `elements`."""
    start, size = _header(element, 0)
    return element[start : start + size]


def _header(der: bytes, position: int) -> tuple[int, int]:
    # Returns where the content starts, and its size.
    if position + 2 > len(der):
        raise ValueError("an element is cut off")
    first = der[position + 1]
    start, size = position + 2, first
    if first >= _LONG_FORM:
        count = first & ~_LONG_FORM
        start += count
        size = int.from_bytes(der[position + 2 : start], "big")
        if not count or size < _LONG_FORM or not der[position + 2]:
            raise ValueError("a length is not encoded as DER wants")
    if start + size > len(der):
        raise ValueError("an element is cut off")
    return start, size
