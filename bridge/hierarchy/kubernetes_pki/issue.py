"""Issues the certificates of a cluster with the keys of its three CAs.

Each is held against the name constraints of its whole chain before it is signed, and
read again after: a signer that answers with a wrong signature makes no file.

Source:
    RFC 5280, 4.1 and 4.2; Kubernetes, "PKI certificates and requirements".
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from secrets import randbits

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from bridge.errors import ConfigError, DeniedError
from bridge.hierarchy.certificate import joined, sign_with_stand_in
from bridge.hierarchy.kubernetes_pki.profiles import PlannedLeaf, leaves_of
from bridge.hierarchy.schema import ClusterCA, ClusterPKIEntry
from bridge.hierarchy.schema.file import BACKDATE
from bridge.system.clock import Clock
from bridge.x509.algorithm import CAPrivateKey, issuer_key, new_key
from bridge.x509.certificate import key_usage
from bridge.x509.name_constraints import ChainConstraints
from bridge.x509.path import verify_leaf_signature

Sign = Callable[[bytes], bytes]
"""Signs a TBSCertificate as `algorithm_of` says of the key; ECDSA is in DER."""


@dataclass(frozen=True, slots=True)
class LeafIssuer:
    """A CA that signs leaves now."""

    chain: tuple[x509.Certificate, ...]
    """Its own certificate first, then what is above it, the root last."""
    sign: Sign

    @property
    def certificate(self) -> x509.Certificate:
        """Its own certificate, the trust anchor of those who verify its leaves."""
        return self.chain[0]


@dataclass(frozen=True, slots=True)
class IssuedLeaf:
    """A certificate of a node, with its key."""

    planned: PlannedLeaf
    certificate: x509.Certificate
    key: CAPrivateKey = field(repr=False)


def issue_all(
    cluster: ClusterPKIEntry,
    issuers: Mapping[ClusterCA, LeafIssuer],
    *,
    clock: Clock,
    nodes: Collection[str] = (),
) -> tuple[IssuedLeaf, ...]:
    """Issue the certificates of a cluster.

    All of them are held against their chains before the first one is signed.

    Args:
        cluster: The cluster.
        issuers: Its three CAs.
        clock: The lifetime of each certificate begins five minutes before its time.
        nodes: Only for these nodes; by default for all.

    Raises:
        ConfigError: A CA does not allow a name, or has ended, or its key signed
            something else. The message lists every name that is not allowed.
        bridge.spi.BackendError: A CA's key cannot be used.
    """
    all_nodes = leaves_of(cluster)
    planned = [leaf for leaf in all_nodes if not nodes or leaf.node in nodes]
    now = clock().replace(microsecond=0)
    refused = [
        problem
        for ca, issuer in issuers.items()
        for problem in name_problems(
            [leaf for leaf in planned if leaf.profile.ca == ca],
            ChainConstraints.of_chain(issuer.chain),
        )
    ]
    if refused:
        raise _bad("\n".join(refused), "kubernetes.names")
    return tuple(
        _issued(leaf, issuers[leaf.profile.ca], new_key("p256"), now, cluster.days)
        for leaf in planned
    )


def name_problems(
    leaves: list[PlannedLeaf], constraints: ChainConstraints
) -> list[str]:
    """Return a sentence for each name that a chain does not allow.

    Args:
        leaves: Certificates of one CA.
        constraints: Those of the CA and of all above it.
    """
    problems: dict[str, None] = {}
    for leaf in leaves:
        for name in leaf.names:
            try:
                constraints.require_permitted([name])
            except DeniedError as error:
                problems[f"{leaf.title}: {error} ({error.detail})"] = None
    return [*problems]


def _issued(
    leaf: PlannedLeaf, issuer: LeafIssuer, key: CAPrivateKey, now: datetime, days: int
) -> IssuedLeaf:
    ca = issuer.certificate
    end = min(
        now + timedelta(days=days), *(one.not_valid_after_utc for one in issuer.chain)
    )
    if end <= now:
        raise _bad(
            f"{leaf.title}: {ca.subject.rfc4514_string()} has ended at {end}; sign a "
            "new certificate of it first",
            "kubernetes.validity",
        )
    ca_key = issuer_key(ca)
    tbs = sign_with_stand_in(_builder(leaf, ca, key, (now - BACKDATE, end)), ca_key)
    signed = joined(tbs, ca_key, issuer.sign(tbs))
    if not verify_leaf_signature(signed, ca):
        raise _bad(
            f"{leaf.title}: the signature is not of the key of "
            f"{ca.subject.rfc4514_string()}; compare the CA's key with its certificate",
            "kubernetes.signature",
        )
    return IssuedLeaf(leaf, signed, key)


def _builder(
    leaf: PlannedLeaf,
    ca: x509.Certificate,
    key: CAPrivateKey,
    validity: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    by_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
    usage = key_usage(
        digital_signature=True, key_encipherment=isinstance(key, rsa.RSAPrivateKey)
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(randbits(127) | 1)
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(leaf.profile.usages), critical=False)
        .add_extension(by_key(identifier.value), critical=False)
    )
    if leaf.names:
        names = x509.SubjectAlternativeName(leaf.names)
        builder = builder.add_extension(names, critical=False)
    return builder


def _bad(message: str, rule: str) -> ConfigError:
    return ConfigError(message, rule=rule)
