"""A ceremony: one certificate of a hierarchy at a time, checked before and after.

`sign` is the real thing and `rehearse` the whole of it with throwaway keys, through the
same code. Before the real key is used, a certificate with the same TBSCertificate and a
throwaway signature has passed every check; after it, the real one passes them again.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from bridge.dns_names import is_label
from bridge.errors import ConfigError
from bridge.hierarchy.certificate import usages_below
from bridge.hierarchy.issuing_csr import issuing_key_of, require_key_of_file
from bridge.hierarchy.keys import (
    SIGN_SECONDS,
    LocalKey,
    device_of,
    require_planned,
)
from bridge.hierarchy.output import (
    BY,
    CERTIFICATE,
    Output,
    crl_folder,
    exists,
    files_of,
)
from bridge.hierarchy.plan import plan_of
from bridge.hierarchy.schema import HierarchyFile, KeyBehindCSR, Loaded
from bridge.hierarchy.signing import SigningStep, check, issue, moment
from bridge.hierarchy.transcript import (
    FILE_NAME,
    HIERARCHY,
    HSM,
    TBS,
    Record,
    Transcript,
    read,
)
from bridge.hierarchy.verify import chain_problem, compare
from bridge.spi import Signer
from bridge.system.clock import Clock, system_clock
from bridge.system.files import read_public
from bridge.x509.algorithm import CAPublicKey, issuer_key, new_key, signature_problem
from bridge.x509.certificate import subject_of
from bridge.x509.pem import parse_certificates

CLOCK_SLACK = timedelta(minutes=5)
"""How far the machine's clock may be from the time that a person reads elsewhere."""

_INTENT = ", before the signature"

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

    @property
    def record(self) -> Record | None:
        """The transcript as it stands; None before its first line."""
        return _record_of(self.output)

    @property
    def recorded(self) -> Mapping[str, str]:
        """SHA-256 of each file that the transcript knows, by its path."""
        record = self.record
        return record.files if record else {}

    def intended(self, command: str) -> frozenset[str]:
        """Return the digest of each TBSCertificate that a command was to sign."""
        record = self.record
        return frozenset(
            one.details[TBS]
            for one in (record.entries if record else ())
            if one.command == f"{command}{_INTENT}" and TBS in one.details
        )

    def begin(self, command: str, tbs: bytes, details: Mapping[str, str] = {}) -> None:
        """Record what a key is about to sign.

        A signature whose answer is lost leaves this trace.
        """
        digest = hashlib.sha256(tbs).hexdigest()
        self.transcript.append(
            *(f"{command}{_INTENT}", self.operator, self.clock()),
            details={HIERARCHY: self.loaded.digest, **details, TBS: digest},
        )

    def finish(
        self,
        command: str,
        files: Mapping[str, str],
        device: HSM | None = None,
        details: Mapping[str, str] = {},
    ) -> None:
        """Record what was signed, and write the manifest.

        Args:
            command: What was run.
            files: SHA-256 of what was read and written, by path.
            device: What signed it, if it was a device.
            details: See `CeremonyStep.details`.
        """
        self.transcript.append(
            *(command, self.operator, self.clock()),
            files=files,
            details={HIERARCHY: self.loaded.digest, **details},
            hsm=device,
        )
        # Last: a CA that stands in the manifest is finished.
        self.output.write_manifest()


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
    with ceremony.output.exclusively():
        return _sign(ceremony, name, csr)


def rehearse(
    loaded: Loaded,
    *,
    clock: Clock = system_clock,
    done: Callable[[SignedCA], None] = lambda _: None,
    then: Callable[[Ceremony], object] = lambda _: None,
) -> tuple[SignedCA, ...]:
    """Sign the whole hierarchy with throwaway keys, and discard all of it.

    Args:
        loaded: The hierarchy file.
        clock: The time.
        done: Told each CA that is signed.
        then: Does what follows in the ceremony, before all is discarded.

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
            operator="rehearsal",
            clock=clock,
        )
        ceremony.output.make()
        for name in loaded.file.order():
            # What begins later is rehearsed as on its day.
            starts = (loaded.file.cas[one].validity for one in loaded.file.chain(name))
            at = max(clock(), *(one.not_before or clock() for one in starts))
            key = throwaway[name].public_key()
            found.append(_sign(ceremony, name, key=key, at=at))
            done(found[-1])
        then(ceremony)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was found of one CA."""

    name: str
    problems: tuple[str, ...] = ()
    revoked: str = ""
    """Why nothing is to be issued under it, if a CRL in the folder revokes it or a CA
    above it, or if such a list is not there."""
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
    for one in sorted(here):
        issuer = one.partition(BY)[2]
        if issuer in file.cas and not only:
            names.append(one)
    if not here & {*names}:
        raise _bad(
            f"{output.folder}: expected the certificate of a CA of the file, such as "
            f"{names[0]}/{CERTIFICATE} (found none)"
        )
    record = _record_of(output)
    for name in names:
        if name not in here:
            yield Verified(name=name, summary="not signed yet")
            continue
        try:
            found = _verified(file, output, name, now)
            revoked = _revoked(output, record, _chain_of(file, name))
            yield replace(found, revoked=revoked and f"{name}: {revoked}")
        except ConfigError as error:
            yield Verified(name=name, problems=tuple(str(error).splitlines()))


def _verified(
    file: HierarchyFile, output: Output, name: str, now: datetime
) -> Verified:
    path = [output.certificate(one) for one in _chain_of(file, name)]
    issuer = path[1] if len(path) > 1 else None
    problems = []
    if name in file.cas:
        problems += [
            f"{name}: the certificate {text}"
            for text in compare(file, name, path[0], issuer)
        ]
    if problem := chain_problem(path, now, usages_below(file, name)):
        problems.append(f"{name}: {problem}")
    if problems:
        return Verified(name=name, problems=tuple(problems))
    key = issuer_key(path[0])
    if name in file.cas:
        require_planned(name, key, file.cas[name].key)
    step = SigningStep(file=file, name=name, public_key=key, above=path[1:], now=now)
    outcomes = check(step, path[0])
    allowed = sum(one.trial.is_allowed for one in outcomes)
    others = (
        " and openssl verify" if any(o.openssl is not None for o in outcomes) else ""
    )
    as_planned = "as the file says" if name in file.cas else "a cross-certificate"
    return Verified(
        name=name,
        summary=f"{as_planned}; {allowed} allowed and {len(outcomes) - allowed} "
        f"forbidden leaves judged rightly by this program{others}",
    )


def _revoked(output: Output, record: Record | None, chain: Sequence[str]) -> str:
    """Return which CA of a chain is revoked, or may be, and the way out; or nothing.

    Raises:
        ConfigError: A CRL or a certificate of the folder cannot be read.
    """
    for one, issuer in pairwise(chain):
        made = record.crl_numbers(issuer) if record else ()
        newest = max(made, default=0)
        if newest > max(output.crls(issuer), default=0):
            return (
                f"the transcript has the CRL number {newest} of {issuer}, which may "
                f"revoke {one} and is not in {output.folder}: put it back"
            )
        if crl := output.revoking(issuer, output.certificate(one).serial_number):
            return (
                f"{one} is revoked by {crl}: nothing is issued under it; sign a CA "
                "with a new name and a new key in its place"
            )
    return ""


def _record_of(output: Output) -> Record | None:
    path = output.folder / FILE_NAME
    return read(path) if path.exists() else None


def _chain_of(file: HierarchyFile, name: str) -> tuple[str, ...]:
    # Of a CA, or of the folder of a cross-certificate.
    _, is_cross, issuer = name.partition(BY)
    return (name, *file.chain(issuer)) if is_cross else file.chain(name)


def _require_name(file: HierarchyFile, name: str) -> None:
    if name not in file.cas:
        known = ", ".join(file.order())
        raise _bad(f"{name}: expected the name of a CA of the file: {known}")


def _sign(
    ceremony: Ceremony,
    name: str,
    csr: Path | None = None,
    *,
    key: CAPublicKey | None = None,
    at: datetime | None = None,
) -> SignedCA:
    file, output, now = ceremony.file, ceremony.output, at or ceremony.clock()
    command, parent = f"sign {name}", file.cas[name].parent
    _require_unfinished(output, name)
    above = _above(ceremony, file.chain(name)[1:], name, now)
    location, given = file.cas[name].key, dict[str, str]()
    if key is None and csr is None and isinstance(location, KeyBehindCSR):
        csr = location.path
    if key is None and csr is not None:
        content = read_public(csr)
        given[csr.name] = hashlib.sha256(content).hexdigest()
        key = require_planned(name, issuing_key_of(content, csr), location)
        if isinstance(location, KeyBehindCSR):
            require_key_of_file(name, key, csr, location.path)
    if output.has(name):
        done = output.certificate(name)
        problems = compare(file, name, done, next(iter(above), None))
        is_other = any(problems) or (key is not None and done.public_key() != key)
        return _resumed(ceremony, command, name, [done, *above], is_other=is_other)
    if key is None and parent is not None:
        with ceremony.keys(name) as own:
            own.check(timeout=SIGN_SECONDS)
            key = require_planned(name, own.public_key(), location)
    with ceremony.keys(parent or name) as signer:
        public_key = key or require_planned(name, signer.public_key(), location)
        step = SigningStep(
            file=file, name=name, public_key=public_key, above=above, now=now
        )
        return _made(ceremony, command, step, signer, given)


def cross_sign(ceremony: Ceremony, name: str, path: Path, *, by: str) -> SignedCA:
    """Sign the root of another hierarchy, so that it is trusted below a CA of this one.

    Subject, key identifier, usages and path length are the root's own. A run that was
    cut off is completed by the next one. Nothing is overwritten.

    Args:
        ceremony: The ceremony.
        name: What the root is called; its folder is `NAME.by.BY`.
        path: The certificate of the root, which its own signature proves.
        by: The CA of the hierarchy that signs.

    Raises:
        ConfigError: See `sign`; or the file holds no root of the organisation, or one
            that cannot stand below the CA. No certificate was written.
        BackendError: See `sign`.
    """
    file, output, now = ceremony.file, ceremony.output, ceremony.clock()
    plan_of(ceremony.loaded, now=now).require_passes()
    _require_cross(file, name, by)
    folder = f"{name}{BY}{by}"
    command = f"cross-sign {folder}"
    with output.exclusively():
        _require_unfinished(output, folder)
        content = read_public(path)
        target = _root_of(content, path, file, now)
        above = _above(ceremony, file.chain(by), folder, now)
        if subject_of(target) in {*map(subject_of, above)}:
            raise _bad(
                f"{path}: has the subject of a CA of this chain: expected the root of "
                "another hierarchy, with another common_name"
            )
        if output.has(folder):
            done = output.certificate(folder)
            is_other = done.public_key() != target.public_key()
            chain = [done, *above]
            return _resumed(ceremony, command, folder, chain, is_other=is_other)
        step = SigningStep(
            file=file,
            name=folder,
            public_key=issuer_key(target),
            above=above,
            now=now,
            target=target,
        )
        given = {path.name: hashlib.sha256(content).hexdigest()}
        with ceremony.keys(by) as signer:
            return _made(ceremony, command, step, signer, given)


def _require_cross(file: HierarchyFile, name: str, by: str) -> None:
    _require_name(file, by)
    if not is_label(name) or name in file.cas:
        raise _bad(
            f"{name}: expected a name of the characters a-z 0-9 - that no CA of the "
            "file has, such as new-root"
        )
    if file.cas[by].purpose is not None:
        raise _bad(f"{by}: issues leaves: expected a CA that signs CAs, such as a root")


def _root_of(
    content: bytes, path: Path, file: HierarchyFile, now: datetime
) -> x509.Certificate:
    found = parse_certificates(content, str(path))
    if len(found) != 1:
        raise _bad(f"{path}: expected one certificate (found {len(found)})")
    root = found[0]
    if problem := chain_problem(found, now) or signature_problem(root):
        raise _bad(
            f"{path}: expected a root that signed itself, as proof that its owner has "
            f"the key: {problem}"
        )
    organisation = [
        str(one.value)
        for one in root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    ]
    if organisation != [file.organisation]:
        raise _bad(
            f"{path}: expected a root of the organisation {file.organisation!r}, as "
            f"this hierarchy's is (found {', '.join(organisation) or 'none'}): who "
            "trusts this root would trust all that the other one signs"
        )
    return root


def _made(
    ceremony: Ceremony,
    command: str,
    step: SigningStep,
    signer: Signer,
    given: Mapping[str, str],
) -> SignedCA:
    output, name, above = ceremony.output, step.name, step.above
    _require_new_key(output, name, step.public_key)
    certificate = issue(step, signer, partial(ceremony.begin, command))
    files = output.write_files(name, files_of([certificate, *above]))
    ceremony.finish(command, {**given, **files}, device_of(signer))
    return SignedCA(name=name, certificate=certificate, files=files)


def _above(
    ceremony: Ceremony, names: Sequence[str], for_name: str, now: datetime
) -> tuple[x509.Certificate, ...]:
    """Return the CAs above one, which are valid now, and as file and record say."""
    output = ceremony.output
    above = [output.certificate(one) for one in names]
    for index, one in enumerate(names):
        _require_as_recorded(ceremony, one)
        issuer = above[index + 1] if index + 1 < len(above) else None
        for number in output.crls(one):
            _require_as_recorded(ceremony, crl_folder(one, number))
        for text in compare(ceremony.file, one, above[index], issuer):
            raise _bad(
                f"{output.folder / one}: the certificate {text}; sign with "
                "the file that it was made by, or sign this CA again in another folder"
            )
    if revoked := _revoked(output, ceremony.record, names):
        raise _bad(f"{for_name}: {revoked}")
    if above and (
        problem := chain_problem(above, now, usages_below(ceremony.file, names[0]))
    ):
        raise _bad(
            f"{for_name}: the chain above it cannot sign now: {problem}; sign the CA "
            "above again first, or set the clock"
        )
    return tuple(above)


def _require_as_recorded(ceremony: Ceremony, name: str) -> None:
    recorded = ceremony.recorded
    for path, digest in ceremony.output.digests(name).items():
        if recorded.get(path, digest) != digest:
            raise _bad(
                f"{ceremony.output.folder / path}: was changed since it was signed: "
                f"its SHA-256 is {digest}, and the transcript has {recorded[path]}; "
                "restore it from another copy"
            )


def _require_new_key(output: Output, name: str, key: CAPublicKey) -> None:
    for other in output.names():
        # A root may be cross-signed by two CAs.
        is_own = other.partition(BY)[0] == name.partition(BY)[0]
        if not is_own and output.certificate(other).public_key() == key:
            raise _bad(
                f"{name}: its key is that of {other}: expected a key of its own for "
                "each CA; make one"
            )


def _require_unfinished(output: Output, name: str) -> None:
    if output.has(name) and name in output.recorded():
        raise exists(output.folder / name)


def _resumed(
    ceremony: Ceremony,
    command: str,
    name: str,
    path: Sequence[x509.Certificate],
    *,
    is_other: bool,
) -> SignedCA:
    """Record what an earlier run has signed, if it was cut off before it did.

    Nothing else is taken for it: the transcript has to have the TBSCertificate that the
    run was about to sign, and each file has to be as that run wrote it.
    """
    output, certificate = ceremony.output, path[0]
    usages = usages_below(ceremony.file, name)
    problem = chain_problem(path, moment(certificate, ceremony.clock()), usages)
    tbs = hashlib.sha256(certificate.tbs_certificate_bytes).hexdigest()
    is_intended = tbs in ceremony.intended(command)
    is_whole = output.holds(name, files_of(path))
    if is_other or problem or not is_intended or not is_whole:
        raise exists(output.folder / name)
    _require_new_key(output, name, issuer_key(certificate))
    files = output.digests(name)
    ceremony.finish(f"{command}, resumed", files)
    return SignedCA(name=name, certificate=certificate, files=files, was_resumed=True)


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.sign")
