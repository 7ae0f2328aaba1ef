"""A certificate revocation list of one CA of a hierarchy, made by its key.

What a list has revoked, each later one revokes, and its number only grows. Both are
taken from the folder, from the transcript, and from a list that a person gives. So a
list that was moved away is missed, and not forgotten.

The plan does not have to pass, and the CA need not be as the file says: a revocation
does not wait for either.

Source:
    RFC 5280, 5; Boulder, cmd/ceremony/crl.go.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import BackendBrokenError, ConfigError
from bridge.hierarchy.ceremony import Ceremony
from bridge.hierarchy.certificate import issuer_of_certificate
from bridge.hierarchy.keys import device_of
from bridge.hierarchy.lint import crl_findings, require_clean
from bridge.hierarchy.output import Output, crl_folder
from bridge.hierarchy.replica import key_like
from bridge.hierarchy.schema.file import BACKDATE
from bridge.hierarchy.signing import verified_signature
from bridge.hierarchy.transcript import (
    CA,
    CRL_NUMBER,
    TBS,
    digest_of_file,
)
from bridge.hierarchy.transcript import read as read_transcript
from bridge.spi import Signer
from bridge.system.files import read_public
from bridge.x509.algorithm import (
    algorithm_of,
    issuer_key,
    signature_of,
)
from bridge.x509.certificate import issuer_of, name_text, subject_of, value_in
from bridge.x509.crl.building import PlannedCRL, RevokedCertificate, merged
from bridge.x509.crl.revocation_list import RevocationList, parse_lists
from bridge.x509.path import signature_fault
from bridge.x509.pem import parse_certificates

LONGEST_DAYS = 365
"""From this update to the next one, at most."""
REASONS: Mapping[str, x509.ReasonFlags] = {
    one.value: one
    for one in (
        x509.ReasonFlags.key_compromise,
        x509.ReasonFlags.ca_compromise,
        x509.ReasonFlags.affiliation_changed,
        x509.ReasonFlags.superseded,
        x509.ReasonFlags.cessation_of_operation,
        x509.ReasonFlags.privilege_withdrawn,
    )
}
"""Reasons for the revocation of a CA, by their names in RFC 5280, 5.3.1. A hold is none
of them: what is revoked stays so."""

_MOST_NUMBER_BITS = 159


@dataclass(frozen=True, slots=True, kw_only=True)
class CRLRequest:
    """What the next list of a CA revokes besides what the last one did."""

    names: Sequence[str] = ()
    """CAs of the hierarchy, whose certificates are in the folder."""
    certificates: Sequence[Path] = ()
    """Files of one certificate each."""
    serials: Sequence[int] = ()
    takes_unknown: bool = False
    """Whether a serial number may be one of no certificate in the folder."""
    reason: x509.ReasonFlags | None = None
    days: int | None = None
    """To the next update. By default as long as allowed."""
    previous: Path | None = None
    """The last list, where the folder does not have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCRL:
    """What came of it."""

    name: str
    number: int
    crl: x509.CertificateRevocationList
    files: Mapping[str, str]
    """SHA-256 of each file that was written, by its path below the output folder."""
    was_resumed: bool = False
    """An earlier run had signed it, and was cut off before it was recorded."""


def make_crl(ceremony: Ceremony, name: str, request: CRLRequest) -> SignedCRL:
    """Make the next list of a CA, and record it. A run that was cut off is completed.

    Args:
        ceremony: The ceremony.
        name: The CA.
        request: What is revoked.

    Raises:
        ConfigError: A check fails. Nothing was written.
        BackendError: The key's device does not answer or refuses its secret. Nothing
            was written.
    """
    if name not in ceremony.file.cas:
        known = ", ".join(ceremony.file.order())
        raise _bad(f"{name}: expected the name of a CA of the file: {known}")
    issuer = ceremony.output.certificate(name)
    _require_may_sign(name, issuer, ceremony.clock())
    # From the number on: of two runs at once, one would sign the other's again.
    with ceremony.output.exclusively():
        return _make(ceremony, name, issuer, request)


def _make(
    ceremony: Ceremony, name: str, issuer: x509.Certificate, request: CRLRequest
) -> SignedCRL:
    history = _History(ceremony, name, issuer, request.previous)
    if (unrecorded := history.unrecorded()) is not None:
        number, found = unrecorded
        digests = ceremony.output.digests(crl_folder(name, number))
        details = _details(name, number)
        ceremony.finish(f"crl {name}, resumed", digests, details=details)
        return SignedCRL(
            name=name, number=number, crl=found.crl, files=digests, was_resumed=True
        )
    planned = _planned(ceremony, name, issuer, request, history)
    details = _details(name, planned.number)
    with ceremony.keys(name) as signer:
        begin = partial(ceremony.begin, f"crl {name}", details=details)
        crl = _signed(name, planned, signer, begin)
        folder = crl_folder(name, planned.number)
        files = ceremony.output.write_files(
            folder,
            {
                "crl.pem": crl.public_bytes(Encoding.PEM),
                "crl.der": crl.public_bytes(Encoding.DER),
                "crl.txt": text_of(crl, planned).encode(),
            },
        )
        read = {}
        if request.previous is not None:
            read = {request.previous.name: digest_of_file(request.previous)}
        ceremony.finish(f"crl {name}", {**read, **files}, device_of(signer), details)
    return SignedCRL(name=name, number=planned.number, crl=crl, files=files)


def make_first(ceremony: Ceremony) -> tuple[SignedCRL, ...]:
    """Make a list that revokes nothing of each CA that signs CAs, and is valid now.

    Raises:
        ConfigError: See `make_crl`.
        BackendError: See `make_crl`.
    """
    now = ceremony.clock()
    return tuple(
        make_crl(ceremony, name, CRLRequest())
        for name, entry in ceremony.file.cas.items()
        if entry.purpose is None and "crl_sign" in entry.key_usage
        if ceremony.output.certificate(name).not_valid_before_utc <= now
    )


def text_of(crl: x509.CertificateRevocationList, planned: PlannedCRL) -> str:
    """Return a list as text for people."""
    scope = "CA certificates" if planned.is_of_cas_only else "all certificates"
    lines = [
        f"Issuer:      {crl.issuer.rfc4514_string()}",
        f"Number:      {planned.number}",
        f"This update: {planned.this_update.isoformat()}",
        f"Next update: {planned.next_update.isoformat()}",
        f"About:       {scope} of this CA",
        f"SHA-256:     {hashlib.sha256(crl.public_bytes(Encoding.DER)).hexdigest()}",
        f"Revoked:     {len(planned.revoked)}",
    ]
    for one in planned.revoked:
        reason = f", {one.reason.value}" if one.reason else ""
        lines.append(f"  serial {one.serial:x} since {one.since.isoformat()}{reason}")
    return "\n".join(lines) + "\n"


def _details(name: str, number: int) -> dict[str, str]:
    return {CA: name, CRL_NUMBER: str(number)}


class _History:
    # The lists of a CA that are known, and all numbers that were ever used.
    def __init__(
        self,
        ceremony: Ceremony,
        name: str,
        issuer: x509.Certificate,
        previous: Path | None,
    ) -> None:
        self._name = name
        self._output = ceremony.output
        self._made = frozenset[int]()
        self._begun: dict[int, str] = {}
        self._read_transcript(ceremony)
        self._in_folder = {
            number: _own_list(path, issuer)
            for number, path in ceremony.output.crls(name).items()
        }
        for number, one in self._in_folder.items():
            if one.number != number:
                raise _bad(f"{one.source}: expected the number {number}, as its folder")
        self._given = None if previous is None else _own_list(previous, issuer)

    def _read_transcript(self, ceremony: Ceremony) -> None:
        path = ceremony.transcript.path
        if not path.exists():
            return
        record = read_transcript(path)
        self._made = record.crl_numbers(self._name)
        for entry in record.entries:
            number = entry.details.get(CRL_NUMBER, "")
            is_begun = entry.details.get(CA) == self._name and TBS in entry.details
            if is_begun and number.isdecimal():
                self._begun[int(number)] = entry.details[TBS]

    @property
    def _newest(self) -> int:
        return max({*self._made, *self._in_folder}, default=0)

    def unrecorded(self) -> tuple[int, RevocationList] | None:
        """Return a list that an earlier run has written and not recorded.

        Raises:
            ConfigError: The folder has a list that no run has begun.
        """
        for number in sorted(self._in_folder.keys() - self._made):
            one = self._in_folder[number]
            digest = hashlib.sha256(one.crl.tbs_certlist_bytes).hexdigest()
            if self._begun.get(number) != digest:
                folder = self._output.folder / crl_folder(self._name, number)
                raise _bad(
                    f"{folder}: no entry of the transcript has this list: move it out "
                    "of the folder, and give it with --previous if this CA made it"
                )
            return number, one
        return None

    def last(self) -> list[RevocationList]:
        """Return the lists whose entries the next one has too, the newest first.

        Raises:
            ConfigError: The last list is not there, or the given one is an older one.
        """
        newest, given = self._newest, self._given
        found = [one for number, one in self._in_folder.items() if number == newest]
        if given is None:
            if newest and not found:
                raise _bad(
                    f"{self._name}: the transcript has its CRL number {newest}, which "
                    f"is not in {self._output.folder}: put it back, or give it with "
                    "--previous, so that what it revokes stays revoked"
                )
            return found
        if given.number is None or given.number < newest:
            number = "no number" if given.number is None else f"number {given.number}"
            raise _bad(
                f"{given.source}: expected the last CRL of {self._name}, with the "
                f"number {newest} or above (found {number}): an older one would take "
                "revocations back"
            )
        return [given, *found]

    def next_number(self) -> int:
        """Return a number that no list of the CA has had."""
        given = (self._given and self._given.number) or 0
        number = max({self._newest, given, *self._begun}) + 1
        if number.bit_length() > _MOST_NUMBER_BITS:
            raise _bad(f"{self._name}: there is no number above {number - 1:x} (hex)")
        return number


def _own_list(path: Path, issuer: x509.Certificate) -> RevocationList:
    found = parse_lists(read_public(path), str(path))
    if len(found) != 1:
        raise _bad(f"{path}: expected one CRL (found {len(found)})")
    one = found[0]
    if not (one.is_of(issuer) and one.is_signed_by(issuer)):
        raise _bad(
            f"{one.title}: expected a CRL that {name_text(issuer, 'subject')} has "
            "signed: it is of another CA or another key, or was changed"
        )
    return one


def _require_may_sign(name: str, issuer: x509.Certificate, now: datetime) -> None:
    usage = value_in(issuer.extensions, x509.KeyUsage)
    if usage is not None and not usage.crl_sign:
        raise _bad(
            f"{name}: its certificate has no cRLSign in keyUsage, so verifiers take no "
            "CRL of it: add crl_sign to its key_usage in the file, and sign it again"
        )
    if not issuer.not_valid_before_utc <= now < issuer.not_valid_after_utc:
        raise _bad(
            f"{name}: its certificate is valid from "
            f"{issuer.not_valid_before_utc.isoformat()} to "
            f"{issuer.not_valid_after_utc.isoformat()}, and not now: sign it again"
        )


def _planned(
    ceremony: Ceremony,
    name: str,
    issuer: x509.Certificate,
    request: CRLRequest,
    history: _History,
) -> PlannedCRL:
    issuer_of_certificate(issuer)  # its name can be copied, and it has an identifier
    now = ceremony.clock().replace(microsecond=0)
    last = history.last()
    # Verifiers whose clock is behind take no list of the future.
    begins = [now - BACKDATE, issuer.not_valid_before_utc]
    this_update = max([*begins, *(one.crl.last_update_utc for one in last)])
    if this_update > now:
        raise _bad(
            f"{name}: its last CRL is of {this_update.isoformat()}, and the clock says "
            f"{now.isoformat()}: set the machine's clock"
        )
    revoked = merged([one.crl for one in last])
    for serial in _serials(ceremony.output, name, issuer, request):
        if (known := revoked.get(serial)) is not None:
            raise _bad(
                f"{name}: serial {serial:x} is revoked already, since "
                f"{known.since.isoformat()}: leave it out"
            )
        revoked[serial] = RevokedCertificate(serial, this_update, request.reason)
    return PlannedCRL(
        issuer=issuer,
        number=history.next_number(),
        this_update=this_update,
        next_update=_next_update(name, issuer, now, request.days),
        revoked=tuple(revoked.values()),
        # A leaf of a mesh needs a list that is about leaves too, with verifiers that
        # want one for each certificate, such as Envoy.
        is_of_cas_only=ceremony.file.cas[name].purpose is None,
    )


def _next_update(
    name: str, issuer: x509.Certificate, now: datetime, days: int | None
) -> datetime:
    end = issuer.not_valid_after_utc
    if days is None:
        return min(now + timedelta(days=LONGEST_DAYS), end)
    if not 1 <= days <= LONGEST_DAYS:
        raise _bad(
            f"--days: expected 1 to {LONGEST_DAYS}, twelve months (found {days})"
        )
    if (found := now + timedelta(days=days)) > end:
        raise _bad(
            f"{name}: the next update would be {found.isoformat()}, after the end of "
            f"this CA ({end.isoformat()}): expected --days {(end - now).days} at most"
        )
    return found


def _serials(
    output: Output, name: str, issuer: x509.Certificate, request: CRLRequest
) -> Iterator[int]:
    """Yield the serial numbers that are to be revoked, each once."""
    found: dict[int, None] = {}
    for one in request.names:
        certificate = output.certificate(one)
        found[_issued(certificate, issuer, name, str(output.folder / one))] = None
    for path in request.certificates:
        certificates = parse_certificates(read_public(path), str(path))
        if len(certificates) != 1:
            raise _bad(f"{path}: expected one certificate (found {len(certificates)})")
        found[_issued(certificates[0], issuer, name, str(path))] = None
    below = {
        certificate.serial_number: one
        for one in output.names()
        if _is_issued(certificate := output.certificate(one), issuer)
    }
    for serial in request.serials:
        if serial == issuer.serial_number and _is_issued(issuer, issuer):
            raise _is_itself(f"--serial {serial:x}", name)
        if serial not in below and not request.takes_unknown:
            known = ", ".join(f"{number:x} ({one})" for number, one in below.items())
            raise _bad(
                f"--serial {serial:x}: {output.folder} has no certificate of {name} "
                f"with this serial number (it has {known or 'none'}): give the "
                "certificate itself with --certificate, or confirm the number with "
                "--confirm-unknown-serial"
            )
        found[serial] = None
    yield from found


def _issued(
    certificate: x509.Certificate, issuer: x509.Certificate, name: str, source: str
) -> int:
    """Return the serial number of a CA certificate that the CA has issued.

    Raises:
        ConfigError: It is none; or the CA's own, which its list cannot revoke.
    """
    if not _is_issued(certificate, issuer):
        raise _bad(
            f"{source}: expected a certificate that {name} has issued (found one of "
            f"{certificate.issuer.rfc4514_string()}); make the CRL of the CA that "
            "issued it"
        )
    if certificate.public_key() == issuer.public_key():
        raise _is_itself(source, name)
    basic = value_in(certificate.extensions, x509.BasicConstraints)
    if basic is None or not basic.ca:
        raise _bad(f"{source}: expected the certificate of a CA (found a leaf)")
    return certificate.serial_number


def _is_itself(source: str, name: str) -> ConfigError:
    return _bad(
        f"{source}: expected a CA below {name}: no CA revokes itself, as whoever has "
        "its key would make the next CRL; take it out of the trust anchors"
    )


def _is_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    is_named = issuer_of(certificate) == subject_of(issuer)
    return is_named and signature_fault(certificate, issuer) is None


def _signed(
    name: str, planned: PlannedCRL, signer: Signer, begin: Callable[[bytes], None]
) -> x509.CertificateRevocationList:
    """Sign a list, with all checks before and after the signature."""
    key = issuer_key(planned.issuer)
    if signer.public_key() != key:
        raise _bad(
            f"{name}: the key is not that of its certificate "
            f"({name_text(planned.issuer, 'subject')}): give this certificate's key, "
            "or the folder of the certificate of this key as --out"
        )
    tbs, algorithm, throwaway = planned.tbs(), algorithm_of(key), key_like(key)
    tried = signature_of(throwaway, algorithm, tbs)
    _require_clean(name, planned, planned.joined(tbs, tried))
    begin(tbs)
    signature = verified_signature(name, signer, key, tbs)
    crl = planned.joined(tbs, signature)
    if crl.tbs_certlist_bytes != tbs:
        raise BackendBrokenError(
            f"{name}: what was signed is not what was linted", rule="hierarchy.tbs"
        )
    _require_clean(name, planned, crl)
    return crl


def _require_clean(
    name: str, planned: PlannedCRL, crl: x509.CertificateRevocationList
) -> None:
    found = [*planned.problems(crl), *crl_findings(crl)]
    require_clean(found, source=f"{name}: the CRL")


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.crl")
