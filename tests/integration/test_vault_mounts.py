"""What tests set up in a server is what they ask for."""

from pathlib import Path

import pytest
from cryptography import x509

from tests.support.parts import vault_mounts
from tests.support.parts.vault import API, AnswerError, Server
from tests.support.parts.vault_mounts import PKI, AppRole, Transit

KINDS = ("p256", "p384", "rsa2048", "ed25519")


@pytest.fixture(scope="module")
def hierarchy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vault_mounts.write_hierarchy(tmp_path_factory.mktemp("pki") / "hierarchy")


def _log_in(server: Server, approle: AppRole) -> API:
    fields = {"role_id": approle.role_id, "secret_id": approle.new_secret_id()}
    answer = server.api_with("").post(f"auth/{approle.mount}/login", **fields)
    return server.api_with(answer["client_token"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_issuer_has_its_key_inside_and_its_chain_in_a_file(
    vault_server: Server, hierarchy: Path, tmp_path: Path, kind: str
) -> None:
    pki = PKI.make(vault_server, hierarchy, tmp_path / "chain.pem", kind)
    issuer = vault_server.api.get(f"{pki.mount}/issuer/{pki.issuer}")
    (first, _) = x509.load_pem_x509_certificates(pki.chain.read_bytes())
    assert x509.load_pem_x509_certificate(issuer["certificate"].encode()) == first
    assert issuer["key_id"]


def test_another_issuer_leaves_the_default_one(
    vault_server: Server, hierarchy: Path, tmp_path: Path
) -> None:
    pki = PKI.make(vault_server, hierarchy, tmp_path / "chain.pem")
    other = pki.add_issuer(hierarchy, tmp_path / "other.pem")
    default = vault_server.api.get(f"{pki.mount}/config/issuers")["default"]
    assert default == pki.issuer != other
    pki.set_default(other)
    default = vault_server.api.get(f"{pki.mount}/config/issuers")["default"]
    assert default == other


@pytest.mark.parametrize("kind", KINDS)
def test_a_rotated_key_keeps_the_version_of_its_chain(
    vault_server: Server, hierarchy: Path, tmp_path: Path, kind: str
) -> None:
    transit = Transit.make(vault_server, hierarchy, tmp_path / "chain.pem", kind)
    first = x509.load_pem_x509_certificates(transit.chain.read_bytes())[0]
    assert transit.authority.certificate == first
    assert transit.rotate() != first.public_key()
    keys = vault_server.api.get(f"{transit.mount}/keys/{transit.key}")["keys"]
    assert sorted(keys) == ["1", "2"]


def test_a_policy_permits_its_paths_and_nothing_else(
    vault_server: Server, hierarchy: Path, tmp_path: Path
) -> None:
    transit = Transit.make(vault_server, hierarchy, tmp_path / "chain.pem")
    policy = vault_mounts.write_policy(vault_server, transit.rules)
    api = _log_in(vault_server, AppRole.make(vault_server, policy))
    api.post(f"{transit.mount}/sign/{transit.key}", input="AAAA")
    with pytest.raises(AnswerError, match=r"(?s)^403: .*permission denied"):
        api.post(f"{transit.mount}/keys/{transit.key}/rotate")


def test_the_audit_log_has_the_id_of_the_attempt(
    vault_server: Server, tmp_path: Path
) -> None:
    name = vault_mounts.audit_to(vault_server, tmp_path / "audit")
    headers = vault_server.api.get("sys/config/auditing/request-headers")["headers"]
    vault_server.api.delete(f"sys/audit/{name}")
    assert headers[vault_mounts.ATTEMPT_HEADER] == {"hmac": False}
    assert (tmp_path / "audit").read_text("utf-8")
