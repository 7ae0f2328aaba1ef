"""What a role and an issuer of the PKI engine must say before they sign for a mesh."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from bridge.sdk import algorithm_of, issuer_key, subject_text
from bridge.spi import BackendBrokenError, LeafRequest
from bridge_vault.options import PKIOptions

ROLE: Mapping[str, object] = {
    "use_csr_common_name": False,
    "use_csr_sans": False,
    "require_cn": False,
    "allow_any_name": False,
    "server_flag": True,
    "client_flag": True,
    "code_signing_flag": False,
    "email_protection_flag": False,
    "ext_key_usage_oids": [],
    "basic_constraints_valid_for_non_ca": True,
    "policy_identifiers": [],
    "allowed_other_sans": [],
    "allowed_serial_numbers": [],
    "allowed_user_ids": [],
    "no_store": True,
    "generate_lease": False,
    "use_pss": False,
    "not_before": "",
    "not_after": "",
}
"""The fields of a role, and what each must be. The others may be anything.

With `allowed_serial_numbers` or `allowed_user_ids` a workload could write into the
subject by its CSR."""
KEY_USAGE = frozenset({"DigitalSignature", "KeyEncipherment"})
SUBJECT = (
    "ou",
    "organization",
    "country",
    "locality",
    "province",
    "street_address",
    "postal_code",
)
"""The fields of a role that would give a leaf a subject."""
_KEY_USAGE = frozenset(one.lower() for one in KEY_USAGE)
_EXTENDED_KEY_USAGE = frozenset({"serverauth", "clientauth"})
_OWN_KEY_BITS = 256
"""Probes and the listener's certificate have a P-256 key."""
_LONGEST_SECONDS = 10**9
_DEFAULT_BACKDATE_SECONDS = 30
"""Where `not_before_duration` is 0."""
_SHORTER = timedelta(seconds=4)
"""A leaf may end so much before the requested end: the bridge takes 5 s."""
_LATE = timedelta(seconds=2)
_CLOCK = timedelta(seconds=1)
"""How well Vault's clock is known."""
_NOT_BEFORE_SECONDS = 25.0
"""notBefore is Vault's: the bridge takes 30 s of difference."""
_SIGNS = "issuing-certificates"
_URLS = ("issuing_certificates", "ocsp_servers", "crl_distribution_points")
_DELTA = "delta_crl_distribution_points"


def role_problems(
    role: Mapping[str, Any], certificate: x509.Certificate
) -> Iterator[str]:
    """Yield what of a role would make other certificates than the bridge's.

    Args:
        role: The data of `GET <mount>/roles/<name>`.
        certificate: The issuing CA's.

    Yields:
        A text for each, such as `no_store: expected true (found false)`.
    """
    for name, wanted in ROLE.items():
        # A field that this version of Vault does not have is as if it were not set.
        if (role.get(name) or type(wanted)()) != wanted:
            yield _differs(name, wanted, role.get(name))
    for name in SUBJECT:
        if role.get(name):
            yield _differs(name, [], role[name])
    if _words(role.get("key_usage")) != _KEY_USAGE:
        yield _differs("key_usage", sorted(KEY_USAGE), role.get("key_usage"))
    if not _words(role.get("ext_key_usage") or []) <= _EXTENDED_KEY_USAGE:
        yield _differs("ext_key_usage", [], role["ext_key_usage"])
    yield from _times(role)
    key_type, bits = role.get("key_type"), role.get("key_bits") or 0
    if key_type != "any" and (key_type != "ec" or bits not in range(_OWN_KEY_BITS + 1)):
        found = f"{key_type}, {bits} bits"
        yield _differs("key_type", "any, or ec with key_bits of 256", found)
    if not role.get("allowed_uri_sans") and not role.get("allowed_domains"):
        names = "the names of workloads, or allowed_domains with them"
        yield _differs("allowed_uri_sans", names, role.get("allowed_uri_sans"))
    digest = algorithm_of(issuer_key(certificate)).hash
    # An Ed25519 key has no choice.
    if digest and role.get("signature_bits", 0) not in (0, 8 * digest.digest_size):
        yield _differs("signature_bits", 8 * digest.digest_size, role["signature_bits"])


def _times(role: Mapping[str, Any]) -> Iterator[str]:
    bound = role.get("not_after_bound", "ttl-limited")
    if bound != "ttl-limited":
        yield _differs("not_after_bound", "ttl-limited", bound)
    # OpenBao holds a notAfter to `ttl`; without one, to the mount's default.
    for name in ("max_ttl", "ttl") if _is_openbao(role) else ("max_ttl",):
        if not _seconds(role.get(name)):
            yield _differs(name, "a time above 0", role.get(name))
    backdate = role.get("not_before_duration") or 0
    if backdate and not _seconds(backdate):
        yield _differs("not_before_duration", "a time", backdate)


class Limits:
    """The times that a role gives a leaf.

    Args:
        role: As `role_problems` passed it.

    Source:
        OpenBao, internal/builtin/logical/pki/cert_util.go, `getCertificateNotAfter`.
    """

    def __init__(self, role: Mapping[str, Any]) -> None:
        seconds = _seconds(role["max_ttl"])
        self._is_openbao = _is_openbao(role)
        if self._is_openbao:
            seconds = min(seconds, _seconds(role["ttl"]))
        self._longest = timedelta(seconds=seconds)
        backdate = _seconds(role.get("not_before_duration"))
        self.backdate = timedelta(seconds=backdate or _DEFAULT_BACKDATE_SECONDS)
        """How long before its own time Vault has a leaf begin."""

    def end(self, request: LeafRequest, now: datetime) -> datetime:
        """Return the notAfter to ask for: the requested one, or up to 4 s sooner.

        Args:
            request: For one leaf.
            now: The time by Vault's clock.

        Raises:
            BackendBrokenError: Vault would make a leaf that the bridge has to refuse.
        """
        ahead = (now - self.backdate - request.not_before).total_seconds()
        if abs(ahead) > _NOT_BEFORE_SECONDS:
            raise BackendBrokenError(
                "Vault would date the certificate otherwise",
                rule="vault.clock",
                detail=f"notBefore would be {ahead:+.0f} s from the requested one: "
                f"not_before_duration of the role is {self.backdate}; compare it with "
                "issuance.backdate, and Vault's clock with the bridge's",
            )
        latest = now + self._longest - _CLOCK
        if request.not_after - latest > _SHORTER:
            field = "ttl or max_ttl" if self._is_openbao else "max_ttl"
            raise BackendBrokenError(
                "Vault would cut the lifetime short",
                rule="vault.role",
                detail=f"{field} of the role is {self._longest}: expected at least "
                f"{request.not_after - now}, which is issuance.max_ttl and the "
                "difference of the clocks",
            )
        # Vault counts a lifetime from when it signs, which may be late.
        wanted = request.not_after - (timedelta() if self._is_openbao else _LATE)
        return min(wanted, latest.replace(microsecond=0))

    def fields(self, end: datetime, now: datetime) -> dict[str, str]:
        """Return the fields of a request that ask for an end."""
        if self._is_openbao:
            # Exact under `not_after_bound=ttl-limited`, whatever its clock says.
            return {"not_after": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
        # In Vault `not_after` evades max_ttl, so its policy denies it.
        return {"ttl": f"{int((end - now).total_seconds())}s"}


def issuer_problems(
    issuer: Mapping[str, Any],
    urls: Mapping[str, Any],
    chain: Sequence[x509.Certificate],
    options: PKIOptions,
) -> Iterator[str]:
    """Yield what of an issuer is not as it was pinned.

    Args:
        issuer: The data of `GET <mount>/issuer/<id>`.
        urls: The data of `GET <mount>/config/urls`, which holds where the issuer has
            no URLs of its own.
        chain: The certificates of the file, the issuing CA's first. Another one of its
            name and key, such as the other half of a cross-signed pair, may be Vault's.
        options: Have the pinned URLs.
    """
    certificate = certificate_of(issuer)
    if certificate not in _twins(chain):
        shown = "none" if certificate is None else subject_text(certificate)
        yield (
            f"certificate: expected that of {subject_text(chain[0])} in the file chain "
            f"(found another, {shown}); put the issuer's certificate into the file, or "
            "the issuer of this one into the options"
        )
    if issuer.get("leaf_not_after_behavior") != "err":
        found = issuer.get("leaf_not_after_behavior")
        yield _differs("leaf_not_after_behavior", "err", found)
    if _SIGNS not in str(issuer.get("usage", _SIGNS)).split(","):
        yield _differs("usage", f"with {_SIGNS}", issuer.get("usage"))
    if issuer.get("key_id") == "":
        yield "key_id: expected the issuer's key (found none)"
    if issuer.get("revoked"):
        yield "revoked: expected false (found true)"
    own = any(issuer.get(name) for name in _URLS)
    source, where = (issuer, "the issuer") if own else (urls, "config/urls")
    pinned = (
        options.issuing_certificate_urls,
        options.ocsp_servers,
        options.crl_distribution_points,
    )
    keys = ("issuing_certificate_urls", *_URLS[1:])
    for name, key, wanted in zip(_URLS, keys, pinned, strict=True):
        found = source.get(name) or []
        if found != list(wanted):
            yield (
                f"{name} of {where}: expected the option {key}, {list(wanted)} "
                f"(found {found})"
            )
    if source.get(_DELTA):
        yield f"{_DELTA} of {where}: expected none (found {source[_DELTA]})"
    is_template = source.get(
        "enable_aia_url_templating" if own else "enable_templating"
    )
    if is_template and any("{{" in str(source.get(name)) for name in _URLS):
        yield f"the URLs of {where}: expected no templates, as the leaf has others"


def added_extensions(
    options: PKIOptions,
) -> tuple[x509.Extension[x509.ExtensionType], ...]:
    """Return the extensions that Vault adds to each leaf for the pinned URLs.

    Source:
        Go, crypto/x509: OCSP servers come before issuing certificates, and each CRL
        URL is a distribution point of its own.
    """
    added: list[x509.Extension[x509.ExtensionType]] = []
    access = [
        x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
        for method, found in (
            (AuthorityInformationAccessOID.OCSP, options.ocsp_servers),
            (
                AuthorityInformationAccessOID.CA_ISSUERS,
                options.issuing_certificate_urls,
            ),
        )
        for url in found
    ]
    if access:
        added.append(_not_critical(x509.AuthorityInformationAccess(access)))
    points = [_point(url) for url in options.crl_distribution_points]
    if points:
        added.append(_not_critical(x509.CRLDistributionPoints(points)))
    return tuple(added)


def _not_critical(
    value: x509.ExtensionType,
) -> x509.Extension[x509.ExtensionType]:
    return x509.Extension(value.oid, False, value)  # noqa: FBT003 - pyca's order


def _point(url: str) -> x509.DistributionPoint:
    return x509.DistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)],
        relative_name=None,
        reasons=None,
        crl_issuer=None,
    )


def _twins(chain: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    own = chain[0]
    alike = [one for one in chain if one.subject == own.subject]
    return [one for one in alike if one.public_key() == own.public_key()]


def certificate_of(issuer: Mapping[str, Any]) -> x509.Certificate | None:
    """Return the certificate of an issuer; None if there is none to be read.

    Args:
        issuer: The data of `GET <mount>/issuer/<id>`.
    """
    try:
        text = str(issuer.get("certificate"))
        return x509.load_pem_x509_certificate(text.encode("ascii"))
    except ValueError:
        return None


def _is_openbao(role: Mapping[str, Any]) -> bool:
    return "not_after_bound" in role


def _seconds(value: object) -> int:
    # 0 for what is no time.
    return value if isinstance(value, int) and 0 < value < _LONGEST_SECONDS else 0


def _words(value: object) -> frozenset[str]:
    # As Vault reads the names of usages.
    found = value if isinstance(value, list) else [value]
    return frozenset(str(one).strip().lower() for one in found)


def _differs(name: str, wanted: object, found: object) -> str:
    return f"{name}: expected {wanted!r} (found {found!r})"
