"""Linkerd's rules for a request: who may have which name, in whose words.

The texts are those of linkerd-identity to the letter, so errors of rules that begin
with `linkerd.` are told to the peer as they are.

Source:
    linkerd/linkerd2, pkg/identity/service.go and controller/identity/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bridge.dns_names import LONGEST, is_label
from bridge.errors import (
    AuthenticationError,
    BackendUnavailableError,
    CSRError,
    DeniedError,
    MismatchError,
    RequestError,
    ReviewError,
    SubjectError,
)
from bridge.spiffe import SpiffeID, TrustDomain
from bridge.x509.csr import CSR, asked_names, asks_for_nothing_else, parse_csr_der

_KEY_TYPE = "csr.key-type"
_KIND = "serviceaccount"
_SUBJECT_PARTS = 4
_LONGEST_SHOWN = 300
_LONGEST_CSR = 4 * 1024
"""Bytes. A proxy's has under 1,000, and reading the names of one that is full of them
is work that anybody can ask for, without a token."""


@dataclass(frozen=True, kw_only=True)
class LinkerdNames:
    """The names of one mesh, as the configuration has them."""

    cluster: str
    """The one whose service accounts have them."""
    control_plane_namespace: str
    trust_domain: TrustDomain
    with_uri: bool
    """The leaf has a SPIFFE ID beside its DNS name."""

    @cached_property
    def suffix(self) -> str:
        """What every identity of this mesh ends in."""
        return f".{_KIND}.identity.{self.control_plane_namespace}.{self.trust_domain}"

    @cached_property
    def _uri(self) -> str:
        # What every SPIFFE ID of this mesh begins with.
        return f"spiffe://{self.trust_domain}/"

    def require_cluster(self, name: str) -> None:
        """Refuse the callers of another cluster.

        A front asks for those of one. It may have been told so before a reload, and
        the names be those after it.

        Raises:
            AuthenticationError: It is another one.
        """
        if name != self.cluster:
            raise AuthenticationError(
                "the token is of another cluster",
                rule="cluster.other",
                detail=f"cluster {name}, expected {self.cluster}",
            )

    def identity(self, namespace: str, service_account: str) -> str:
        """Return the identity of a service account.

        Raises:
            SubjectError: One of the parts is no DNS-1123 label, as the name of a
                service account with dots is none.
        """
        for part in (namespace, service_account):
            if not is_label(part):
                raise _no_label(part)
        return f"{service_account}.{namespace}{self.suffix}"

    def leaf_names(
        self, identity: str, spiffe_id: SpiffeID
    ) -> tuple[x509.GeneralName, ...]:
        """Return a leaf's names: a peer takes the first for who it speaks with.

        Raises:
            DeniedError: The identity is longer than a DNS name can be.
        """
        if len(identity) > LONGEST:
            raise DeniedError(
                f"the identity has more than {LONGEST} characters",
                rule="identity.length",
            )
        name = x509.DNSName(identity)
        if not self.with_uri:
            return (name,)
        return name, x509.UniformResourceIdentifier(str(spiffe_id))

    def require_own(self, names: tuple[x509.GeneralName, ...]) -> None:
        """Refuse names of another mesh, just before they are held to the constraints.

        Raises:
            DeniedError: A name is outside the trust domain.
        """
        for name in names:
            text = str(name.value)
            own = (
                text.endswith(self.suffix)
                if isinstance(name, x509.DNSName)
                else text.startswith(self._uri)
            )
            if not own:
                raise DeniedError(
                    "the mesh may not have names of this trust domain",
                    rule="cluster.trust-domain",
                    detail=text,
                )


def not_ready() -> BackendUnavailableError:
    """Return what is said before an issuing CA has proven itself."""
    return BackendUnavailableError("cert issuer not ready yet", rule="linkerd.ready")


def require_complete(
    identity: str, authorization: Sequence[str], csr: str | bytes
) -> None:
    """Refuse a request that lacks something.

    Raises:
        RequestError: The first thing that is missing.
    """
    for value, what, rule in (
        (identity, "identity", "linkerd.identity"),
        (authorization, "token", "linkerd.token"),
        (csr, "certificate signing request", "linkerd.csr"),
    ):
        if not value:
            raise RequestError(f"missing {what}", rule=rule)


def read_csr(der: bytes) -> CSR:
    """Read a CSR of a kind that proxies make.

    Raises:
        CSRError: See `parse_csr_der`; or it is longer than a proxy's can be
            (`csr.size`), or the key is no ECDSA key.
    """
    if len(der) > _LONGEST_CSR:
        raise CSRError(f"the CSR has more than {_LONGEST_CSR} bytes", rule="csr.size")
    try:
        csr = parse_csr_der(der)
    except CSRError as error:
        if error.rule == _KEY_TYPE:
            raise _not_ecdsa() from error
        raise
    if not isinstance(csr.public_key, ec.EllipticCurvePublicKey):
        raise _not_ecdsa()
    return csr


def require_csr_names(csr: CSR, identity: str) -> None:
    """Hold the names of a CSR against the identity that is asked for.

    Raises:
        CSRError: The names cannot be read.
        MismatchError: They are not the identity, once, and nothing else.
    """
    if asks_for_nothing_else(csr, identity):
        return
    asked = asked_names(csr)
    if len(asked.dns) != 1:
        raise _mismatch("CSR must have exactly one DNSName", "dns-names")
    if asked.dns[0] != identity:
        raise _mismatch(
            f"CSR name does not match requested identity: "
            f"csr={asked.dns[0]}; req={identity}",
            "csr-name",
        )
    for name in asked.common_names:
        if name not in {"", identity}:
            raise _mismatch(f"invalid CommonName: {name}", "common-name")
    for found, text, rule in (
        (asked.emails, "cannot validate email addresses", "emails"),
        (asked.ips, "cannot validate IP addresses", "ips"),
        (asked.uris, "cannot validate URIs", "uris"),
    ):
        if found:
            raise _mismatch(text, rule)


def require_requested(requested: str, found: str) -> None:
    """Refuse another identity than the token's.

    Raises:
        MismatchError: They differ in any byte.
    """
    if requested != found:
        raise _mismatch(
            "requested identity did not match provided token: "
            f"requested={requested}; found={found}",
            "identity-mismatch",
        )


def subject_error(subject: str) -> SubjectError:
    """Return what is said of a token whose subject is no service account.

    Args:
        subject: Of a token that is good otherwise.
    """
    parts = subject.split(":")
    if len(parts) == _SUBJECT_PARTS and parts[0] == "system":
        for part in parts[1:]:
            if not is_label(part):
                return _no_label(part)
    return SubjectError(
        f"Username must be in form system:TYPE:NS:SA: {subject[:_LONGEST_SHOWN]}",
        rule="linkerd.subject",
        subject=subject,
    )


def review_error(identity: str, error: BackendUnavailableError) -> ReviewError:
    """Return what is said where the keys of the token's cluster cannot be had."""
    return ReviewError(
        f"error validating token for {identity}: {error}",
        rule="linkerd.review",
        detail=error.detail,
    )


def _not_ecdsa() -> CSRError:
    return CSRError(
        "CSR must contain an ECDSA public key, on P-256 or P-384", rule=_KEY_TYPE
    )


def _no_label(part: str) -> SubjectError:
    return SubjectError(
        f"Not a label: {part[:_LONGEST_SHOWN]}", rule="linkerd.label", subject=part
    )


def _mismatch(text: str, rule: str) -> MismatchError:
    return MismatchError(text, rule=f"linkerd.{rule}")
