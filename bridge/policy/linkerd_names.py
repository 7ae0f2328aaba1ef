"""Linkerd's rules for the names of a request, with linkerd-identity's messages.

The messages are linkerd-identity's, word for word. The peer therefore gets errors whose
rule begins with `linkerd.` unchanged.

Source:
    linkerd/linkerd2, pkg/identity/service.go and controller/identity/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bridge.config import BridgeConfig
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
from bridge.x509.csr import CSR, asked_names, parse_csr_der

_KEY_TYPE = "csr.key-type"
_KIND = "serviceaccount"
_SUBJECT_PARTS = 4
_LONGEST_SHOWN = 300
_LONGEST_CSR = 4 * 1024
"""Bytes. A proxy's CSR has fewer than 1,000. A longer one could have many names, and a
caller without a token could make the bridge read them."""


@dataclass(frozen=True, kw_only=True)
class LinkerdNames:
    """The names of one Linkerd mesh, from the configuration."""

    cluster: str
    """The cluster whose service accounts have these names."""
    control_plane_namespace: str
    trust_domain: TrustDomain
    with_uri: bool
    """The leaf has a SPIFFE ID beside its DNS name."""

    @classmethod
    def of(cls, config: BridgeConfig) -> Self | None:
        """Return the names of a configuration; None without a front for Linkerd."""
        front, cluster = config.fronts.linkerd, config.linkerd_cluster()
        if front is None or cluster is None:
            return None
        return cls(
            cluster=cluster.name,
            control_plane_namespace=front.control_plane_namespace,
            trust_domain=TrustDomain(config.linkerd_trust_domain()),
            with_uri=front.spiffe_uri,
        )

    @cached_property
    def suffix(self) -> str:
        """The ending of every identity of this mesh."""
        return f".{_KIND}.identity.{self.control_plane_namespace}.{self.trust_domain}"

    @cached_property
    def _uri(self) -> str:
        # The beginning of every SPIFFE ID of this mesh.
        return f"spiffe://{self.trust_domain}/"

    def require_cluster(self, name: str) -> None:
        """Refuse a caller of another cluster.

        A front identifies the callers of one cluster. After a reload, the names can
        belong to another one.

        Raises:
            AuthenticationError: The caller's cluster is another one.
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
            SubjectError: The namespace or the name is no DNS-1123 label. The name of a
                service account with dots is not.
        """
        for part in (namespace, service_account):
            if not is_label(part):
                raise _no_label(part)
        return f"{service_account}.{namespace}{self.suffix}"

    def leaf_names(
        self, identity: str, spiffe_id: SpiffeID
    ) -> tuple[x509.GeneralName, ...]:
        """Return the names of a leaf. A peer uses the first one as the identity.

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
        """Refuse names of another mesh, before the constraints are evaluated.

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
    """Build the error of a call that comes before an issuing CA has signed a probe."""
    return BackendUnavailableError("cert issuer not ready yet", rule="linkerd.ready")


def require_complete(
    identity: str, authorization: Sequence[str], csr: str | bytes
) -> None:
    """Refuse a request that lacks the identity, the token or the CSR.

    Raises:
        RequestError: Names the first that is missing.
    """
    for value, what, rule in (
        (identity, "identity", "linkerd.identity"),
        (authorization, "token", "linkerd.token"),
        (csr, "certificate signing request", "linkerd.csr"),
    ):
        if not value:
            raise RequestError(f"missing {what}", rule=rule)


def read_csr(der: bytes) -> CSR:
    """Read a CSR of the kind that Linkerd's proxies send.

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
    """Compare the names of a CSR with the requested identity.

    Raises:
        CSRError: The names cannot be read.
        MismatchError: They are not the identity, once and alone.
    """
    asked = asked_names(csr)
    if len(asked.dns) != 1:
        raise _mismatch("CSR must have exactly one DNSName", "linkerd.dns-names")
    if asked.dns[0] != identity:
        raise _mismatch(
            f"CSR name does not match requested identity: "
            f"csr={asked.dns[0]}; req={identity}",
            "linkerd.csr-name",
        )
    for name in asked.common_names:
        if name not in {"", identity}:
            raise _mismatch(f"invalid CommonName: {name}", "linkerd.common-name")
    for found, text, rule in (
        (asked.emails, "cannot validate email addresses", "linkerd.emails"),
        (asked.ips, "cannot validate IP addresses", "linkerd.ips"),
        (asked.uris, "cannot validate URIs", "linkerd.uris"),
    ):
        if found:
            raise _mismatch(text, rule)


def require_requested(requested: str, found: str) -> None:
    """Refuse a requested identity that is not the token's.

    Raises:
        MismatchError: They are not equal byte for byte.
    """
    if requested != found:
        raise _mismatch(
            "requested identity did not match provided token: "
            f"requested={requested}; found={found}",
            "linkerd.identity-mismatch",
        )


def subject_error(subject: str) -> SubjectError:
    """Build the error of a token whose subject is no service account.

    Args:
        subject: The subject of a token that is valid otherwise.
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


def review_error(identity: str, error: ReviewError) -> ReviewError:
    """Build the error of a token of which it cannot be told whether it is good."""
    return ReviewError(
        f"error validating token for {identity}: {error}",
        rule="linkerd.review",
        detail=f"{error.rule}: {error.detail}",
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
    return MismatchError(text, rule=rule)
