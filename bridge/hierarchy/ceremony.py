"""A ceremony: one certificate of a hierarchy at a time, checked before and after.

`sign` is the real thing and `rehearse` the whole of it with throwaway keys, through the
same code. Before the real key is used, a certificate with the same TBSCertificate and a
throwaway signature has passed every check; after it, the real one passes them again.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from bridge.dataplanes.acceptance import require_accepted
from bridge.dataplanes.planes import DataPlane
from bridge.errors import BackendBrokenError, ConfigError
from bridge.hierarchy.certificate import (
    IssuerName,
    build,
    issuer_of_certificate,
    joined,
    signed,
)
from bridge.hierarchy.issuing_csr import read_issuing_key
from bridge.hierarchy.keys import (
    SIGN_SECONDS,
    Device,
    LocalKey,
    new_key,
    require_planned,
)
from bridge.hierarchy.lint import require_clean
from bridge.hierarchy.output import BY, CERTIFICATE, Output, exists
from bridge.hierarchy.plan import plan_of
from bridge.hierarchy.replica import key_like
from bridge.hierarchy.schema import HierarchyFile, KeyBehindCSR, Loaded
from bridge.hierarchy.transcript import FILE_NAME, HIERARCHY, HSM, Transcript
from bridge.hierarchy.verify import (
    TrialResult,
    chain_problem,
    compare,
    require_right,
    trials_of,
    tried,
)
from bridge.spi import Signer
from bridge.system.clock import Clock, system_clock
from bridge.x509.algorithm import (
    CAPublicKey,
    algorithm_of,
    issuer_key,
    require_signature,
)
from bridge.x509.name_constraints import subset_problems

CLOCK_SLACK = timedelta(minutes=5)
"""How far the machine's clock may be from the time that a person reads elsewhere."""

Keys = Callable[[str], AbstractContextManager[Signer]]
"""Opens the key of a CA, by its name in the hierarchy file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceremony:
    """What every step of a ceremony has in common."""

    loaded: Loaded
    output: Output
    keys: Keys
    operator: str
    clock: Clock = system_clock

    @property
    def file(self) -> HierarchyFile:
        """The hierarchy."""
        return self.loaded.file

    @property
    def transcript(self) -> Transcript:
        """Where each step is recorded."""
        return Transcript(self.output.folder / FILE_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCA:
    """What came of a signature."""

    name: str
    certificate: x509.Certificate
    files: Mapping[str, str]
    """SHA-256 of each file that was written, by its path below the output folder."""
    was_resumed: bool = False
    """An earlier run had signed it, and was cut off before it was recorded."""


def require_clock(now: datetime, told: datetime) -> None:
    """Refuse a clock that is not what a person reads from another one.

    Args:
        now: The machine's time.
        told: What the person reads.

    Raises:
        ConfigError: They differ by more than five minutes.
    """
    if abs(now - told) > CLOCK_SLACK:
        raise ConfigError(
            f"the clock of this machine says {now:%Y-%m-%dT%H:%M:%SZ}, and the time "
            f"told is {told:%Y-%m-%dT%H:%M:%SZ}: expected them within "
            f"{CLOCK_SLACK.seconds // 60} minutes; set the clock of this machine, or "
            "correct --time",
            rule="hierarchy.clock",
        )


def sign(ceremony: Ceremony, name: str, *, csr: Path | None = None) -> SignedCA:
    """Sign the certificate of one CA of the hierarchy, and record it.

    A run that was cut off is completed by the next one. Nothing is overwritten.

    Args:
        ceremony: The ceremony.
        name: The CA.
        csr: A CSR that proves the possession of the CA's key, where the key is on
            another machine. By default the one of the hierarchy file, if it names one.

    Raises:
        ConfigError: A check fails, or the CA has a certificate already. No certificate
            was written.
        BackendError: A key's device does not answer or refuses its secret. No
            certificate was written.
    """
    _require_name(ceremony.file, name)
    plan_of(ceremony.loaded, now=ceremony.clock()).require_passes()
    return _sign(ceremony, name, csr)


def rehearse(
    loaded: Loaded,
    *,
    clock: Clock = system_clock,
    operator: str = "rehearsal",
    done: Callable[[SignedCA], None] = lambda _: None,
) -> tuple[SignedCA, ...]:
    """Sign the whole hierarchy with throwaway keys, and discard all of it.

    Args:
        loaded: The hierarchy file.
        clock: The time.
        operator: Who rehearses, for the transcript, which is discarded too.
        done: Told each CA that is signed.

    Raises:
        ConfigError: A check fails.
    """
    throwaway = {
        name: LocalKey(new_key(entry.key.algorithm))
        for name, entry in loaded.file.cas.items()
    }

    @contextmanager
    def keys(name: str) -> Iterator[Signer]:
        yield throwaway[name]

    plan_of(loaded, now=clock()).require_passes()
    found: list[SignedCA] = []
    with tempfile.TemporaryDirectory(prefix="meshca-rehearsal-") as folder:
        ceremony = Ceremony(
            loaded=loaded,
            output=Output(Path(folder) / "out"),
            keys=keys,
            operator=operator,
            clock=clock,
        )
        for name in loaded.file.order():
            found.append(_sign(ceremony, name, None, key=throwaway[name].public_key()))
            done(found[-1])
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningStep:
    """One certificate that is to be made."""

    file: HierarchyFile
    name: str
    """The CA."""
    public_key: CAPublicKey
    above: Sequence[x509.Certificate] = ()
    """The CAs above it, the root last; none for the root."""
    now: datetime
    """The time, aware, in UTC."""
    with_others: bool = True
    """Whether pkilint and `openssl verify` are asked too."""

    @property
    def issuer(self) -> IssuerName | None:
        """What the certificate says of its issuer; None for the root."""
        return issuer_of_certificate(self.above[0]) if self.above else None


def issue(
    step: SigningStep, signer: Signer, before: Callable[[bytes], None] = lambda _: None
) -> x509.Certificate:
    """Make the certificate of a CA, with all checks before and after its signature.

    Args:
        step: What is to be signed.
        signer: The key of the CA above; of the root, its own.
        before: Told the TBSCertificate before the key signs it.

    Raises:
        ConfigError: A check fails.
        BackendError: The key does not sign, or signed something else.
    """
    name, issuer = step.name, step.issuer
    key = issuer.public_key if issuer else step.public_key
    if signer.public_key() != key:
        subject = (issuer.subject if issuer else step.file.subject(name)).rfc4514_string
        raise _bad(
            f"{name}: the key that is to sign is not that of the certificate "
            f"({subject()}): give this certificate's key, or the folder of the "
            "certificate of this key as --out"
        )
    tbs = build(step.file, name, step.public_key, issuer, now=step.now)
    _check(step, signed(tbs, key_like(key)))
    before(tbs)
    algorithm = algorithm_of(key)
    signature = signer.sign(tbs, algorithm, timeout=SIGN_SECONDS)
    try:
        require_signature(key, algorithm, signature, tbs)
    except InvalidSignature:
        raise BackendBrokenError(
            f"{name}: the signature is not one of the key that was to sign",
            rule="hierarchy.signature",
        ) from None
    certificate = joined(tbs, key, signature)
    if certificate.tbs_certificate_bytes != tbs:
        raise BackendBrokenError(
            f"{name}: what was signed is not what was linted", rule="hierarchy.tbs"
        )
    _check(step, certificate)
    path = [certificate, *step.above]
    if problem := chain_problem(path, _moment(certificate, step.now)):
        raise _bad(f"{name}: {problem}")
    return certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was found of one CA."""

    name: str
    problems: tuple[str, ...] = ()
    summary: str = ""
    """What was proven, for people."""


def verified(
    file: HierarchyFile, output: Output, now: datetime, only: Sequence[str] = ()
) -> Iterator[Verified]:
    """Hold the certificates of a folder against the hierarchy file.

    Args:
        file: The hierarchy.
        output: The folder.
        now: The time to verify at, aware, in UTC.
        only: Names of CAs, if not all are wanted; those above them are verified too.

    Raises:
        ConfigError: No CA of the file has a certificate there, or a name is none of a
            CA of the file.
    """
    for one in only:
        _require_name(file, one)
    wanted = {above for one in only for above in file.chain(one)}
    names = [one for one in file.order() if not only or one in wanted]
    here = {*output.names()}
    if not here & {*names}:
        raise _bad(
            f"{output.folder}: expected the certificate of a CA of the file, such as "
            f"{names[0]}/{CERTIFICATE} (found none)"
        )
    for name in names:
        if name not in here:
            yield Verified(name=name, summary="not signed yet")
            continue
        try:
            yield _verified(file, output, name, now)
        except ConfigError as error:
            yield Verified(name=name, problems=tuple(str(error).splitlines()))


def _verified(
    file: HierarchyFile, output: Output, name: str, now: datetime
) -> Verified:
    path = [output.certificate(one) for one in file.chain(name)]
    issuer = path[1] if len(path) > 1 else None
    problems = [
        f"{name}: the certificate {text}"
        for text in compare(file, name, path[0], issuer)
    ]
    if problem := chain_problem(path, now):
        problems.append(f"{name}: {problem}")
    if problems:
        return Verified(name=name, problems=tuple(problems))
    key = issuer_key(path[0])
    step = SigningStep(file=file, name=name, public_key=key, above=path[1:], now=now)
    outcomes = _check(step, path[0])
    allowed = sum(one.trial.is_allowed for one in outcomes)
    others = (
        " and openssl verify" if any(o.openssl is not None for o in outcomes) else ""
    )
    return Verified(
        name=name,
        summary=f"as the file says; {allowed} allowed and {len(outcomes) - allowed} "
        f"forbidden leaves judged rightly by this program{others}",
    )


def _require_name(file: HierarchyFile, name: str) -> None:
    if name not in file.cas:
        known = ", ".join(file.order())
        raise _bad(f"{name}: expected the name of a CA of the file: {known}")


def _sign(
    ceremony: Ceremony, name: str, csr: Path | None, *, key: CAPublicKey | None = None
) -> SignedCA:
    file, output, now = ceremony.file, ceremony.output, ceremony.clock()
    if output.has(name):
        return _resumed(ceremony, name, now)
    above = _above(ceremony, name, now)
    parent, location = file.cas[name].parent, file.cas[name].key
    if key is None and csr is None and isinstance(location, KeyBehindCSR):
        csr = location.path
    if key is None and csr is not None:
        key = require_planned(name, read_issuing_key(csr), location)
    elif key is None and parent is not None:
        with ceremony.keys(name) as own:
            own.check(timeout=SIGN_SECONDS)
            key = require_planned(name, own.public_key(), location)
    with ceremony.keys(parent or name) as signer:
        public_key = key or require_planned(name, signer.public_key(), location)
        _require_new_key(output, name, public_key)
        step = SigningStep(
            file=file, name=name, public_key=public_key, above=above, now=now
        )
        certificate = issue(
            step, signer, lambda tbs: _record_intent(ceremony, name, tbs, now)
        )
        device = _device_of(signer)
    read = {} if csr is None else {csr.name: _digest(csr)}
    chain = [certificate, *above][: len(above) or 1]
    files = output.write(name, certificate, chain)
    _record(ceremony, f"sign {name}", {**read, **files}, now, device)
    return SignedCA(name=name, certificate=certificate, files=files)


def _above(
    ceremony: Ceremony, name: str, now: datetime
) -> tuple[x509.Certificate, ...]:
    """Return the CAs above one, which are valid now and as the file says."""
    names = ceremony.file.chain(name)[1:]
    above = [ceremony.output.certificate(one) for one in names]
    for index, one in enumerate(names):
        issuer = above[index + 1] if index + 1 < len(above) else None
        for text in compare(ceremony.file, one, above[index], issuer):
            raise _bad(
                f"{ceremony.output.folder / one}: the certificate {text}; sign with "
                "the file that it was made by, or sign this CA again in another folder"
            )
    if above and (problem := chain_problem(above, now)):
        raise _bad(
            f"{name}: the chain above it cannot sign now: {problem}; sign the CA "
            "above again first"
        )
    return tuple(above)


def _check(step: SigningStep, certificate: x509.Certificate) -> tuple[TrialResult, ...]:
    """Lint a certificate, hold it to the CAs above, and try leaves below it."""
    file, name = step.file, step.name
    path = [certificate, *step.above]
    require_clean(certificate, step.issuer, source=name, with_pkilint=step.with_others)
    if step.above and (problems := [*_beyond(certificate, step.above[0])]):
        raise _bad("\n".join(f"{name}: {text}" for text in problems))
    if file.cas[name].purpose == "mesh":
        planes = file.data_planes_of(name)
        to_anchor = file.chain(name).index(file.anchor_of(name)) + 1
        served = {plane: plane is not DataPlane.LINKERD for plane in planes}
        require_accepted(path[:to_anchor], served, source=name)
    outcomes = tried(
        *(trials_of(file, name, path), path, _moment(certificate, step.now)),
        with_openssl=step.with_others,
    )
    require_right(outcomes, source=name)
    return outcomes


def _beyond(child: x509.Certificate, parent: x509.Certificate) -> Iterator[str]:
    """Yield where a CA would be more than the CA above it allows."""
    if child.not_valid_after_utc > parent.not_valid_after_utc:
        yield (
            f"is valid to {child.not_valid_after_utc.isoformat()}, and the CA above to "
            f"{parent.not_valid_after_utc.isoformat()}: shorten its validity"
        )
    if child.not_valid_before_utc < parent.not_valid_before_utc:
        yield (
            f"is valid from {child.not_valid_before_utc.isoformat()}, and the CA above "
            f"from {parent.not_valid_before_utc.isoformat()}: set validity.not_before"
        )
    lengths = [
        one.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        for one in (child, parent)
    ]
    if lengths[1] is not None and (lengths[0] is None or lengths[0] >= lengths[1]):
        yield (
            f"has the path length {lengths[0]}, and the CA above {lengths[1]}: "
            "expected a smaller one"
        )
    yield from subset_problems(child, parent)


def _moment(certificate: x509.Certificate, now: datetime) -> datetime:
    # A certificate may be made before it begins to be valid.
    return max(now, certificate.not_valid_before_utc)


def _require_new_key(output: Output, name: str, key: CAPublicKey) -> None:
    for other in output.names():
        is_own = other.partition(BY)[0] == name
        if not is_own and output.certificate(other).public_key() == key:
            raise _bad(
                f"{name}: its key is that of {other}: expected a key of its own for "
                "each CA; make one"
            )


def _resumed(ceremony: Ceremony, name: str, now: datetime) -> SignedCA:
    """Record what an earlier run has signed, if it was cut off before it did."""
    output = ceremony.output
    if name in output.recorded():
        raise exists(output.folder / name)
    certificate = output.certificate(name)
    above = _above(ceremony, name, now)
    problems = [*compare(ceremony.file, name, certificate, next(iter(above), None))]
    problem = chain_problem([certificate, *above], _moment(certificate, now))
    if problems or problem:
        raise exists(output.folder / name)
    files = output.digests(name)
    _record(ceremony, f"sign {name}, resumed", files, now, None)
    return SignedCA(name=name, certificate=certificate, files=files, was_resumed=True)


def _record_intent(ceremony: Ceremony, name: str, tbs: bytes, now: datetime) -> None:
    # Before the key is used: a signature whose answer is lost leaves a trace.
    ceremony.output.make()
    ceremony.transcript.append(
        f"sign {name}, before the signature",
        *(ceremony.operator, now),
        details={**_details(ceremony), "tbs_sha256": hashlib.sha256(tbs).hexdigest()},
    )


def _record(
    ceremony: Ceremony,
    command: str,
    files: Mapping[str, str],
    now: datetime,
    device: HSM | None,
) -> None:
    ceremony.transcript.append(
        *(command, ceremony.operator, now),
        files=files,
        details=_details(ceremony),
        hsm=device,
    )
    # Last: a CA that stands in the manifest is finished.
    ceremony.output.write_manifest()


def _details(ceremony: Ceremony) -> dict[str, str]:
    return {HIERARCHY: ceremony.loaded.digest}


def _device_of(signer: Signer) -> HSM | None:
    return HSM(**signer.device()) if isinstance(signer, Device) else None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.sign")
