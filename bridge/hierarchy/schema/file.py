"""The hierarchy file: which keys there are, and what they may be.

`load` reads one. What its CAs would do to each other and to the data planes is found by
`bridge.hierarchy.plan`.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cryptography import x509
from cryptography.x509.oid import NameOID
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from bridge.config.diagnostics import Problem, known_keys, listed, problem_of, shown
from bridge.config.strict_yaml import parse_yaml
from bridge.config.types import (
    Different,
    FilePath,
    Label,
    PositiveDuration,
    Section,
    Some,
    Text,
    TrustDomainName,
    ValidationState,
)
from bridge.dataplanes.planes import DataPlane
from bridge.errors import ConfigError
from bridge.hierarchy.schema.certificates import ClusterPKIEntry
from bridge.hierarchy.schema.constraints import ConstraintsEntry
from bridge.hierarchy.schema.key_location import BACKENDS, KeyLocation
from bridge.system.files import read_public

VERSION = 1
"""Of the file; a file of another version is refused."""
BACKDATE = timedelta(minutes=5)
"""notBefore of a CA without `not_before` is so long before it is signed: the clocks of
verifiers differ."""

_LONGEST_TEXT = 4 * 1024 * 1024
_MOST_VALUES = 400_000
_OID = re.compile(r"[012](?:\.(?:0|[1-9][0-9]*))+")
_URL = re.compile(r"http://[A-Za-z0-9.-]+(?::[0-9]{1,5})?/[!-~]*")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SECOND = timedelta(seconds=1)
_LONGEST_NAME = 64


def _moment(value: object) -> object:
    expected = 'expected a time such as "2027-01-31T12:00:00Z", or a day'
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or not isinstance(value, str):
        raise ValueError(expected)
    if _DATE.fullmatch(value):
        return found.replace(tzinfo=UTC)
    if found.tzinfo is None or found.microsecond:
        raise ValueError(f"{expected}, with its time zone and without fractions")
    return found.astimezone(UTC)


def _oid(value: str) -> str:
    if not _OID.fullmatch(value):
        raise ValueError('expected an OID such as "1.3.6.1.4.1.99999.1.2"')
    return value


def _url(value: str) -> str:
    if not _URL.fullmatch(value):
        raise ValueError(
            "expected http://HOST/PATH: what verifies a certificate cannot first "
            "verify the certificate of a server (RFC 5280, 8)"
        )
    return value


def _name(value: str) -> str:
    if not value.isprintable() or value.strip() != value or len(value) > _LONGEST_NAME:
        raise ValueError(
            f"expected 1 to {_LONGEST_NAME} printable characters without a blank at an "
            "end (RFC 5280, appendix A)"
        )
    return value


_Moment = Annotated[datetime, BeforeValidator(_moment)]
_OID_TEXT = Annotated[str, AfterValidator(_oid)]
_URLText = Annotated[str, AfterValidator(_url)]
_NameText = Annotated[Text, AfterValidator(_name)]
_Planes = Annotated[
    tuple[Annotated[DataPlane, Field(strict=False)], ...],
    Field(strict=False),
    Different,
]
_Domains = Annotated[tuple[TrustDomainName, ...], Field(strict=False), Different]
Purpose = Literal["mesh", "kubernetes", "etcd", "front-proxy"]
"""What an issuing CA issues leaves for."""
Usage = Literal["server_auth", "client_auth"]
_CLIENT: frozenset[Usage] = frozenset({"client_auth"})
_BOTH: frozenset[Usage] = frozenset({"server_auth", "client_auth"})


class ValidityEntry(Section):
    """`validity` of a CA: how long it lasts from its signature on, or its dates."""

    years: Annotated[int, Field(ge=1, le=50)] | None = None
    """So long from `not_before`, or from the signature, on: 1 to 50. One of `years`,
    `days` and `not_after` is given."""
    days: Annotated[int, Field(ge=1, le=3660)] | None = None
    """As `years`, in days: 1 to 3660."""
    not_before: _Moment | None = None
    """By default five minutes before the signature, and not before its parent."""
    not_after: _Moment | None = None
    """A time such as `2027-01-31T12:00:00Z`, or a day."""

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        given = [self.years, self.days, self.not_after]
        if given.count(None) != len(given) - 1:
            raise ValueError("expected exactly one of years, days and not_after")
        if self.not_after and self.not_before and self.not_after <= self.not_before:
            raise ValueError("expected not_after above not_before")
        return self

    def window(
        self, now: datetime, parent: datetime | None = None
    ) -> tuple[datetime, datetime]:
        """Return notBefore and notAfter of a certificate that is signed now.

        Without `not_before` it begins five minutes before, and not before its parent.

        Args:
            now: Aware UTC.
            parent: When the CA above begins to be valid, aware UTC; None for a root.
        """
        second = now.replace(microsecond=0)
        if parent is not None:
            second = max(second, parent + BACKDATE)
        start = self.not_before or second - BACKDATE
        if self.not_after is not None:
            return start, self.not_after
        begin = self.not_before or second
        if self.days is not None:
            return start, begin + timedelta(days=self.days) - _SECOND
        return start, _years_later(begin, self.years or 0) - _SECOND


def _years_later(moment: datetime, years: int) -> datetime:
    try:
        return moment.replace(year=moment.year + years)
    except ValueError:  # 29 February
        return moment.replace(year=moment.year + years, day=28)


class CAEntry(Section):
    """`cas.<name>`: one CA of the tree."""

    parent: Label | None = None
    """The CA that signs it. Exactly one CA has none: the root."""
    purpose: Purpose | None = None
    """What its leaves are for. A CA without it signs CAs only."""
    common_name: _NameText
    """CN of its subject, one of its own for each CA."""
    key: KeyLocation
    validity: ValidityEntry
    path_len: Annotated[int, Field(ge=0, le=20)]
    """How many CAs may stand below it in a path."""
    key_usage: Annotated[
        tuple[Literal["cert_sign", "crl_sign", "digital_signature"], ...],
        Field(strict=False),
        Different,
    ] = ("cert_sign", "crl_sign")
    """What its key may sign."""
    ext_key_usage: Annotated[
        tuple[Usage, ...],
        Field(strict=False),
        Different,
    ] = ()
    """Verifiers hold leaves to it; by default none is set, which limits nothing."""
    name_constraints: ConstraintsEntry | None = None
    leaf_lifetime: PositiveDuration = timedelta(hours=24)
    """The longest lifetime of the leaves of a mesh: `issuance.max_ttl` of its bridge.
    For a cluster's own PKI `certificates` says it."""
    policies: Annotated[tuple[_OID_TEXT, ...], Field(strict=False), Different] = ()
    """OIDs of certificate policies. The extension is not critical, as rustls rejects
    it otherwise."""
    crl_url: _URLText | None = None
    """Where the CRL of the CA that signs it is."""
    aia_url: _URLText | None = None
    """Where the certificate of the CA that signs it is."""
    trust_domains: Annotated[_Domains, Some] | None = None
    """Those of the tree that it and what is below it issue for. By default its
    parent's."""
    data_planes: Annotated[_Planes, Some] | None = None
    """Those of the tree that verify leaves below it. By default its parent's."""
    anchor: Label | None = None
    """The CA that those who verify its leaves trust: itself, or one above it. By
    default the root for a mesh, so that meshes under one root reach each other, and
    itself for any other purpose."""


class Officer(Section):
    """One of `officers`: who signs the transcript."""

    name: _NameText
    """As `meshca hierarchy transcript sign` is given it."""
    role: _NameText
    """For the printed record."""
    public_key: FilePath
    """The officer's public key, in PEM."""


class AcceptedWarning(Section):
    """One of `accepted`: a warning that is known, and why it is."""

    rule: Text
    """The rule, as the plan shows it."""
    ca: Label | None = None
    """The CA that the warning is about; none where it is about the whole tree."""
    reason: Text
    """Why it is accepted; the plan shows it."""


class HierarchyFile(Section):
    """The whole file."""

    version: int
    """Of this schema: 1."""
    name: Label
    """Of the hierarchy, for people."""
    organisation: _NameText
    """O of the subject of each CA."""
    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] | None = None
    """C of the subject of each CA: two capital letters."""
    trust_domains: _Domains = ()
    """All trust domains of the meshes below it."""
    data_planes: _Planes = ()
    """All that verify leaves of its meshes."""
    cas: dict[Label, CAEntry]
    certificates: dict[Label, ClusterPKIEntry] = Field(default_factory=dict)
    """The clusters whose own PKI hangs below it."""
    officers: Annotated[tuple[Officer, ...], Field(strict=False)] = ()
    quorum: Annotated[int, Field(ge=0)] = 0
    """How many officers have to sign the transcript."""
    accepted: Annotated[tuple[AcceptedWarning, ...], Field(strict=False)] = ()

    def order(self) -> tuple[str, ...]:
        """Return the names of all CAs, each after its parent, else as in the file."""
        below: dict[str | None, list[str]] = {}
        for name, entry in self.cas.items():
            below.setdefault(entry.parent, []).append(name)
        found: list[str] = []
        stack = below.get(None, [])[::-1]
        while stack:
            name = stack.pop()
            found.append(name)
            stack += below.get(name, [])[::-1]
        return tuple(found)

    def chain(self, name: str) -> tuple[str, ...]:
        """Return a CA, its parent, and so on up to the root."""
        found = [name]
        while (parent := self.cas[found[-1]].parent) is not None:
            found.append(parent)
        return tuple(found)

    def anchor_of(self, name: str) -> str:
        """Return the CA that those who verify the leaves of an issuing CA trust."""
        entry = self.cas[name]
        by_default = self.chain(name)[-1] if entry.purpose == "mesh" else name
        return entry.anchor or by_default

    def usages_of(self, name: str) -> frozenset[Usage]:
        """Return what the leaves below a CA are used for; both where there are none."""
        purposes = {
            entry.purpose
            for one, entry in self.cas.items()
            if entry.purpose and name in self.chain(one)
        }
        return _CLIENT if purposes == {"front-proxy"} else _BOTH

    def subject(self, name: str) -> x509.Name:
        """Return the subject of a CA: country, organisation, common name."""
        parts = [
            (NameOID.COUNTRY_NAME, self.country),
            (NameOID.ORGANIZATION_NAME, self.organisation),
            (NameOID.COMMON_NAME, self.cas[name].common_name),
        ]
        return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts if text])

    def trust_domains_of(self, name: str) -> tuple[str, ...]:
        """Return the trust domains that a CA and those below it issue for."""
        given = (self.cas[one].trust_domains for one in self.chain(name))
        return next((found for found in given if found is not None), self.trust_domains)

    def data_planes_of(self, name: str) -> tuple[DataPlane, ...]:
        """Return the data planes that verify leaves below a CA."""
        given = (self.cas[one].data_planes for one in self.chain(name))
        return next((found for found in given if found is not None), self.data_planes)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A hierarchy file that could be read."""

    file: HierarchyFile
    path: Path
    digest: str
    """SHA-256 of the file's bytes, in hex."""

    @property
    def folder(self) -> Path:
        """The folder of the file: relative paths are relative to it."""
        return self.path.absolute().parent


def load(path: Path) -> Loaded:
    """Read and check a hierarchy file.

    Raises:
        ConfigError: The file is unreadable, is not YAML, is of another version, or has
            errors. The message lists every error, one a line.
    """
    content = read_public(path)
    return parse(content, path)


def parse(content: bytes, path: Path) -> Loaded:
    """Check `content`, the bytes of the file at `path`. Raises as `load` does."""
    try:
        text = content.decode()
        tree = parse_yaml(text, longest=_LONGEST_TEXT, most=_MOST_VALUES)
    except ValueError as error:
        raise _bad(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, Mapping):
        raise _bad(f"{path}: expected a mapping, found {shown(tree)}")
    _require_version(tree, path)
    try:
        file = HierarchyFile.model_validate(tree, context=ValidationState(path))
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        raise _bad(listed(path, problems)) from None
    if broken := [*_broken(file)]:
        raise _bad(listed(path, broken))
    return Loaded(file, path, hashlib.sha256(content).hexdigest())


def _require_version(tree: Mapping[Any, Any], path: Path) -> None:
    # Before all else: the keys of another version are not errors of this one.
    found = tree.get("version")
    if found == VERSION and type(found) is int:
        return
    way_out = f"write `version: {VERSION}`"
    if type(found) is int and found > VERSION:
        way_out = "use the release of meshca that the file was made for, or a later one"
    expected = f"expected {VERSION}, the version that this release reads; {way_out}"
    raise _bad(listed(path, [("version", found, expected)]), "hierarchy.version")


def _problem(item: Any) -> Problem:
    place = item["loc"]
    # Pydantic names the kind of key behind `key`, where the file has nothing.
    at = [
        part
        for index, part in enumerate(place)
        if not (part in BACKENDS and place[index - 1] == "key")
    ]
    return problem_of({**item, "loc": tuple(at)}, known_keys(HierarchyFile, at[:-1]))


def _broken(file: HierarchyFile) -> Iterator[Problem]:
    """Yield what makes it no tree, or names what is not there."""
    roots = [name for name, entry in file.cas.items() if entry.parent is None]
    if len(roots) != 1:
        expected = "expected exactly one CA without parent, the root"
        yield "cas", roots or "none", expected
    for name, entry in file.cas.items():
        if entry.parent is not None and entry.parent not in file.cas:
            expected = f"expected the name of a CA: {', '.join([*file.cas][:8])}"
            yield f"cas.{name}.parent", entry.parent, expected
    known = {None, *file.cas}
    lost = file.cas.keys() - {*file.order()}
    if lost and all(entry.parent in known for entry in file.cas.values()):
        for name in sorted(lost):
            expected = "expected a parent that leads to the root, not to a circle"
            yield f"cas.{name}.parent", file.cas[name].parent, expected
    if not lost:
        yield from _foreign_anchors(file)
    yield from _broken_clusters(file)
    yield from _broken_lists(file)


def _broken_clusters(file: HierarchyFile) -> Iterator[Problem]:
    """Yield where a cluster names no CA of its own for one of its three purposes."""
    taken: dict[str, str] = {}
    for cluster, entry in file.certificates.items():
        for purpose, key, ca in entry.cas():
            path = f"certificates.{cluster}.{key}"
            fit = [name for name, one in file.cas.items() if one.purpose == purpose]
            if ca not in fit:
                known = ", ".join(fit[:8]) or "there is none yet"
                yield path, ca, f"expected a CA of purpose {purpose}: {known}"
            elif ca in taken:
                expected = (
                    "expected a CA of its own: under one in common each administrator "
                    f"of {taken[ca]} is one of {cluster} too"
                )
                yield path, ca, expected
            taken.setdefault(ca, cluster)


def _foreign_anchors(file: HierarchyFile) -> Iterator[Problem]:
    for name, entry in file.cas.items():
        chain = file.chain(name)
        if entry.anchor is not None and entry.anchor not in chain:
            expected = f"expected it or one above it: {', '.join(chain[:8])}"
            yield f"cas.{name}.anchor", entry.anchor, expected


def _broken_lists(file: HierarchyFile) -> Iterator[Problem]:
    if file.quorum > len(file.officers) or (file.officers and not file.quorum):
        most = len(file.officers)
        expected = f"expected 1 to {most}, the number of officers"
        yield "quorum", file.quorum, expected if most else "expected 0 without officers"
    for index, one in enumerate(file.accepted):
        if one.ca is not None and one.ca not in file.cas:
            yield f"accepted[{index}].ca", one.ca, "expected the name of a CA"


def _bad(message: str, rule: str = "hierarchy.schema") -> ConfigError:
    return ConfigError(message, rule=rule)
