"""Every error the bridge raises on purpose.

Three families answer the operator's first question, *who has to act?*

* `CallerError`: whoever asked. Asking for the same thing again cannot help.
* `BackendError`: the issuing CA, or the path to it.
* `OperatorError`: whoever configured or deployed this process.

`OverloadedError` and `ReviewError` stand apart: nobody did wrong, and the caller should
come back.

`str(error)` may be sent to an unauthenticated peer, so it names the rule and never
a value that the peer did not send. `detail` is for the ledger and the log. `rule`
is a stable name for machines: the ledger and the metrics carry it.
"""

from typing import ClassVar


class BridgeError(Exception):
    """Root of the hierarchy; never raised itself."""

    default_rule: ClassVar[str] = "internal"
    certificate_may_exist: bool = False
    """Whether a certificate may have been signed although this was raised."""

    def __init__(self, message: str, *, rule: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.rule = rule or self.default_rule
        self.detail = detail


class CallerError(BridgeError):
    """The request cannot be granted as it stands."""

    default_rule = "request"


class AuthenticationError(CallerError):
    """The caller showed no credential, a bad one, or one of another mesh."""

    default_rule = "authentication"


class SubjectError(AuthenticationError):
    """The token is good, and speaks for nobody who can have a certificate.

    Args:
        subject: What it says, however odd; "" where that is no text.
    """

    default_rule = "token.subject"

    def __init__(
        self, message: str, *, rule: str = "", detail: str = "", subject: str = ""
    ) -> None:
        super().__init__(message, rule=rule, detail=detail)
        self.subject = subject


class DeniedError(CallerError):
    """The caller is known, and policy or a name constraint says no."""

    default_rule = "policy"


class BarredError(DeniedError):
    """An operator has barred the certificate, the key or the identity."""

    default_rule = "bar"


class RequestError(CallerError):
    """The request is malformed."""


class MismatchError(RequestError):
    """Parts of the request do not agree with each other or with the credential."""

    default_rule = "mismatch"


class CSRError(RequestError):
    """The CSR does not parse, does not prove possession, or has a weak key."""

    default_rule = "csr"


class TTLError(RequestError):
    """The requested lifetime is outside the configured limits."""

    default_rule = "ttl"


class OverloadedError(BridgeError):
    """The bridge has more work than it can finish in time. Come back later."""

    default_rule = "overload"


class ReviewError(BridgeError):
    """Whether a credential is good cannot be told now; try again."""

    default_rule = "review"
    status: int = 0
    """The HTTP status of an answer; 0 where there is none."""
    retry_after: float = 0.0
    """The seconds that the answer asks to wait."""


class BackendError(BridgeError):
    """The issuing CA did not produce a usable certificate.

    Args:
        certificate_may_exist: Whether the request was sent, and may have been signed
            all the same. By default as the class has it. A cut connection, and an
            answer that says so little as status 500, leave it open.
        certificate: In DER, where one came back that must not be used. The ledger keeps
            it; the bridge releases it to nobody.
    """

    default_rule = "backend"
    certificate: bytes = b""

    def __init__(
        self,
        message: str,
        *,
        rule: str = "",
        detail: str = "",
        certificate_may_exist: bool | None = None,
        certificate: bytes = b"",
    ) -> None:
        super().__init__(message, rule=rule, detail=detail)
        self.certificate = certificate
        if certificate or certificate_may_exist is not None:
            self.certificate_may_exist = bool(certificate or certificate_may_exist)


class BackendUnavailableError(BackendError):
    """The issuing CA cannot be reached, or the connection to it broke.

    Nothing was signed, unless the error says that a certificate may exist.
    """

    default_rule = "backend.unavailable"


class BackendAuthError(BackendError):
    """The login at the issuing CA is lost, and a new one did not succeed yet."""

    default_rule = "backend.auth"


class BackendCredentialError(BackendError):
    """The backend refused our PIN, password or secret. Nobody tries it again.

    Another try could lock the credential for everybody. See `bridge.spi.Latch`.
    """

    default_rule = "backend.credential"


class BackendThrottledError(BackendError):
    """The issuing CA asks for fewer requests; nothing was signed."""

    default_rule = "backend.throttled"

    def __init__(
        self,
        message: str,
        *,
        rule: str = "",
        detail: str = "",
        certificate_may_exist: bool | None = None,
        retry_after_seconds: float = 0.0,
    ) -> None:
        super().__init__(
            message,
            rule=rule,
            detail=detail,
            certificate_may_exist=certificate_may_exist,
        )
        self.retry_after_seconds = retry_after_seconds


class BackendTimeoutError(BackendError):
    """The request was sent and no answer came in time: it may have been signed."""

    default_rule = "backend.timeout"
    certificate_may_exist = True


class BackendRefusedError(BackendError):
    """The issuing CA answered, and the answer was no. Do not retry."""

    default_rule = "backend.refused"


class BackendBrokenError(BackendError):
    """Mount, role, key or right is gone, or the answer makes no sense.

    A retry cannot help: the backend needs a person.
    """

    default_rule = "backend.broken"


class MisissuedError(BackendError):
    """The issuing CA signed something other than what was asked for.

    The certificate exists and may be in the wild: this pages a person and stops the
    issuing CA.
    """

    default_rule = "misissued"
    certificate_may_exist = True


class OperatorError(BridgeError):
    """The process cannot do its job until someone changes its environment."""

    default_rule = "operator"


class ConfigError(OperatorError):
    """The configuration, or a file that it names, cannot be used."""

    default_rule = "config"


class PluginError(OperatorError):
    """A plugin is absent, ambiguous, or built for another contract version."""

    default_rule = "plugin"


class LedgerError(OperatorError):
    """The ledger cannot be written, or no longer verifies."""

    default_rule = "ledger"


def drop_tracebacks(error: BaseException | None) -> None:
    """Drop the traceback of an error that was answered, and those of its causes.

    A traceback holds the frames, and so the call. Where a frame holds the error in its
    turn, both stay until the garbage is collected, which is seldom.
    """
    pending = [error]
    while pending:
        one = pending.pop()
        if one is not None and one.__traceback__ is not None:
            one.__traceback__ = None
            pending += one.__cause__, one.__context__
