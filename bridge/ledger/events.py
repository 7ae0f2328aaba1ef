"""The rows of the ledger, typed. Their names and fields do not change later.

Every row in a journal is one JSON object that also carries `seq` (from 0, per writer),
`prev` (SHA-256 of the line before, 64 hex digits) and `at` (microseconds since
1970-01-01 UTC). Times inside a row are whole seconds since 1970-01-01 UTC; digests and
serial numbers are lower-case hex; no value is secret.

The first row of a segment tells the format of its rows. Format 2 has the caller's pod
as fields, how the caller was verified, and who asked. In format 1 an intent has `pod`
instead: namespace/name/UID in one text, or nothing.
"""

from base64 import b64encode
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import ClassVar

FORMAT = 2
"""The format of the rows that this version writes."""
READABLE_FORMATS = (1, FORMAT)
"""The formats of the rows that this version reads."""
_LARGEST_CERTIFICATE = 16 << 10


class Purpose(StrEnum):
    """What a certificate is for."""

    WORKLOAD = "workload"
    """A workload of a mesh."""
    SERVING = "serving"
    """The bridge's own listener."""
    PROBE = "probe"
    """A certificate for a name of no caller, signed to prove a key. Its validity is
    past, or ends within a minute where the backend chooses when it begins."""


class Outcome(StrEnum):
    """How an attempt, or a call, ended."""

    ISSUED = "issued"
    """The certificate was verified and released."""
    REFUSED = "refused"
    """A rule refused it; nothing was signed."""
    FAILED = "failed"
    """The backend or the bridge failed; nothing was signed."""
    UNKNOWN = "unknown"
    """A certificate may exist that no caller was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """An attempt to have a certificate signed. It is on disk before the signature."""

    kind: ClassVar[str] = "intent"

    attempt: str
    """32 hex digits; an outcome repeats it."""
    request: str
    """32 hex digits; the attempts of one call share it."""
    purpose: str
    """One of `Purpose`."""
    front: str
    """`istio`, `linkerd`, or empty for what the bridge asks for itself."""
    cluster: str
    """The caller's cluster, as the configuration names it; may be empty."""
    caller: str
    """The identity that the certificate is for, as a SPIFFE ID."""
    requester: str
    """The identity that the credential proved, where that is not `caller`: a proxy asks
    for a workload of its node. Otherwise empty."""
    credential: str
    """`token`, `certificate`, or `self`."""
    verified_by: str
    """How the credential was verified: `jwks` (offline, by the cluster's keys),
    `token_review` (by the cluster's API server), `bound` (offline, and by a watch of
    pods and accounts) or `certificate`; empty for what the bridge asks for itself."""
    pod_namespace: str
    """The namespace of the pod that the credential is bound to; may be empty, as the
    three fields that follow."""
    pod_name: str
    """The name of the pod."""
    pod_uid: str
    """The UID of the pod."""
    node: str
    """The name of the node that the credential names."""
    issuing_ca: str
    """The name in the configuration."""
    serial: str
    """Empty where the backend chooses it."""
    generation: int
    """Of the snapshot that decided."""
    issuer_sha256: str
    """SHA-256 of the issuing CA's certificate in DER."""
    key_sha256: str
    """SHA-256 of the leaf's SubjectPublicKeyInfo in DER."""
    names: list[str]
    """Subject alternative names in order, `URI:...` or `DNS:...`."""
    not_before: int
    """When the requested validity begins."""
    not_after: int
    """When the requested validity ends."""
    tbs_sha256: str
    """Empty where the backend builds it."""
    proven_at: int = 0
    """When a token last proved the caller: the time of this call, or that of an earlier
    one where the credential is a certificate. 0 for what the bridge asks for itself.
    Absent in rows of earlier versions."""

    def ending(self, outcome: Outcome, **values: str) -> "Ending":
        """Build the row of this attempt's outcome.

        Args:
            outcome: How the attempt ended.
            values: Fields of the row that differ from the intent's, or that an intent
                does not have.
        """
        shared = {name: getattr(self, name) for name in SHARED_FIELDS}
        return Ending(**{**shared, "kind": outcome.value, **values})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The outcome of an attempt, or of a call that never became one."""

    kind: str
    """One of `Outcome`."""
    attempt: str
    """Empty for a call that was refused before an attempt."""
    request: str
    purpose: str
    front: str
    cluster: str
    caller: str
    requester: str = ""
    issuing_ca: str = ""
    serial: str = ""
    certificate_sha256: str = ""
    """SHA-256 of the certificate in DER, where one came back."""
    status: str = ""
    """The gRPC status code that the caller got, such as `PERMISSION_DENIED`."""
    rule: str = ""
    """The rule that was broken, such as `csr.rsa-size`; empty for `issued`."""
    detail: str = ""
    """For operators; at most 500 characters, and at most 600 bytes in the row."""


def kept(certificate: bytes) -> str:
    """Return a certificate as a row has it: base64 of its DER, empty above 16 KiB."""
    is_small = len(certificate) <= _LARGEST_CERTIFICATE
    return b64encode(certificate if is_small else b"").decode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateEnding(Ending):
    """An outcome with the certificate itself. All fields of an outcome, and these.

    Where the backend built the certificate, or built another one than was asked for,
    the intent does not say what is in it. It may have to be shown to be revoked.
    """

    not_before: int
    """When the validity of the certificate begins; 0 if that cannot be read."""
    not_after: int
    """When the validity of the certificate ends; 0 if that cannot be read."""
    certificate: str
    """The certificate, as base64 of its DER; empty above 16 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnding(Ending):
    """The outcome of a call that never became an attempt, and whose caller is known.

    All fields of an outcome, and these, as an intent has them.
    """

    credential: str
    verified_by: str
    pod_namespace: str
    pod_name: str
    pod_uid: str
    node: str


def _names(event: type[Intent | Ending]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(event))


SHARED_FIELDS = tuple(name for name in _names(Ending) if name in _names(Intent))
"""What the outcome of an attempt repeats of its intent."""

IN_BODY_ALONE = frozenset({"credential", "generation", "issuer_sha256", "proven_at"})
"""Fields that have no column of their own."""

COLUMNS = (
    *("writer", "seq", "at", "kind"),
    *(name for name in _names(Intent) if name not in IN_BODY_ALONE),
    *(name for name in _names(Ending)[1:] if name not in SHARED_FIELDS),
    *("body", "hash"),
)
"""A row as the archive and `meshca ledger export` have it. `body` is the line of the
journal, and `hash` its SHA-256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Calls of a time span above the rate that gets rows of its own.

    They were unauthenticated, above a ceiling of their identity or cluster, kept away
    from an issuing CA that fails, or refused again and again to one caller by one rule.
    """

    kind: ClassVar[str] = "summary"

    since: int
    """When the time span begins."""
    until: int
    """When the time span ends."""
    rules: dict[str, int]
    """How many calls broke which rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The first row of a segment."""

    kind: ClassVar[str] = "opened"

    writer: str
    """The name of the writer: the folder under the journal's."""
    segment: int
    """From 1."""
    version: str
    """Of the bridge."""
    format: int = FORMAT
    """The version of the format of the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The last row of a segment that was closed in order."""

    kind: ClassVar[str] = "closed"

    reason: str
    """`shutdown` or `rollover`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The disk takes rows again, after a time in which nothing could be signed."""

    kind: ClassVar[str] = "resumed"

    since: int
    """When the disk refused the first row."""
    detail: str
    """The error of the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """An operator accepted this journal, which ends at the row before.

    In journals of earlier versions the kind of this row is `attested`.
    """

    kind: ClassVar[str] = "accepted"

    by: str
    """The name of the operator in the operating system."""
    detail: str
    """The reason that the operator gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A head of this journal was published: the sink of the heads has to hold it."""

    kind: ClassVar[str] = "published"

    line: int
    """The number of the line in the sink."""
    size: int
    """How many bytes the sink had, with that line."""
    sha256: str
    """SHA-256 of these bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latched:
    """A credential that no host tries again until an operator clears it; or a bar."""

    kind: ClassVar[str] = "latched"

    latch: str
    """32 hex digits; the row of its clearance repeats it."""
    issuing_ca: str
    """The name in the configuration; may be empty."""
    scope: str
    """What locks after too many attempts, such as a token's serial number. Of a bar,
    what is barred, as `KIND:VALUE`."""
    state: str
    """`refused` by the backend, `unanswered` where its first login had no result, or
    `barred` by an operator (`meshca bar`)."""
    since: int
    """When it was latched."""
    salt: str
    """Of the digest, in hex."""
    digest: str
    """scrypt (N 16384, r 8, p 1) of the credential, in hex. It is refused, and a short
    one can be guessed from this."""
    detail: str
    """The reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """An issuing CA that is not used after a mis-issuance.

    It is used again with another certificate, or when an operator clears it.
    """

    kind: ClassVar[str] = "stopped"

    latch: str
    """32 hex digits; the row of its clearance repeats it."""
    issuing_ca: str
    """The name in the configuration."""
    issuer_sha256: str
    """SHA-256 of the issuing CA's certificate in DER."""
    since: int
    """When it was stopped."""
    detail: str
    """The difference to what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """An operator cleared what was latched or stopped."""

    kind: ClassVar[str] = "cleared"

    latch: str
    """As in the row `latched` or `stopped`."""
    issuing_ca: str
    """The name in the configuration; may be empty."""
    scope: str
    """The scope of the credential, or SHA-256 of the issuing CA's certificate."""
    by: str
    """The name of the operator in the operating system."""
    detail: str
    """The reason that the operator gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of an attempt that ended `unknown`, by the backend's own log.

    `meshca ledger reconcile` writes it, at most once for an attempt.
    """

    kind: ClassVar[str] = "settled"

    attempt: str
    """As in the rows `intent` and `unknown`, and so are the fields that follow."""
    request: str
    purpose: str
    front: str
    cluster: str
    caller: str
    requester: str
    issuing_ca: str
    result: str
    """`issued`: the backend answered with a certificate or a signature. `not-issued`:
    the backend refused the call."""
    serial: str
    """Empty where nothing was issued, or where the log hides it."""
    certificate_sha256: str
    """SHA-256 of the certificate in DER; empty where the log does not show it."""
    not_before: int
    """When the validity of the certificate begins; 0 if that is not known."""
    not_after: int
    """When the validity of the certificate ends; 0 if that is not known."""
    certificate: str
    """The certificate, as base64 of its DER; empty where the log does not show it."""
    log_file: str
    """The file of the log that has the answer."""
    log_request: str
    """The ID of the request in that log."""
    log_at: int
    """When the backend logged the answer."""
    by: str
    """The name of the operator in the operating system."""
    detail: str
    """For operators; at most 500 characters."""


Event = (
    Intent
    | Ending
    | CertificateEnding
    | CallEnding
    | Summary
    | Opened
    | Closed
    | Resumed
    | Accepted
    | Published
    | Latched
    | Stopped
    | Cleared
    | Settled
)

EARLIER_KINDS = ("attested", "restored")
"""Kinds of rows that only journals of earlier versions have."""
