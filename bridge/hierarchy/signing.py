"""Makes one certificate of a CA, with all checks before and after its signature.

What is checked before the key is used has the bytes of the real TBSCertificate and the
signature of a throwaway key.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from bridge.dataplanes.acceptance import require_accepted
from bridge.dataplanes.planes import DataPlane
from bridge.errors import BackendBrokenError, ConfigError
from bridge.hierarchy.certificate import (
    IssuerName,
    URLs,
    build,
    build_cross,
    issuer_of_certificate,
    joined,
    signed,
    usages_below,
)
from bridge.hierarchy.keys import SIGN_SECONDS
from bridge.hierarchy.lint import findings, require_clean
from bridge.hierarchy.output import BY
from bridge.hierarchy.replica import key_like, replicate_path
from bridge.hierarchy.schema import HierarchyFile
from bridge.hierarchy.verify import (
    TrialResult,
    chain_problem,
    require_right,
    trials_of,
    tried,
)
from bridge.spi import Signer
from bridge.x509.algorithm import CAPublicKey, algorithm_of, require_signature
from bridge.x509.ca_certificate import Usages
from bridge.x509.name_constraints import subset_problems
from bridge.x509.path import ValidatedChain, find_chain

Path = Sequence[x509.Certificate]
"""A CA first, the root last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningStep:
    """One certificate that is to be made."""

    file: HierarchyFile
    name: str
    """The CA, or the folder of the cross-certificate."""
    public_key: CAPublicKey
    above: Path = ()
    """The CAs above it, the root last; none for the root."""
    now: datetime
    """The time, aware, in UTC."""
    with_others: bool = True
    """Whether pkilint and `openssl verify` are asked too."""
    target: x509.Certificate | None = None
    """The root of another hierarchy that the first CA of `above` cross-signs."""

    @property
    def issuer(self) -> IssuerName | None:
        """What the certificate says of its issuer; None for the root."""
        return issuer_of_certificate(self.above[0]) if self.above else None

    @property
    def is_cross(self) -> bool:
        """Whether it is a cross-certificate, which no CA of the file describes."""
        return self.name not in self.file.cas

    @property
    def usages(self) -> Usages:
        """What the leaves below it are used for."""
        return usages_below(self.file, self.name)

    def tbs(self) -> bytes:
        """Build the TBSCertificate, in DER."""
        if self.target is not None:
            urls = URLs.below(self.file, self.name.partition(BY)[2])
            return build_cross(self.target, self.above[0], urls, now=self.now)
        return build(self.file, self.name, self.public_key, self.issuer, now=self.now)


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
        subject = issuer.subject if issuer else step.file.subject(name)
        raise _bad(
            f"{name}: the key that is to sign is not that of the certificate "
            f"({subject.rfc4514_string()}): give this certificate's key, or the "
            "folder of the certificate of this key as --out"
        )
    tbs = step.tbs()
    check(step, signed(tbs, key_like(key)))
    before(tbs)
    signature = verified_signature(name, signer, key, tbs)
    certificate = joined(tbs, key, signature)
    if certificate.tbs_certificate_bytes != tbs:
        raise BackendBrokenError(
            f"{name}: what was signed is not what was linted", rule="hierarchy.tbs"
        )
    check(step, certificate)
    path = [certificate, *step.above]
    if problem := chain_problem(path, moment(certificate, step.now), step.usages):
        raise _bad(f"{name}: {problem}")
    _require_loaded(step, path)
    return certificate


def verified_signature(
    name: str, signer: Signer, key: CAPublicKey, tbs: bytes
) -> bytes:
    """Sign with the real key; return the signature, which is one of that key.

    Args:
        name: The CA, for messages.
        signer: The key of the CA that signs.
        key: Its public key.
        tbs: What is signed, in DER.

    Raises:
        BackendError: The key does not sign, or signed something else.
    """
    algorithm = algorithm_of(key)
    signature = signer.sign(tbs, algorithm, timeout=SIGN_SECONDS)
    try:
        require_signature(key, algorithm, signature, tbs)
    except InvalidSignature:
        raise BackendBrokenError(
            f"{name}: the signature is not one of the key that was to sign",
            rule="hierarchy.signature",
        ) from None
    return signature


def check(step: SigningStep, certificate: x509.Certificate) -> tuple[TrialResult, ...]:
    """Lint a certificate, hold it to the CAs above, and try leaves below it.

    The chain is validated as a copy with throwaway keys: the signature of `certificate`
    may be one of a throwaway key.

    Raises:
        ConfigError: A check fails.
    """
    name, path = step.name, [certificate, *step.above]
    found = findings(
        *(certificate, step.issuer),
        own_identifier=_identifier(certificate) if step.is_cross else None,
        with_pkilint=step.with_others,
        usages=step.usages,
    )
    require_clean(found, source=f"{name}: the certificate")
    if step.above and (problems := [*_beyond(certificate, step.above[0])]):
        raise _bad("\n".join(f"{name}: {text}" for text in problems))
    require_accepted(path[: _to_anchor(step)], _planes(step), source=name)
    replica = replicate_path(path)
    _require_loaded(step, replica.certificates)
    outcomes = tried(
        *(trials_of(step.file, name, path), replica, moment(certificate, step.now)),
        with_openssl=step.with_others,
        usages=step.usages,
    )
    require_right(outcomes, source=name)
    return outcomes


def moment(certificate: x509.Certificate, now: datetime) -> datetime:
    """Return when a certificate is first validated: now, or at its notBefore."""
    # A certificate may be made before it begins to be valid.
    return max(now, certificate.not_valid_before_utc)


def _require_loaded(step: SigningStep, path: Path) -> None:
    # As a bridge does with the chain of an issuing CA and the anchor of its peers.
    if step.is_cross or step.file.cas[step.name].purpose != "mesh":
        return
    *given, anchor = path[: _to_anchor(step)]
    issuing, *above = given or [anchor]

    def require(chain: ValidatedChain) -> None:
        tiers = [certificate for _, certificate in chain.tiers()]
        require_accepted(tiers, _planes(step), source=step.name)

    now = moment(path[0], step.now)
    find_chain(issuing, above, [anchor], now=now, source=step.name, require=require)


def _planes(step: SigningStep) -> dict[DataPlane, bool]:
    # Those that verify the certificate, and whether leaves have a URI name there.
    file, name = step.file, step.name
    if step.is_cross:
        name = name.partition(BY)[2]
    elif file.cas[name].purpose != "mesh":
        return {}
    planes = file.data_planes_of(name)
    return {plane: plane is not DataPlane.LINKERD for plane in planes}


def _to_anchor(step: SigningStep) -> int:
    # How many certificates of the path there are down from the anchor of its peers.
    file, name = step.file, step.name
    if step.is_cross or file.cas[name].purpose != "mesh":
        return len(step.above) + 1
    return file.chain(name).index(file.anchor_of(name)) + 1


def _identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    # That of a root which others made, perhaps with another hash than ours.
    get = certificate.extensions.get_extension_for_class
    return get(x509.SubjectKeyIdentifier).value


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
            f"from {parent.not_valid_before_utc.isoformat()}: write a later "
            "validity.not_before"
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


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.sign")
