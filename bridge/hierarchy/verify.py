"""Tries the names that a CA's chain permits and forbids, by our code and by OpenSSL.

The leaves are issued below a copy of the chain with throwaway keys: a certificate for a
forbidden name is never made with a real key. `compare` holds certificates on disk
against the hierarchy file.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product, zip_longest
from secrets import randbits

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bridge.dataplanes.planes import DataPlane
from bridge.errors import ConfigError, DeniedError
from bridge.hierarchy.certificate import (
    SERIAL_BITS,
    build,
    issuer_of_certificate,
    sign_with_stand_in,
    signed,
)
from bridge.hierarchy.replica import Replica, openssl_verdicts
from bridge.hierarchy.schema import HierarchyFile
from bridge.hierarchy.schema.file import BACKDATE
from bridge.x509.algorithm import issuer_key
from bridge.x509.ca_certificate import (
    BOTH_WAYS,
    Usages,
    anchor_problems,
    validity_problems,
)
from bridge.x509.certificate import key_usage, name_of, value_in
from bridge.x509.leaf_profile import EXTENDED_KEY_USAGE, LeafProfile
from bridge.x509.name_constraints import ChainConstraints
from bridge.x509.path import link_faults, validate_chain, verify_leaf_signature

_DAY = timedelta(days=1)
_OUTSIDE = ("outside.meshca.example", "meshca.invalid", "outside.test")
"""Hosts that no hierarchy is for (RFC 2606)."""
_ADDRESSES = ("192.0.2.1", "2001:db8::1", "10.1.2.3")
_SAMPLE = "check"
_MOST_SAMPLES = 16

Names = tuple[x509.GeneralName, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One leaf that is tried below a chain."""

    what: str
    """For people: what kind of leaf it is."""
    names: Names
    is_allowed: bool
    is_expired: bool = False
    is_ca: bool = False
    """Whether the leaf itself says that it is a CA."""
    cas_between: int = 0
    """How many leaves that say that they are CAs stand between the CA and the leaf."""

    def __str__(self) -> str:
        shown = ", ".join(str(name.value) for name in self.names)
        return f"{self.what} ({shown})"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What came of a trial."""

    trial: Trial
    ours: bool
    openssl: bool | None
    """None where `openssl` is not installed."""

    @property
    def is_right(self) -> bool:
        """Whether every verifier says what the trial expects."""
        return {self.ours, self.openssl} <= {self.trial.is_allowed, None}


def trials_of(
    file: HierarchyFile, name: str, path: Sequence[x509.Certificate]
) -> tuple[Trial, ...]:
    """Return what is to be tried below a CA: what it is for, and what it is not for.

    A form of names that no CA of the path constrains has no forbidden name: the plan
    tells that as an exposure.

    Args:
        file: The hierarchy.
        name: The CA, or the folder of a cross-certificate.
        path: Its certificate, and those above it, the root last.
    """
    constraints = ChainConstraints.of_chain(path)
    allowed = [
        Trial("an allowed name", names, is_allowed=True)
        for names in _allowed(file, name)
    ]
    if not allowed:
        found = (one for one in _candidates(path) if _permits(constraints, (one,)))
        first = next(found, None)
        if first is not None:
            allowed.append(Trial("an allowed name", (first,), is_allowed=True))
    foreign = (*_beside(path), *_of_other_domains(file, name))
    forbidden = [
        Trial("a forbidden name", (one,), is_allowed=False)
        for kind in (
            x509.UniformResourceIdentifier,
            x509.DNSName,
            x509.IPAddress,
            x509.RFC822Name,
        )
        for one in _forbidden(constraints, path, foreign, kind)
    ]
    structural = [*_structural(allowed[0].names, path[0])] if allowed else []
    return (*allowed, *forbidden, *structural)


def _structural(names: Names, ca: x509.Certificate) -> Iterator[Trial]:
    """Yield leaves that have an allowed name and are none nevertheless."""
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    yield Trial("an expired leaf", names, is_allowed=False, is_expired=True)
    # Go does not look: it takes any certificate for a leaf, as RFC 5280 lets it.
    yield Trial("a leaf that is a CA", names, is_allowed=False, is_ca=True)
    if basic.path_length is not None:
        between = basic.path_length + 1
        text = "a leaf that was signed by a leaf that is a CA, one CA too many"
        yield Trial(text, names, is_allowed=False, cas_between=between)


def tried(
    trials: Sequence[Trial],
    replica: Replica,
    now: datetime,
    *,
    with_openssl: bool,
    usages: Usages = BOTH_WAYS,
) -> tuple[TrialResult, ...]:
    """Issue each leaf below a copy of a path, and have it verified.

    Args:
        trials: Of `trials_of`.
        replica: The copy, of `replicate_path`.
        now: The time to verify at, aware, in UTC.
        with_openssl: Whether to ask `openssl verify` too, where it is installed.
        usages: What real leaves below the path are used for.
    """
    leaves = [_leaf(trial, replica, now) for trial in trials]
    answers: list[bool] = []
    if with_openssl:
        cas = (*(one for leaf in leaves for one in leaf.between), *replica.certificates)
        at = ("-x509_strict", "-attime", str(int(now.timestamp())))
        answers = openssl_verdicts(cas, [leaf.certificate for leaf in leaves], *at)
    paths = {leaf.between: (*leaf.between, *replica.certificates) for leaf in leaves}
    sound = {
        between: ChainConstraints.of_chain(path)
        for between, path in paths.items()
        if not chain_problem(path, now, usages)
    }
    return tuple(
        TrialResult(
            trial,
            _ours(leaf, paths[leaf.between][0], sound.get(leaf.between), now),
            answer,
        )
        for trial, leaf, answer in zip_longest(trials, leaves, answers)
    )


def require_right(outcomes: Sequence[TrialResult], *, source: str) -> None:
    """Refuse a chain below which a leaf was not judged as it should be.

    Raises:
        ConfigError: The message has a line for each such leaf.
    """
    lines = [
        f"{source}: {one.trial}: expected it to be "
        f"{_word(accepted=one.trial.is_allowed)}, {_verdicts(one)}"
        "; correct name_constraints, trust_domains or path_len"
        for one in outcomes
        if not one.is_right
    ]
    if lines:
        raise ConfigError("\n".join(lines), rule="hierarchy.proof")


def compare(
    file: HierarchyFile,
    name: str,
    certificate: x509.Certificate,
    issuer: x509.Certificate | None,
) -> Iterator[str]:
    """Yield where the certificate of a CA is not what the hierarchy file says.

    Args:
        file: The hierarchy.
        name: The CA.
        certificate: The one on disk.
        issuer: The certificate of the CA above; None for the root.
    """
    signed_at = certificate.not_valid_before_utc
    if file.cas[name].validity.not_before is None:
        signed_at += BACKDATE
    expected_tbs = build(
        file,
        name,
        issuer_key(certificate),
        None if issuer is None else issuer_of_certificate(issuer),
        now=signed_at,
        serial=certificate.serial_number,
    )
    if expected_tbs == certificate.tbs_certificate_bytes:
        return
    # Signed by nobody: only to be read.
    key = ec.generate_private_key(ec.SECP256R1())
    differences = [*_differences(signed(expected_tbs, key), certificate)]
    yield from differences or ["is encoded in another way than this version does it"]


def _differences(expected: x509.Certificate, found: x509.Certificate) -> Iterator[str]:
    for what in ("subject", "issuer"):
        wanted, given = (getattr(one, what) for one in (expected, found))
        if wanted != given:
            yield (
                f"has the {what} {given.rfc4514_string()}; the file says "
                f"{wanted.rfc4514_string()}"
            )
    for what in ("not_valid_before_utc", "not_valid_after_utc"):
        wanted, given = (getattr(one, what) for one in (expected, found))
        if wanted != given:
            yield (
                f"has the {what.removesuffix('_utc')} {given.isoformat()}; the file "
                f"says {wanted.isoformat()}"
            )
    wanted_by = {one.oid: one for one in expected.extensions}
    found_by = {one.oid: one for one in found.extensions}
    for oid in dict.fromkeys((*wanted_by, *found_by)):
        if wanted_by.get(oid) != found_by.get(oid):
            yield f"differs from the file in the extension {name_of(oid)}"


def _allowed(file: HierarchyFile, name: str) -> Iterator[Names]:
    domains: dict[tuple[str, DataPlane], None] = {}
    for one, entry in file.cas.items():
        if entry.purpose == "mesh" and name in file.chain(one):
            domains |= dict.fromkeys(
                product(file.trust_domains_of(one), file.data_planes_of(one))
            )
    for domain, plane in domains:
        if plane is DataPlane.LINKERD:
            host = f"{_SAMPLE}.{_SAMPLE}.serviceaccount.identity.linkerd.{domain}"
            yield (x509.DNSName(host),)
    for domain in dict.fromkeys(
        domain for domain, plane in domains if plane is not DataPlane.LINKERD
    ):
        identity = f"spiffe://{domain}/ns/{_SAMPLE}/sa/{_SAMPLE}"
        yield (x509.UniformResourceIdentifier(identity),)


def _forbidden(
    constraints: ChainConstraints,
    path: Sequence[x509.Certificate],
    foreign: Iterable[x509.GeneralName],
    kind: type[x509.GeneralName],
) -> Iterator[x509.GeneralName]:
    if kind not in constraints.constrained:
        return
    found = dict.fromkeys(
        one
        for one in (*_outside(kind), *foreign, *_candidates(path, excluded=True))
        if type(one) is kind and not _permits(constraints, (one,))
    )
    yield from [*found][:_MOST_SAMPLES]


def _permits(constraints: ChainConstraints, names: Names) -> bool:
    try:
        constraints.require_permitted(names)
    except DeniedError:
        return False
    return True


def _outside(kind: type[x509.GeneralName]) -> Iterator[x509.GeneralName]:
    for host in _OUTSIDE:
        if kind is x509.UniformResourceIdentifier:
            yield x509.UniformResourceIdentifier(f"spiffe://{host}/ns/a/sa/b")
        elif kind is x509.DNSName:
            yield x509.DNSName(host)
        elif kind is x509.RFC822Name:
            yield x509.RFC822Name(f"somebody@{host}")
    if kind is x509.IPAddress:
        for address in _ADDRESSES:
            yield x509.IPAddress(ipaddress.ip_address(address))


def _of_other_domains(file: HierarchyFile, name: str) -> Iterator[x509.GeneralName]:
    """Yield identities of the tree's trust domains that are not this CA's."""
    own = file.trust_domains_of(name) if name in file.cas else file.trust_domains
    for domain in file.trust_domains:
        if domain not in own:
            yield x509.UniformResourceIdentifier(f"spiffe://{domain}/ns/a/sa/b")
            yield x509.DNSName(domain)


def _beside(path: Sequence[x509.Certificate]) -> Iterator[x509.GeneralName]:
    """Yield names whose hosts only end as the permitted ones do."""
    for name in _candidates(path):
        if isinstance(name, x509.DNSName):
            yield x509.DNSName(f"not{name.value}")
        elif isinstance(name, x509.UniformResourceIdentifier):
            host = name.value.removeprefix("spiffe://")
            yield x509.UniformResourceIdentifier(f"spiffe://not{host}")


def _candidates(
    path: Sequence[x509.Certificate], *, excluded: bool = False
) -> Iterator[x509.GeneralName]:
    """Yield a name inside each subtree of a path; without any, a DNS name."""
    for certificate in path:
        if found := value_in(certificate.extensions, x509.NameConstraints):
            subtrees = found.excluded_subtrees if excluded else found.permitted_subtrees
            for subtree in subtrees or ():
                yield from _inside(subtree)
    yield x509.DNSName(_OUTSIDE[0])


def _inside(subtree: x509.GeneralName) -> Iterator[x509.GeneralName]:
    value = subtree.value
    if isinstance(subtree, x509.IPAddress):
        network = ipaddress.ip_network(str(value))
        yield x509.IPAddress(network.network_address + (network.num_addresses > 1))
        return
    host = f"{_SAMPLE}{value}" if str(value).startswith(".") else str(value)
    if isinstance(subtree, x509.DNSName):
        yield x509.DNSName(host)
    elif isinstance(subtree, x509.UniformResourceIdentifier):
        yield x509.UniformResourceIdentifier(f"spiffe://{host}/ns/a/sa/b")
    elif isinstance(subtree, x509.RFC822Name):
        yield x509.RFC822Name(host if "@" in host else f"somebody@{host}")


@dataclass(frozen=True, slots=True)
class _Leaf:
    certificate: x509.Certificate
    between: tuple[x509.Certificate, ...]
    """CAs that stand between it and the CA that is tried, the lowest first."""


def _leaf(trial: Trial, replica: Replica, now: datetime) -> _Leaf:
    issuer, key = replica.certificates[0], replica.issuing_key
    between: list[x509.Certificate] = []
    start, until = now - 2 * _DAY, now - _DAY if trial.is_expired else now + _DAY
    window = (start.replace(microsecond=0), until.replace(microsecond=0))
    for number in range(trial.cas_between):
        own = ec.generate_private_key(ec.SECP256R1())
        tbs = _ca_leaf(trial.names, own, issuer, window, f"leaf {number}")
        issuer = signed(tbs, key)
        key = own
        between.insert(0, issuer)
    own = ec.generate_private_key(ec.SECP256R1())
    if trial.is_ca:
        tbs = _ca_leaf(trial.names, own, issuer, window)
    else:
        serial = randbits(126) | 1
        tbs = LeafProfile(issuer).tbs(own.public_key(), trial.names, serial, *window)
    return _Leaf(signed(tbs, key), tuple(between))


def _ca_leaf(
    names: Names,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    window: tuple[datetime, datetime],
    common_name: str = "",
) -> bytes:
    # As a leaf is, but for CA:TRUE. One that signs needs a subject.
    subject = (
        [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    )
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    above = issuer_of_certificate(issuer)
    by_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
    usage = key_usage(digital_signature=True, key_cert_sign=True)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(above.subject)
        .subject_name(x509.Name(subject))
        .public_key(key.public_key())
        .serial_number(randbits(SERIAL_BITS) | 1)
        .not_valid_before(window[0])
        .not_valid_after(window[1])
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(EXTENDED_KEY_USAGE, critical=False)
        .add_extension(own, critical=False)
        .add_extension(by_key(above.key_identifier), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=not common_name)
    )
    return sign_with_stand_in(builder, above.public_key)


def _ours(
    leaf: _Leaf,
    issuer: x509.Certificate,
    constraints: ChainConstraints | None,
    now: datetime,
) -> bool:
    # Without constraints the path above the leaf is not valid.
    if constraints is None or not verify_leaf_signature(leaf.certificate, issuer):
        return False
    if [*validity_problems(leaf.certificate, now)]:
        return False
    get = leaf.certificate.extensions.get_extension_for_class
    # X509-SVID, 4.1: what verifies a workload rejects a certificate of a CA.
    if get(x509.BasicConstraints).value.ca:
        return False
    return _permits(constraints, tuple(get(x509.SubjectAlternativeName).value))


def chain_problem(
    path: Sequence[x509.Certificate], now: datetime, usages: Usages = BOTH_WAYS
) -> str:
    """Return what is wrong with a path of CAs; empty if nothing is.

    Args:
        path: A CA first, the root last; a root alone is a path too.
        now: The time to validate at, aware, in UTC.
        usages: What the leaves below it are used for.
    """
    first, *above = path
    if above:
        try:
            validate_chain(
                *(first, above[:-1], above[-1:]),
                now=now,
                source="the chain",
                usages=usages,
            )
        except ConfigError as error:
            return str(error)
        return ""
    problems = [
        *validity_problems(first, now),
        *anchor_problems(first, cas_below=0, usages=usages),
        *link_faults(first, first),
    ]
    return "; ".join(f"the root {text}" for text in problems)


def _verdicts(outcome: TrialResult) -> str:
    told = f"and our code says {_word(accepted=outcome.ours)}"
    if outcome.openssl is None:
        return told
    return f"{told}, openssl verify {_word(accepted=outcome.openssl)}"


def _word(*, accepted: bool) -> str:
    return "accepted" if accepted else "rejected"
