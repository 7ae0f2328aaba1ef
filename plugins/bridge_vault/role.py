"""What a role and an issuer of the PKI engine must say before they sign for a mesh."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID

from bridge.sdk import algorithm_of, issuer_key
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
    "ext_key_usage": [],
    "ext_key_usage_oids": [],
    "basic_constraints_valid_for_non_ca": True,
    "policy_identifiers": [],
    "allowed_other_sans": [],
    "no_store": True,
    "generate_lease": False,
    "use_pss": False,
    "not_after": "",
}
"""The fields of a role, and what each must be. The others may be anything."""
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
_SIGNS = "issuing-certificates"
_URLS = ("issuing_certificates", "ocsp_servers", "crl_distribution_points")


def role_problems(role: Mapping[str, Any], certificate: x509.Certificate) -> list[str]:
    """Return what of a role would make other certificates than the bridge's.

    Args:
        role: The data of `GET <mount>/roles/<name>`.
        certificate: The issuing CA's.

    Returns:
        A text for each, such as `no_store: expected true (found false)`.
    """
    return list(_role_problems(role, certificate))


def _role_problems(
    role: Mapping[str, Any], certificate: x509.Certificate
) -> Iterator[str]:
    for name, wanted in ROLE.items():
        if name in role and (role[name] or type(wanted)()) != wanted:
            yield _differs(name, wanted, role[name])
    for name in SUBJECT:
        if role.get(name):
            yield _differs(name, [], role[name])
    usage = role.get("key_usage")
    if not isinstance(usage, list) or {str(one) for one in usage} != KEY_USAGE:
        yield _differs("key_usage", sorted(KEY_USAGE), usage)
    if role.get("not_after_bound", "ttl-limited") != "ttl-limited":
        yield _differs("not_after_bound", "ttl-limited", role["not_after_bound"])
    if not _seconds(role.get("max_ttl")):
        yield _differs("max_ttl", "a time above 0", role.get("max_ttl"))
    digest = algorithm_of(issuer_key(certificate)).hash
    bits = 8 * digest.digest_size if digest else 0
    if role.get("signature_bits", 0) not in {0, bits}:
        yield _differs("signature_bits", bits, role["signature_bits"])


def issuer_problems(
    issuer: Mapping[str, Any],
    urls: Mapping[str, Any],
    certificate: x509.Certificate,
    options: PKIOptions,
) -> list[str]:
    """Return what of an issuer is not as it was pinned.

    Args:
        issuer: The data of `GET <mount>/issuer/<id>`.
        urls: The data of `GET <mount>/config/urls`, which holds where the issuer has
            no URLs of its own.
        certificate: The issuing CA's.
        options: Have the pinned URLs.
    """
    return list(_issuer_problems(issuer, urls, certificate, options))


def _issuer_problems(
    issuer: Mapping[str, Any],
    urls: Mapping[str, Any],
    certificate: x509.Certificate,
    options: PKIOptions,
) -> Iterator[str]:
    if _der(issuer.get("certificate")) != certificate.public_bytes(Encoding.DER):
        yield "certificate: expected the first one of the file chain (found another)"
    if issuer.get("leaf_not_after_behavior") != "err":
        found = issuer.get("leaf_not_after_behavior")
        yield _differs("leaf_not_after_behavior", "err", found)
    if _SIGNS not in str(issuer.get("usage", _SIGNS)).split(","):
        yield _differs("usage", f"with {_SIGNS}", issuer.get("usage"))
    if issuer.get("revoked"):
        yield "revoked: expected false (found true)"
    own = any(issuer.get(name) for name in _URLS)
    source = issuer if own else urls
    pinned = (
        options.issuing_certificate_urls,
        options.ocsp_servers,
        options.crl_distribution_points,
    )
    keys = ("issuing_certificate_urls", *_URLS[1:])
    for name, key, wanted in zip(_URLS, keys, pinned, strict=True):
        found = tuple(source.get(name) or ())
        if found != wanted:
            where = "the issuer" if own else "config/urls"
            yield (
                f"{name} of {where}: expected the option {key}, {list(wanted)} "
                f"(found {list(found)})"
            )


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


def _der(text: object) -> bytes:
    try:
        found = x509.load_pem_x509_certificate(str(text).encode("ascii"))
    except ValueError:
        return b""
    return found.public_bytes(Encoding.DER)


def _seconds(value: object) -> int:
    return value if isinstance(value, int) else 0


def _differs(name: str, wanted: object, found: object) -> str:
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        wanted = list(wanted)
    return f"{name}: expected {wanted!r} (found {found!r})"
