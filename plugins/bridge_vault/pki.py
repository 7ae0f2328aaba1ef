"""The backend `vault-pki`: Vault's PKI engine builds and signs each certificate."""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.sdk import BackgroundLoop, read_watched_description
from bridge.spi import (
    BackendBrokenError,
    BackendError,
    BackendRefusedError,
    BackendUnavailableError,
    Description,
    IssuedChain,
    LeafRequest,
    PluginContext,
    Prepared,
)
from bridge_vault.options import PKIOptions, files_of, options_of
from bridge_vault.rights import Rights, pki_rights
from bridge_vault.role import (
    Limits,
    added_extensions,
    certificate_of,
    issuer_problems,
    role_problems,
)
from bridge_vault.session import ASK_SECONDS, SharedSession

_LOOK_SECONDS = 60.0
"""How often role and issuer are held to the pins."""
_LOOK_AGAIN_SECONDS = 2.0
"""The same, while they are not as they must be."""
_LOOK_TIMEOUT_SECONDS = 5.0
_NOT_BEFORE, _NOT_AFTER = timedelta(seconds=30), timedelta(seconds=5)
"""The differences that the bridge takes."""
_CLOCK_SECONDS = 3.0
"""By how much Vault's clock may differ from what was computed with: the times of its
answers are cut to seconds."""
_WARNINGS = 20
"""So many different warnings of Vault are logged."""
_SKI, _SAN = x509.SubjectKeyIdentifier.oid, x509.SubjectAlternativeName.oid
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_ROLE_FIELDS = {
    "uri subject alternative name": "allowed_uri_sans",
    "subject alternate name": "allowed_domains and allow_subdomains",
    "role requires": "key_type and key_bits",
}
"""What a refusal says, and the fields of the role that decide it."""
_UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_log = logging.getLogger(__name__)


class VaultPKICA:
    """An issuing CA of Vault's PKI engine. It reports changes of its files.

    Args:
        options: See `bridge_vault.options.PKIOptions`.
        context: `chain` names the certificates.

    Raises:
        ConfigError: An option or a file cannot be used; the message says what was
            expected.
    """

    api_version = 2

    def __init__(
        self, options: Mapping[str, object], context: PluginContext, /
    ) -> None:
        parsed = options_of(PKIOptions, options, context)
        self._options = parsed
        self._context = context
        # Each login may use up a secret: whoever asks first, there is one session.
        session = cache(lambda: SharedSession(parsed, context))
        description, self._files = read_watched_description(
            context,
            assurance="service",
            labels={"issuer": f"{parsed.mount}/{parsed.issuer}", "role": parsed.role},
            beside=files_of(parsed),
            holds=lambda key: _issuer_key(session(), parsed) == key,
        )
        self._description = replace(
            description, chooses_serial=True, added_extensions=added_extensions(parsed)
        )
        self._chain = (description.certificate, *description.intermediates)
        self._intermediates = tuple(
            one.public_bytes(Encoding.DER) for one in self._chain
        )
        self._path = f"{parsed.mount}/issuer/{parsed.issuer}/sign/{parsed.role}"
        self._session = session()
        self._rights = Rights(self._session, context, _needless(parsed))
        self._limits: Limits | None = None
        self._fault: BackendError | None = None
        self._looked_at = float("-inf")
        self._looking = threading.Lock()
        self._loop = BackgroundLoop(
            f"vault-role-{context.name}",
            self._look,
            lambda: _LOOK_AGAIN_SECONDS if self._fault else _LOOK_SECONDS,
        )
        self._is_looking = False
        self._skew_seconds: float | None = None
        self._dated_at = float("-inf")
        self._usual: object = None
        self._warned: set[str] = set()

    def describe(self) -> Description:
        """See `IssuingCA.describe`."""
        return self._description

    def prepare(self, request: LeafRequest) -> Prepared:
        """See `IssuingCA.prepare`: Vault builds the TBSCertificate.

        Raises:
            BackendRefusedError: Vault would leave a name out, or write another one.
        """
        _require_kept(request.names)
        return Prepared(request=request)

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        """See `IssuingCA.issue`.

        Raises:
            BackendBrokenError: Role, issuer, URLs or clocks would give, or gave,
                another leaf than the requested one. Nothing else explains a leaf that
                differs: it is returned, and the bridge stops this issuing CA.
        """
        self._require_open(timeout)
        deadline = time.monotonic() + timeout
        if self._fault is not None:
            raise copy(self._fault)
        limits = self._limits or self._verified(deadline, float("-inf"))
        request = prepared.request
        end, now = self._planned(request, limits, deadline)
        before, known = self._context.clock(), self._skew
        answer = self._ask(request, limits.fields(end, now), deadline)
        leaf = _leaf_of(answer)
        self._note_warnings(answer)
        after = self._context.clock()
        # By what was known before: the answer itself may have shown another clock.
        skew = _skew(leaf, limits, before, after, known)
        if (
            answer.get("lease_id")
            or abs(skew - known) > _CLOCK_SECONDS
            or abs(leaf.not_valid_before_utc - request.not_before) > _NOT_BEFORE
            or abs(leaf.not_valid_after_utc - request.not_after) > _NOT_AFTER
            or not self._is_usual(leaf, request)
        ):
            lease = str(answer.get("lease_id") or "")
            signed = _Signed(request, leaf, lease, before, after, end - now)
            self._require_unexplained(signed, deadline)
        return IssuedChain(leaf.public_bytes(Encoding.DER), self._intermediates)

    def check(self, *, timeout: float) -> None:
        """See `IssuingCA.check`: rights, role, issuer and URLs are looked at."""
        self._require_open(timeout)
        now = time.monotonic()
        self._verified(now + timeout, now)

    def watch(self, changed: Callable[[], None]) -> None:
        """See `Watcher.watch`; `changed` may close this object.

        Raises:
            RuntimeError: The files are watched already, or closed.
        """
        self._files.watch(changed)

    def close(self) -> None:
        """See `IssuingCA.close`."""
        self._loop.stop()
        self._files.close()
        self._session.close()

    def _require_open(self, timeout: float) -> None:
        is_closed = self._loop.is_closing
        if timeout <= 0 or is_closed:
            why = "the issuing CA is closed" if is_closed else "no time is left"
            raise BackendUnavailableError(why)

    @property
    def _skew(self) -> float:
        # By the last leaf that was dated otherwise than expected, else by the header
        # Date, which may be that of a node that only forwards.
        known = self._skew_seconds
        return self._session.skew_seconds if known is None else known

    def _planned(
        self, request: LeafRequest, limits: Limits, deadline: float
    ) -> tuple[datetime, datetime]:
        # The notAfter to ask for, and the time by Vault's clock.
        now = self._context.clock() + timedelta(seconds=self._skew)
        try:
            return limits.end(request, now), now
        except BackendBrokenError:
            # One of the two clocks may have been set right, which only an answer shows.
            if time.monotonic() < self._dated_at + _LOOK_AGAIN_SECONDS:
                raise
        self._dated_at = time.monotonic()
        limits = self._verified(deadline, self._dated_at)
        self._skew_seconds = None
        now = self._context.clock() + timedelta(seconds=self._skew)
        return limits.end(request, now), now

    def _ask(
        self, request: LeafRequest, times: Mapping[str, str], deadline: float
    ) -> Mapping[str, Any]:
        body = _body(request, times)
        try:
            answer: Mapping[str, Any] = self._session.call(
                lambda adapter: adapter.post(f"/v1/{self._path}", json=body),
                deadline - time.monotonic(),
                attempt=request.attempt,
                signs=True,
            )
        except BackendRefusedError as error:
            raise _told(error, self._options) from error
        return answer

    def _is_usual(self, leaf: x509.Certificate, request: LeafRequest) -> bool:
        # Only a hint: the bridge compares each leaf. All but key and names comes from
        # role, issuer and URLs, so a leaf that differs from the one before shows that
        # somebody changed them.
        try:
            found = {one.oid: (one.critical, one.value) for one in leaf.extensions}
            found.pop(_SKI, None)
            _, names = found.pop(_SAN, (False, None))
            if not isinstance(names, x509.SubjectAlternativeName):
                return False
            usual = (leaf.subject, leaf.signature_algorithm_oid, found)
            if self._usual is None:
                self._usual = usual
            return usual == self._usual and Counter(names) == Counter(request.names)
        except _UNREADABLE:
            return False

    def _require_unexplained(self, signed: "_Signed", deadline: float) -> None:
        # A leaf that the bridge would refuse stops this CA until a person acts. Where a
        # changed role or a clock explains it, that says more, and ends by itself.
        leaf, request = signed.leaf, signed.request
        ends = leaf.not_valid_after_utc
        try:
            limits = self._verified(deadline, time.monotonic())
            self._skew_seconds = _skew(
                leaf, limits, signed.before, signed.after, self._skew
            )
            self._dated_at = time.monotonic()
            now = leaf.not_valid_before_utc + limits.backdate
            is_late = abs(ends - request.not_after) > _NOT_AFTER
            if is_late or abs(now - limits.backdate - request.not_before) > _NOT_BEFORE:
                limits.end(request, now)
            error = (ends - now - signed.lifetime).total_seconds()
            if is_late and abs(error) < _CLOCK_SECONDS:
                raise BackendUnavailableError(
                    "Vault's clock is another than its answers show",
                    rule="vault.clock",
                    detail=f"notAfter is {ends}, and {request.not_after} was "
                    "requested; the next request is computed with its clock",
                )
            if signed.lease:
                raise BackendBrokenError(
                    "the certificate has a lease, with which it would be revoked",
                    rule="vault.lease",
                    detail=f"lease {signed.lease}",
                )
        except BackendError as error:
            raise type(error)(
                str(error),
                rule=error.rule,
                detail=f"{error.detail}; Vault signed {leaf.serial_number:x}",
                certificate=leaf.public_bytes(Encoding.DER),
            ) from error
        self._usual = None

    def _note_warnings(self, answer: Mapping[str, Any]) -> None:
        warnings = answer.get("warnings")
        for warning in map(str, warnings if isinstance(warnings, list) else ()):
            if warning not in self._warned and len(self._warned) < _WARNINGS:
                self._warned.add(warning)
                name = self._context.name
                _log.warning("issuing CA %s: Vault warns: %s", name, warning[:500])

    def _verified(self, deadline: float, since: float) -> Limits:
        # What a look that began at `since` or later found; by `time.monotonic()`.
        left = max(0.0, deadline - time.monotonic())
        if not self._looking.acquire(timeout=left):
            raise BackendUnavailableError(
                "the role is being looked at", rule="vault.role"
            )
        try:
            if self._looked_at >= since:  # another call has looked
                if self._fault is not None:
                    raise copy(self._fault)
                if self._limits is not None:
                    return self._limits
            began = time.monotonic()
            try:
                self._limits = self._read(deadline)
                self._fault, self._looked_at = None, began
            except BackendBrokenError as error:
                self._fault, self._looked_at = error, began
                raise
            finally:
                self._context.metrics.set("vault_role_faults", int(bool(self._fault)))
                if not self._is_looking and not self._loop.is_closing:
                    self._is_looking = True
                    self._loop.start()
            return self._limits
        finally:
            self._looking.release()

    def _read(self, deadline: float) -> Limits:
        options = self._options
        mount, role_path = options.mount, f"{options.mount}/roles/{options.role}"
        issuer_path = f"{mount}/issuer/{options.issuer}"
        urls_path = f"{mount}/config/urls"
        rights = pki_rights(mount, options.issuer, options.role)
        self._rights.require(rights, deadline)
        role = _get(self._session, role_path, deadline)
        issuer = _get(self._session, issuer_path, deadline)
        urls = _get(self._session, urls_path, deadline)
        own = self._description.certificate
        problems = [f"{role_path}: {one}" for one in role_problems(role, own)]
        found = issuer_problems(issuer, urls, self._chain, options)
        problems += [f"{issuer_path}: {one}" for one in found]
        if problems:
            raise BackendBrokenError(
                "Vault's configuration would make other certificates",
                rule="vault.role",
                detail="; ".join(problems),
            )
        return Limits(role)

    def _look(self) -> None:
        had_fault = self._fault is not None
        now = time.monotonic()
        try:
            self._verified(now + _LOOK_TIMEOUT_SECONDS, now)
        except BackendBrokenError as error:
            if not had_fault:
                name = self._context.name
                _log.error("issuing CA %s: %s: %s", name, error, error.detail)
        except BackendError as error:
            # Vault is away: what it said last holds until it says something else.
            _log.debug("Vault's role is not looked at: %s %s", error, error.detail)


def _get(session: SharedSession, path: str, deadline: float) -> Mapping[str, Any]:
    answer = session.call(
        lambda adapter: adapter.get(f"/v1/{path}"), deadline - time.monotonic()
    )
    data = answer.get("data")
    return data if isinstance(data, dict) else {}


def _issuer_key(session: SharedSession, options: PKIOptions) -> object:
    path = f"{options.mount}/issuer/{options.issuer}"
    found = certificate_of(_get(session, path, time.monotonic() + ASK_SECONDS))
    try:
        return None if found is None else found.public_key()
    except _UNREADABLE:
        return None


@dataclass(frozen=True, slots=True)
class _Signed:
    # A leaf, and when it was asked for and came back, by the bridge's clock.
    request: LeafRequest
    leaf: x509.Certificate
    lease: str
    before: datetime
    after: datetime
    lifetime: timedelta


def _body(request: LeafRequest, times: Mapping[str, str]) -> dict[str, Any]:
    names = request.names
    csr = x509.load_der_x509_csr(request.csr).public_bytes(Encoding.PEM)
    return {
        "csr": csr.decode("ascii"),
        "common_name": "",
        "exclude_cn_from_sans": True,
        "uri_sans": _values(names, x509.UniformResourceIdentifier),
        "alt_names": ",".join(_values(names, x509.DNSName)),
        "format": "pem",
        "remove_roots_from_chain": True,
        **times,
    }


def _told(error: BackendRefusedError, options: PKIOptions) -> BackendRefusedError:
    told = error.detail.lower()
    for text, fields in _ROLE_FIELDS.items():
        if text in told:
            role = f"{options.mount}/roles/{options.role}"
            detail = f"{error.detail}: {fields} of {role} decide this"
            return BackendRefusedError(str(error), rule=error.rule, detail=detail)
    return error


def _skew(
    leaf: x509.Certificate,
    limits: Limits,
    before: datetime,
    after: datetime,
    known: float,
) -> float:
    # How far Vault's clock is ahead, by the leaf that it dated between two moments: as
    # it was known where the leaf permits that, else halfway.
    begins = leaf.not_valid_before_utc + limits.backdate
    least = (begins - after).total_seconds()
    most = (begins - before).total_seconds() + 1.0  # it is cut to seconds
    return known if least <= known <= most else (least + most) / 2


def _needless(options: PKIOptions) -> tuple[str, ...]:
    mount, issuer = options.mount, f"{options.mount}/issuer/{options.issuer}"
    return (
        f"{mount}/sign-verbatim",
        f"{issuer}/sign-verbatim",
        f"{issuer}/sign-intermediate",
        f"{mount}/root/sign-intermediate",
        f"{mount}/root/generate/internal",
    )


def _require_kept(names: tuple[x509.GeneralName, ...]) -> None:
    # Vault leaves out a name that it takes for none, such as one with an underscore,
    # writes a URI anew, and has no DNS name twice.
    odd = [one for one in names if not _is_kept(one)]
    if odd or not names or len(set(names)) != len(names):
        raise BackendRefusedError(
            "Vault cannot be asked for these names",
            rule="vault.name",
            detail=f"expected SPIFFE IDs and DNS names without underscores, each once "
            f"(found {', '.join(str(one.value) for one in odd or names)})",
        )


def _is_kept(name: x509.GeneralName) -> bool:
    if isinstance(name, x509.DNSName):
        return _DNS_NAME.fullmatch(name.value) is not None
    if isinstance(name, x509.UniformResourceIdentifier):
        return _SPIFFE_ID.fullmatch(name.value) is not None
    return False


def _values(names: tuple[x509.GeneralName, ...], kind: type[Any]) -> list[str]:
    return [name.value for name in names if isinstance(name, kind)]


def _leaf_of(answer: Mapping[str, Any]) -> x509.Certificate:
    data = answer.get("data")
    text = data.get("certificate") if isinstance(data, dict) else None
    try:
        leaf = x509.load_pem_x509_certificate(str(text).encode("ascii"))
        # They are read when they are asked for.
        _ = leaf.not_valid_before_utc, leaf.not_valid_after_utc, leaf.serial_number
    except _UNREADABLE as error:
        raise BackendBrokenError(
            "Vault's answer has no certificate",
            rule="vault.answer",
            certificate_may_exist=True,
        ) from error
    return leaf
