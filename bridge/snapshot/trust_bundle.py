"""The trust anchors of a file: which are sent to workloads, and in which order.

Some verifiers try only the first certificate that has the name of an issuer. An anchor
that has expired is therefore never sent ahead of a good one with the same name.

Source:
    `X509_STORE_CTX_get1_issuer` of OpenSSL and BoringSSL; RFC 5280, 6.1.1 (d).
"""

import logging
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import ConfigError
from bridge.x509.ca_certificate import anchor_problems, validity_problems
from bridge.x509.certificate import name_text, subject_of
from bridge.x509.pem import encode_certificate, parse_blocks

_log = logging.getLogger(__name__)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class TrustBundle:
    """The trust anchors that can be read, each once.

    Args:
        anchors: 1 or more; need not be self-signed.
        left_out: What was not taken, in sentences.
    """

    def __init__(
        self, anchors: Sequence[x509.Certificate], left_out: Sequence[str] = ()
    ) -> None:
        self.anchors = tuple(dict.fromkeys(anchors))
        """Each once, in the order in which they were given."""
        self._told = (
            *left_out,
            *(
                f"{_title(anchor)} {text}"
                for anchor in self.anchors
                for text in _static_problems(anchor)
            ),
        )
        self._moments, self._texts = _texts(self.anchors)

    def pem(self, now: datetime) -> str:
        """Return all anchors in one text, each certificate ending in a newline.

        Args:
            now: Aware, in UTC. Of anchors with the same subject, those that are valid
                then come first.
        """
        return self._texts[bisect_right(self._moments, now)]

    def problems(self, now: datetime) -> list[str]:
        """Return what is wrong with the bundle, in sentences.

        Args:
            now: Aware, in UTC.
        """
        ended = (
            f"{_title(anchor)} {text}"
            for anchor in self.anchors
            for text in validity_problems(anchor, now)
        )
        return [*self._told, *ended]

    def warn(self, now: datetime) -> None:
        """Log what is wrong with the bundle. See `problems`."""
        for problem in self.problems(now):
            _log.warning("%s", problem)


def parse_bundle(data: bytes, source: str) -> TrustBundle:
    """Read a file of trust anchors.

    Args:
        data: See `parse_certificates`.
        source: The file's name, for messages.

    Returns:
        The anchors that can be read. What cannot be read is left out and told: the
        other anchors do not depend on it.

    Raises:
        ConfigError: The file holds something other than certificates, or none that can
            be read.
    """
    anchors: list[x509.Certificate] = []
    unreadable: list[str] = []
    for block in parse_blocks(data, source):
        try:
            anchors.append(block.certificate())
        except ConfigError as error:
            unreadable.append(str(error))
    if not anchors:
        raise ConfigError("\n".join(unreadable), rule="config.pem")
    told = [f"{text}; it is left out, and the others are used" for text in unreadable]
    return TrustBundle(anchors, told)


def _static_problems(anchor: x509.Certificate) -> Iterator[str]:
    # The first is none of a chain: Envoy and rustls take such an anchor.
    if anchor.serial_number < 0:
        yield (
            "has a negative serial number, and programs in Go leave it out: reissue it "
            "with a positive one"
        )
    yield from anchor_problems(anchor, cas_below=0)


def _texts(
    anchors: Sequence[x509.Certificate],
) -> tuple[list[datetime], list[str]]:
    # The text before the first of the moments, and the text from each moment on.
    groups: dict[bytes, list[int]] = defaultdict(list)
    for place, anchor in enumerate(anchors):
        groups[subject_of(anchor)].append(place)
    alike = [places for places in groups.values() if places[1:]]
    changes = {
        moment
        for places in alike
        for place in places
        for moment in _validity(anchors[place])
    }
    encoded = [encode_certificate(one.public_bytes(Encoding.DER)) for one in anchors]
    moments, texts = list[datetime](), list[str]()
    for moment in (_LONG_AGO, *sorted(changes)):
        ordered = [*encoded]
        for places in alike:
            valid_first = sorted(
                places, key=lambda place: not is_valid(anchors[place], moment)
            )
            for place, chosen in zip(places, valid_first, strict=True):
                ordered[place] = encoded[chosen]
        text = "".join(ordered)
        if texts and text == texts[-1]:
            continue
        moments.append(moment)
        texts.append(text)
    return moments[1:], texts


def _validity(anchor: x509.Certificate) -> Iterator[datetime]:
    yield anchor.not_valid_before_utc
    yield anchor.not_valid_after_utc


def is_valid(anchor: x509.Certificate, moment: datetime) -> bool:
    """Return whether a trust anchor is valid at a moment."""
    return not [*validity_problems(anchor, moment)]


def _title(anchor: x509.Certificate) -> str:
    return f"trust anchor ({name_text(anchor, 'subject')})"
