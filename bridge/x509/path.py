"""Finds and validates the chain of an issuing CA when it is loaded.

`find_chain` searches a path to a trust anchor among certificates in any order. Each
path that it finds is validated by `validate_chain`: a short walk that asks for more
than RFC 5280 does, as a chain that OpenSSL takes and rustls or Go refuse is an outage.

`cryptography.x509.verification` cannot do this: it refuses every URI constraint.

Source:
    RFC 5280, 6.1; X509-SVID, 5.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice, pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from bridge.errors import ConfigError, DeniedError
from bridge.x509.algorithm import signature_problem
from bridge.x509.ca_certificate import (
    BOTH_WAYS,
    Usages,
    anchor_problems,
    ca_problems,
    validity_problems,
)
from bridge.x509.certificate import (
    UNREADABLE,
    extensions_of,
    issuer_of,
    name_text,
    readable,
    subject_of,
    value_in,
)
from bridge.x509.name_constraints import ChainConstraints

MOST_CAS_BELOW_ANCHOR = 6
"""rustls walks no longer path (webpki, verify_cert.rs), and the bridge loads none."""
_MOST_STEPS = 10_000
_MOST_PATHS = 64
"""Bounds of a search: how often a certificate is held against an issuer, and how many
paths are validated."""
_LASTING = timedelta(days=30)
"""A path that ends sooner is taken only if there is no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedChain:
    """A chain from the issuing CA to a trust anchor, all of it checked."""

    issuing: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    """From the issuing CA's issuer upwards; no trust anchor."""
    anchor: x509.Certificate
    constraints: ChainConstraints
    not_before: datetime
    """The latest notBefore of all certificates, the anchor's included."""
    not_after: datetime
    """The earliest notAfter of all certificates, the anchor's included."""

    def tiers(self) -> list[tuple[str, x509.Certificate]]:
        """Return each certificate with what it is, the issuing CA first."""
        return [
            ("issuing CA", self.issuing),
            *(("intermediate", one) for one in self.intermediates),
            ("trust anchor", self.anchor),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChain:
    """The best path from an issuing CA to a trust anchor, and what is not on it."""

    chain: ValidatedChain
    left_out: tuple[x509.Certificate, ...]
    """Each certificate that was given and is not on the path, once, in order."""


def find_chain(
    issuing: x509.Certificate,
    others: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    now: datetime | None,
    source: str,
    require: Callable[[ValidatedChain], None] = lambda _: None,
) -> FoundChain:
    """Find a valid path from the issuing CA to a trust anchor, and validate it.

    Of several paths the longest one that lasts 30 days is taken: a cross-certificate is
    served to peers that do not have the newer anchor yet. Of two such paths the one
    that ends later is taken.

    Args:
        issuing: The issuing CA's certificate. Another certificate of its name and key
            among `others` may take its place in the path, such as the other half of a
            cross-signed pair.
        others: Certificates in any order: intermediates, repeated ones, roots,
            strangers.
        anchors: See `validate_chain`.
        now: See `validate_chain`. None: each path is validated at its last second.
        source: See `validate_chain`.
        require: Raises a `ConfigError` for a valid path that cannot be used
            nevertheless, such as one that a data plane rejects.

    Raises:
        ConfigError: No path leads to a trust anchor: the message names the issuer that
            is missing. Or each path has problems: the message lists those of the path
            with the fewest, a line each.
    """
    given = [*dict.fromkeys((issuing, *others))]
    found: list[ValidatedChain] = []
    problems: list[ConfigError] = []
    for *path, anchor in _paths(given, anchors, source):
        then = now or _last_second(*path, anchor)
        try:
            chain = validate_chain(path[0], path[1:], [anchor], now=then, source=source)
            require(chain)
        except ConfigError as error:
            problems.append(error)
        else:
            found.append(chain)
    if not found:
        raise min(problems, key=lambda error: len(str(error).splitlines()))
    best = max(
        found,
        key=lambda one: (
            now is None or one.not_after - now > _LASTING,
            len(one.intermediates),
            one.not_after,
        ),
    )
    on_path = {best.issuing, *best.intermediates}
    left_out = tuple(one for one in given if one not in on_path)
    return FoundChain(chain=best, left_out=left_out)


def _last_second(*path: x509.Certificate) -> datetime:
    return min(one.not_valid_after_utc for one in path) - timedelta(seconds=1)


def require_path(
    issuing: x509.Certificate,
    others: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    source: str,
) -> None:
    """Require that a path leads to a trust anchor, whatever is wrong with its tiers.

    Raises:
        ConfigError: None does; the message names the issuer that is missing.
    """
    _paths([*dict.fromkeys((issuing, *others))], anchors, source)


def validate_chain(
    issuing: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    now: datetime,
    source: str,
    usages: Usages = BOTH_WAYS,
) -> ValidatedChain:
    """Prove that a chain leads from the issuing CA to a trust anchor.

    Args:
        issuing: The issuing CA's certificate.
        intermediates: From the issuing CA's issuer upwards, without the anchor.
        anchors: The trust anchors, 1 or more; need not be self-signed.
        now: The time to validate at, aware, in UTC.
        source: What people call the chain, such as its file; begins each complaint.
        usages: What the leaves are used for, see `ca_problems`.

    Raises:
        ConfigError: Anything is wrong; the message lists all that is, a line each.
    """
    _require_anchors(anchors, source)
    given = (issuing, *intermediates)
    anchor, missing = _anchor_of(given[-1], anchors, now)
    path = given if anchor is None else (*given, anchor)
    problems = [
        *_problems_of_each(path, len(given), now, usages),
        *_problems_of_links(path),
        *([(len(given) - 1, missing)] if missing else []),
        *_problems_of_pairs(path, len(given)),
    ]
    if not problems:
        # Only now are all constraints known to parse.
        problems = [*_problems_of_own_names(path)]
    if problems or anchor is None:
        raise ConfigError(
            "\n".join(
                f"{source}: {tier_title(path, len(given), index)} {text}"
                for index, text in sorted(problems)
            ),
            rule="config.chain",
        )
    return ValidatedChain(
        issuing=issuing,
        intermediates=tuple(intermediates),
        anchor=anchor,
        constraints=ChainConstraints.of_chain(path),
        not_before=max(one.not_valid_before_utc for one in path),
        not_after=min(one.not_valid_after_utc for one in path),
    )


def verify_leaf_signature(leaf: x509.Certificate, issuing: x509.Certificate) -> bool:
    """Tell whether `issuing` is the leaf's issuer by name and by signature."""
    return signature_problem(leaf) is None and signature_fault(leaf, issuing) is None


_Problem = tuple[int, str]
"""Index of the certificate in the path, and a sentence without its subject."""


def _require_anchors(anchors: Sequence[x509.Certificate], source: str) -> None:
    if not anchors:
        raise ConfigError(
            f"{source}: there are no trust anchors; expected 1 or more certificates",
            rule="config.trust-anchors",
        )


_Path = tuple[x509.Certificate, ...]
_Pool = dict[bytes, list[x509.Certificate]]
"""Certificates by their subject."""


def _paths(
    given: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    source: str,
) -> list[_Path]:
    search = _Search(given, anchors, source)
    found = [*islice(search.paths(), _MOST_PATHS)]
    if not found:
        raise search.no_path()
    return found


class _Search:
    """Walks from the issuing CA upwards, the shortest paths first.

    Args:
        given: The issuing CA, then the others, each once.
        anchors: The trust anchors.
        source: See `validate_chain`.
    """

    def __init__(
        self,
        given: Sequence[x509.Certificate],
        anchors: Sequence[x509.Certificate],
        source: str,
    ) -> None:
        _require_anchors(anchors, source)
        self._given = _by_subject(given)
        self._anchors = _by_subject([*dict.fromkeys(anchors)])
        self._all_anchors = anchors
        self._source = source
        # Leaves have the issuing CA's name and key identifier: both must be the same.
        wanted = _identity(given[0])
        self._starts = [
            one
            for one in self._given[subject_of(given[0])]
            if one == given[0] or (wanted and _identity(one) == wanted)
        ]
        self._steps = _MOST_STEPS
        self._links: dict[tuple[x509.Certificate, x509.Certificate], bool] = {}

    def paths(self) -> Iterator[_Path]:
        """Yield paths that link; the last certificate of each is an anchor."""
        waiting: deque[_Path] = deque((one,) for one in self._starts)
        while waiting and self._steps > 0:
            path = waiting.popleft()
            for anchor in self._issuers(path[-1], self._anchors):
                yield (*path, anchor)
            for one in self._issuers(path[-1], self._given):
                if one not in path:
                    waiting.append((*path, one))

    def no_path(self) -> ConfigError:
        """Say where the search ended, and which issuer is missing there."""
        if self._steps <= 0:
            text = "the search of a path was given up: leave out what is not of it"
            return ConfigError(f"{self._source}: {text}", rule="config.chain")
        depths = dict.fromkeys(self._starts, 1)
        waiting = deque(depths)
        lines: list[str] = []
        while waiting:
            one = waiting.popleft()
            issuers = self._issuers(one, self._given)
            new = [issuer for issuer in issuers if issuer not in depths]
            depths |= dict.fromkeys(new, depths[one] + 1)
            waiting.extend(new)
            if not issuers:
                title = f"certificate {depths[one]} ({name_text(one, 'subject')})"
                lines.append(f"{self._source}: {title} {self._why(one)}")
        if not lines:
            text = "its CA certificates issued each other, and no trust anchor any"
            lines = [f"{self._source}: {text} of them"]
        return ConfigError("\n".join(lines), rule="config.chain")

    def _issuers(self, child: x509.Certificate, pool: _Pool) -> list[x509.Certificate]:
        found = pool.get(issuer_of(child), ())
        return [one for one in found if one != child and self._is_link(child, one)]

    def _is_link(self, child: x509.Certificate, parent: x509.Certificate) -> bool:
        self._steps -= 1
        if (child, parent) not in self._links:
            is_link = not [*link_faults(child, parent)]
            self._links[child, parent] = is_link
        return self._links[child, parent]

    def _why(self, last: x509.Certificate) -> str:
        named = self._anchors.get(issuer_of(last), [])
        others = [one for one in self._given.get(issuer_of(last), []) if one != last]
        if named or not others:
            return _why_without_anchor(last, named, self._all_anchors)
        fault = next(link_faults(last, others[0]))
        return (
            f"is named as issued by a certificate of the chain, but {fault}; add the "
            f"one that issued it ({_issuer_text(last)})"
        )


def _by_subject(certificates: Sequence[x509.Certificate]) -> _Pool:
    pool: _Pool = {}
    for one in certificates:
        pool.setdefault(subject_of(one), []).append(one)
    return pool


def _identity(certificate: x509.Certificate) -> tuple[bytes, bytes | None] | None:
    try:
        return _public_key(certificate), _own_identifier(certificate)
    except UNREADABLE:
        return None


def _anchor_of(
    last: x509.Certificate, anchors: Sequence[x509.Certificate], now: datetime
) -> tuple[x509.Certificate | None, str]:
    """Find the trust anchor that issued the last certificate, or say what is wrong."""
    named = [
        anchor
        for anchor in anchors
        if anchor != last and subject_of(anchor) == issuer_of(last)
    ]
    issuers = [anchor for anchor in named if not [*link_faults(last, anchor)]]
    if issuers:
        # A root that was renewed with its key is there twice: take the one that lasts.
        best = max(
            issuers,
            key=lambda one: (
                one.not_valid_before_utc <= now <= one.not_valid_after_utc,
                one.not_valid_after_utc,
            ),
        )
        return best, ""
    return None, _why_without_anchor(last, named, anchors)


def _why_without_anchor(
    last: x509.Certificate,
    named: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
) -> str:
    if last in anchors:
        return (
            "is itself a trust anchor: leave it out of the chain, whose last "
            "certificate is one that a trust anchor issued; a trust anchor, whose key "
            "belongs offline, is no issuing CA"
        )
    if subject_of(last) == issuer_of(last):
        return (
            "is issued by itself, and is none of the trust anchors: a root does not "
            "belong in the chain; put it among the trust anchors, if peers may trust it"
        )
    if not named:
        known = "; ".join(sorted(str(name_text(one, "subject")) for one in anchors))
        return (
            f"is issued by ({name_text(last, 'issuer')}), which is none of the trust "
            f"anchors ({known}) and not in the chain; names are compared byte for "
            f"byte; add the certificate of this issuer ({_issuer_text(last)})"
        )
    faults = [fault for anchor in named for fault in link_faults(last, anchor)]
    return f"is named as issued by a trust anchor, but {faults[0]}"


def _issuer_text(certificate: x509.Certificate) -> str:
    wanted = _authority_key_identifier(certificate)
    key = f", key identifier {wanted.hex(':')}" if wanted else ""
    return f"{name_text(certificate, 'issuer')}{key}"


def _problems_of_each(
    path: Sequence[x509.Certificate], given: int, now: datetime, usages: Usages
) -> Iterator[_Problem]:
    for index, certificate in enumerate(path[:given]):
        for text in ca_problems(certificate, cas_below=index, now=now, usages=usages):
            yield index, text
        problem = signature_problem(certificate)
        if problem is not None:
            yield index, problem
    # What is signed upon an anchor is of no account, such as SHA-1 on an old root.
    for anchor in path[given:]:
        for text in validity_problems(anchor, now):
            yield given, text
        for text in anchor_problems(anchor, cas_below=given, usages=usages):
            yield given, text
    if given > MOST_CAS_BELOW_ANCHOR:
        text = f"is one of {given} CA certificates below the anchor; rustls takes"
        most = MOST_CAS_BELOW_ANCHOR
        yield given - 1, f"{text} at most {most}: issue from fewer tiers"


def _problems_of_links(path: Sequence[x509.Certificate]) -> Iterator[_Problem]:
    for index, (child, parent) in enumerate(pairwise(path)):
        for fault in link_faults(child, parent):
            yield index, f"is not issued by the next certificate: {fault}"


def _problems_of_pairs(
    path: Sequence[x509.Certificate], given: int
) -> Iterator[_Problem]:
    """Yield certificates that share a subject or a key with one before them."""
    subjects: dict[bytes, int] = {}
    keys: dict[bytes, int] = {}
    for index, certificate in enumerate(path):
        first = subjects.setdefault(subject_of(certificate), index)
        if first != index and index < given:
            yield index, f"has the subject of certificate {first + 1}"
        elif first != index and not _are_told_apart(path, subject_of(certificate)):
            text = (
                f"has the subject of certificate {first + 1}, and no key identifiers "
                "tell them apart: OpenSSL and Envoy take the one for the other; "
                "reissue both with a subjectKeyIdentifier, and what they issued with "
                "an authorityKeyIdentifier"
            )
            yield index, text
        first = keys.setdefault(_key_of(certificate, index), index)
        if first != index:
            yield index, f"has the key of certificate {first + 1}"


def _are_told_apart(path: Sequence[x509.Certificate], name: bytes) -> bool:
    # The leaf has the identifier of the issuing CA, where that has one. What an anchor
    # says of its own issuer is of no account.
    of_the_name = (one for one in path if subject_of(one) == name)
    below = (one for one in path[:-1] if issuer_of(one) == name)
    return all(_own_identifier(one) for one in of_the_name) and all(
        _authority_key_identifier(one) for one in below
    )


def _key_of(certificate: x509.Certificate, index: int) -> bytes:
    try:
        return _public_key(certificate)
    except UNREADABLE:
        return b"%d" % index  # reported by `ca_problems`; equal to no other


def _public_key(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


def _problems_of_own_names(path: Sequence[x509.Certificate]) -> Iterator[_Problem]:
    """Yield CA certificates whose own names the constraints above them forbid.

    Source:
        RFC 5280, 6.1.3 (b) and (c).
    """
    for index, certificate in enumerate(path[:-1]):
        above = ChainConstraints.of_chain(path[index + 1 :])
        subject = readable(certificate).subject
        names: list[x509.GeneralName] = [x509.DirectoryName(subject)]
        san = value_in(extensions_of(certificate), x509.SubjectAlternativeName)
        names.extend(san or ())
        try:
            above.require_permitted(names)
        except DeniedError as error:
            text = "has a name that the constraints above it do not allow"
            yield index, f"{text}: {error.detail}"
        mail = subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS)
        if mail and x509.RFC822Name in above.constrained:
            yield index, "has an e-mail address in its subject under a constraint"


def tier_title(path: Sequence[x509.Certificate], given: int, index: int) -> str:
    """Return what a certificate is for people.

    Args:
        path: A chain.
        given: How many certificates of it stand before the trust anchor.
        index: Of the certificate.
    """
    role = "trust anchor" if index == given else f"certificate {index + 1}"
    return f"{role} ({name_text(path[index], 'subject')})"


def link_faults(child: x509.Certificate, parent: x509.Certificate) -> Iterator[str]:
    """Yield why `parent` is not the issuer of `child`."""
    if issuer_of(child) != subject_of(parent):
        yield (
            f"its issuer ({name_text(child, 'issuer')}) is not the other's subject "
            f"({name_text(parent, 'subject')}), byte for byte"
        )
        return
    if signature_problem(child) is None:
        fault = signature_fault(child, parent)
        if fault is not None:
            yield fault
    yield from _key_identifier_faults(child, parent)


def signature_fault(child: x509.Certificate, parent: x509.Certificate) -> str | None:
    """Tell why the signature of `child` is not one of `parent`, if it is not."""
    try:
        child.verify_directly_issued_by(parent)
    except InvalidSignature:
        return "the signature is not one of the other's key"
    except UNREADABLE as error:
        return f"the signature cannot be verified: {error}"
    return None


def _key_identifier_faults(
    child: x509.Certificate, parent: x509.Certificate
) -> Iterator[str]:
    """Yield differences of the identifiers, where both certificates have them."""
    wanted = _authority_key(child)
    if wanted is None:
        return
    serial = wanted.authority_cert_serial_number
    if serial is not None and serial != parent.serial_number:
        yield "its authority key identifier names another serial number"
    found = _own_identifier(parent)
    if found is not None and wanted.key_identifier not in {None, found}:
        yield "its authority key identifier is not the other's subject key identifier"


def _own_identifier(certificate: x509.Certificate) -> bytes | None:
    try:
        found = value_in(extensions_of(certificate), x509.SubjectKeyIdentifier)
    except UNREADABLE:
        return None
    return None if found is None else found.digest


def _authority_key(
    certificate: x509.Certificate,
) -> x509.AuthorityKeyIdentifier | None:
    try:
        return value_in(extensions_of(certificate), x509.AuthorityKeyIdentifier)
    except UNREADABLE:
        return None


def _authority_key_identifier(certificate: x509.Certificate) -> bytes | None:
    found = _authority_key(certificate)
    return None if found is None else found.key_identifier
