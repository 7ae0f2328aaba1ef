"""Each field of a role, of an issuer and of its URLs, set wrong on a real server.

`check` names the field. A leaf that was signed before the next look is not the one that
was requested: then the field explains it, and no mis-issuance stops the issuing CA.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.spi import (
    BackendBrokenError,
    BackendRefusedError,
    Description,
    LeafRequest,
    PluginContext,
)
from bridge.testing.leaves import leaf_request, require_issued
from bridge_vault import VaultPKICA
from bridge_vault.role import ROLE, SUBJECT
from tests.support.parts import vault_mounts
from tests.support.parts.vault import VAULT, Server
from tests.support.parts.vault_mounts import PKI, TRUST_DOMAIN

SPIFFE_ID = x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/cart")
URLS = {
    "issuing_certificates": ["http://ca.example/ca.crt"],
    "ocsp_servers": ["http://ca.example/ocsp"],
    "crl_distribution_points": ["http://ca.example/1.crl", "http://ca.example/2.crl"],
}
PINNED = {
    "issuing_certificate_urls": URLS["issuing_certificates"],
    "ocsp_servers": URLS["ocsp_servers"],
    "crl_distribution_points": URLS["crl_distribution_points"],
}
OTHER, REFUSED, SAME = "another leaf", "no leaf", "the same leaf"
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"use_csr_common_name": True}, OTHER),
    ({"use_csr_sans": True}, REFUSED),
    ({"require_cn": True}, REFUSED),
    ({"allow_any_name": True}, SAME),
    ({"server_flag": False}, OTHER),
    ({"client_flag": False}, OTHER),
    ({"code_signing_flag": True}, OTHER),
    ({"email_protection_flag": True}, OTHER),
    ({"ext_key_usage": ["CodeSigning"]}, OTHER),
    ({"ext_key_usage_oids": ["1.2.3.4"]}, OTHER),
    ({"basic_constraints_valid_for_non_ca": False}, OTHER),
    ({"policy_identifiers": ["1.2.3.4"]}, OTHER),
    ({"allowed_other_sans": ["*"]}, SAME),
    ({"allowed_serial_numbers": ["*"]}, OTHER),
    ({"allowed_user_ids": ["*"]}, OTHER),
    ({"no_store": False}, SAME),
    ({"no_store": False, "generate_lease": True}, OTHER),
    ({"use_pss": True}, OTHER),
    ({"not_after": "2050-01-01T00:00:00Z"}, REFUSED),
    ({"signature_bits": 512}, OTHER),
    ({"key_usage": ["DigitalSignature"]}, OTHER),
    ({"key_usage": []}, OTHER),
    ({"key_type": "rsa"}, REFUSED),
    ({"key_type": "ec", "key_bits": 384}, REFUSED),
    ({"max_ttl": 0}, SAME),
    ({"allowed_uri_sans": [], "allowed_domains": []}, REFUSED),
    *(({name: ["XX"]}, OTHER) for name in SUBJECT),
]
OF_OPENBAO: list[tuple[dict[str, Any], str]] = [
    ({"not_before": "2050-01-01T00:00:00Z"}, SAME),
    ({"not_after_bound": "permit"}, SAME),
    ({"not_after_bound": "forbid"}, REFUSED),
    ({"not_after_bound": "2050-01-01T00:00:00Z"}, SAME),
    ({"ttl": 0}, SAME),
]
HARMLESS: list[dict[str, Any]] = [
    {"ext_key_usage": ["ServerAuth", "ClientAuth"]},
    {"key_usage": ["digitalsignature", "KEYENCIPHERMENT"]},
    {"key_type": "ec", "key_bits": 256},
    {"key_type": "ec"},
    {"issuer_ref": "default"},
    {"allowed_uri_sans_template": True},
    {"allowed_domains": []},
    {"cn_validations": ["email", "hostname"]},
    {"enforce_hostnames": False},
    {"not_before_bound": "forbid"},
    {"ttl": "2h"},
    {"max_ttl": "25h"},
    {"not_before_duration": "75s"},
]


@pytest.fixture(scope="module")
def hierarchy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vault_mounts.write_hierarchy(tmp_path_factory.mktemp("pki") / "hierarchy")


@pytest.fixture
def pki(vault_server: Server, hierarchy: Path, tmp_path: Path) -> PKI:
    made = PKI.make(vault_server, hierarchy, tmp_path / "chain.pem", "rsa2048")
    vault_server.api.post(f"{made.mount}/config/urls", **URLS)
    return made


@pytest.fixture
def ca(pki: PKI, tmp_path: Path) -> Iterator[VaultPKICA]:
    token = vault_mounts.new_token(
        pki.server, vault_mounts.write_policy(pki.server, pki.rules)
    )
    login = vault_mounts.token_login(token, tmp_path / "token")
    context = PluginContext(name="vault", base=tmp_path, chain=pki.chain)
    made = VaultPKICA(pki.options(login, **PINNED), context)
    made.check(timeout=10)
    issue(made)
    yield made
    made.close()


def request_with(subject: x509.Name) -> LeafRequest:
    """Return a request whose CSR has a subject and names of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("evil.example")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    csr = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    made = leaf_request((SPIFFE_ID,), backdate=timedelta(minutes=1))
    return LeafRequest(
        attempt=made.attempt,
        public_key=key.public_key(),
        spki=key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        ),
        csr=csr.public_bytes(Encoding.DER),
        names=made.names,
        serial=made.serial,
        not_before=made.not_before,
        not_after=made.not_after,
    )


def subject_of(changes: dict[str, Any]) -> x509.Name:
    # What a workload could write into its subject, if the role allowed it.
    oid = {
        "allowed_serial_numbers": x509.NameOID.SERIAL_NUMBER,
        "allowed_user_ids": x509.NameOID.USER_ID,
    }.get(next(iter(changes)), x509.NameOID.COMMON_NAME)
    return x509.Name([x509.NameAttribute(oid, "evil.example")])


def issue(ca: VaultPKICA, subject: x509.Name | None = None) -> Description:
    prepared = ca.prepare(request_with(subject or x509.Name([])))
    issued = ca.issue(prepared, timeout=10)
    require_issued(issued, prepared, ca.describe())
    return ca.describe()


def require_effect(ca: VaultPKICA, effect: str, subject: x509.Name) -> None:
    if effect == SAME:
        issue(ca, subject)
        return
    kind: type[Exception] = BackendRefusedError if effect == REFUSED else Exception
    with pytest.raises(kind, match=r".") as caught:
        issue(ca, subject)
    if effect == OTHER:
        # Not a MisissuedError, which would stop the issuing CA.
        assert isinstance(caught.value, BackendBrokenError)
        assert caught.value.certificate_may_exist
        assert "Vault signed " in caught.value.detail


def require_named(ca: VaultPKICA, field: str) -> None:
    with pytest.raises(BackendBrokenError, match=r"^Vault's configuration") as caught:
        ca.check(timeout=10)
    assert f": {field}" in caught.value.detail


def test_each_field_that_the_plugin_pins_is_in_the_table() -> None:
    told = {name for changes, _ in [*FIELDS, *OF_OPENBAO] for name in changes}
    assert told >= {*ROLE, *SUBJECT}


@pytest.mark.parametrize(("changes", "effect"), FIELDS, ids=str)
def test_a_field_that_is_wrong_is_named_and_explains_its_leaf(
    pki: PKI, ca: VaultPKICA, changes: dict[str, Any], effect: str
) -> None:
    pki.write_role(**changes)
    require_effect(ca, effect, subject_of(changes))
    require_named(ca, next(iter(changes)))
    pki.write_role()
    ca.check(timeout=10)
    issue(ca)


@pytest.mark.parametrize(("changes", "effect"), OF_OPENBAO, ids=str)
def test_a_field_of_openbao_that_is_wrong_is_named(
    openbao: Server,
    hierarchy: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    effect: str,
) -> None:
    pki = PKI.make(openbao, hierarchy, tmp_path / "chain.pem")
    login = vault_mounts.token_login(openbao.root_token, tmp_path / "token")
    context = PluginContext(name="vault", base=tmp_path, chain=pki.chain)
    ca = VaultPKICA(pki.options(login), context)
    try:
        issue(ca)
        pki.write_role(**changes)
        require_effect(ca, effect, x509.Name([]))
        require_named(ca, next(iter(changes)))
    finally:
        ca.close()


@pytest.mark.parametrize("changes", HARMLESS, ids=str)
def test_a_field_that_changes_no_leaf_is_left_alone(
    pki: PKI, ca: VaultPKICA, changes: dict[str, Any]
) -> None:
    pki.write_role(**changes)
    ca.check(timeout=10)
    issue(ca)


@pytest.mark.parametrize("name", ["ttl", "max_ttl"])
def test_a_lifetime_that_the_role_would_cut_is_not_asked_for(
    pki: PKI, ca: VaultPKICA, name: str
) -> None:
    if name == "ttl" and not pki.server.product.role:
        return  # HashiCorp Vault holds a lifetime to `max_ttl` alone
    pki.write_role(**{"ttl": "10m", name: "10m"})
    ca.check(timeout=10)
    with pytest.raises(BackendBrokenError, match=r"cut the lifetime short") as caught:
        issue(ca)
    assert not caught.value.certificate_may_exist
    assert "max_ttl of the role is 0:10:00" in caught.value.detail


def test_the_mounts_own_limit_cuts_no_lifetime(pki: PKI, ca: VaultPKICA) -> None:
    path = f"sys/mounts/{pki.mount}/tune"
    pki.server.api.post(path, max_lease_ttl="600s", default_lease_ttl="300s")
    issue(ca)


@pytest.mark.parametrize(
    ("change", "effect"),
    [
        ({"issuing_certificates": []}, OTHER),
        ({"issuing_certificates": ["http://other.example"]}, OTHER),
        ({"ocsp_servers": []}, OTHER),
        ({"crl_distribution_points": URLS["crl_distribution_points"][::-1]}, OTHER),
        ({"delta_crl_distribution_points": ["http://ca.example/delta"]}, OTHER),
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["config/urls", "issuer"])
def test_a_url_that_is_not_pinned_is_named_and_explains_its_leaf(
    pki: PKI, ca: VaultPKICA, place: str, change: dict[str, Any], effect: str
) -> None:
    if place == "issuer":
        pki.change_issuer(**URLS)
        ca.check(timeout=10)
        issue(ca)
        pki.change_issuer(**change)
    else:
        pki.server.api.post(f"{pki.mount}/config/urls", **{**URLS, **change})
    require_effect(ca, effect, x509.Name([]))
    require_named(ca, next(iter(change)))


def test_urls_that_vault_fills_in_are_told(pki: PKI, ca: VaultPKICA) -> None:
    urls = {**URLS, "ocsp_servers": ["http://ca.example/{{issuer_id}}"]}
    path = f"{pki.mount}/config/urls"
    pki.server.api.post(path, **urls, enable_templating=True)
    require_named(ca, "ocsp_servers of config/urls")
    with pytest.raises(BackendBrokenError, match=r"^Vault's configuration") as caught:
        ca.check(timeout=10)
    assert "expected no templates" in caught.value.detail


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda pki: pki.change_issuer(usage="read-only"), "usage"),
        (
            lambda pki: pki.change_issuer(leaf_not_after_behavior="truncate"),
            "leaf_not_after_behavior",
        ),
        (
            lambda pki: pki.server.api.post(f"{pki.mount}/issuer/{pki.issuer}/revoke"),
            "revoked",
        ),
    ],
)
def test_an_issuer_that_may_not_sign_is_named(
    pki: PKI, ca: VaultPKICA, change: Callable[[PKI], object], field: str
) -> None:
    change(pki)
    require_named(ca, field)


def test_an_issuer_that_may_not_sign_is_broken_and_signs_nothing(
    pki: PKI, ca: VaultPKICA
) -> None:
    pki.change_issuer(usage="read-only")
    with pytest.raises(BackendBrokenError, match=r"does not have") as caught:
        issue(ca)
    assert not caught.value.certificate_may_exist


def test_a_default_issuer_that_is_switched_changes_nothing(
    pki: PKI, ca: VaultPKICA, hierarchy: Path, tmp_path: Path
) -> None:
    pki.set_default(pki.add_issuer(hierarchy, tmp_path / "other.pem"))
    ca.check(timeout=10)
    issue(ca)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (x509.DNSName("shop.example"), "allowed_domains and allow_subdomains"),
        (x509.UniformResourceIdentifier("spiffe://x.example/a"), "allowed_uri_sans"),
    ],
    ids=str,
)
def test_a_name_that_the_role_refuses_is_told_with_the_field(
    pki: PKI, ca: VaultPKICA, name: x509.GeneralName, fields: str
) -> None:
    prepared = ca.prepare(leaf_request((name,), backdate=timedelta(minutes=1)))
    with pytest.raises(BackendRefusedError, match=r"refuses the request") as caught:
        ca.issue(prepared, timeout=10)
    told = f"{fields} of {pki.mount}/roles/{pki.role} decide this"
    assert caught.value.detail.endswith(told)


def test_twenty_names_of_both_types_are_kept(pki: PKI, ca: VaultPKICA) -> None:
    pki.write_role(allowed_domains=["svc"])
    names = (
        SPIFFE_ID,
        *(x509.DNSName(f"n{number}.svc") for number in range(17)),
        x509.DNSName("xn--mnchen-3ya.svc"),
        x509.DNSName("n17.svc"),
    )
    prepared = ca.prepare(leaf_request(names, backdate=timedelta(minutes=1)))
    issued = ca.issue(prepared, timeout=10)
    require_issued(issued, prepared, ca.describe())


def test_a_name_that_the_chain_does_not_permit_is_refused_by_vault_itself(
    pki: PKI, ca: VaultPKICA
) -> None:
    # OpenBao signs it: the bridge's own constraints come first for both.
    pki.write_role(allowed_domains=["elsewhere.test"])
    names = (SPIFFE_ID, x509.DNSName("a.elsewhere.test"))
    prepared = ca.prepare(leaf_request(names, backdate=timedelta(minutes=1)))
    if pki.server.product is not VAULT:
        require_issued(ca.issue(prepared, timeout=10), prepared, ca.describe())
        return
    with pytest.raises(BackendRefusedError, match="Vault refuses") as caught:
        ca.issue(prepared, timeout=10)
    assert not caught.value.certificate_may_exist
