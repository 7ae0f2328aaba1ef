"""The options of `vault-pki` and `vault-transit`: what each refuses, with a way out."""

import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from bridge.spi import ConfigError, PluginContext
from bridge_vault.options import (
    PKIOptions,
    TransitOptions,
    VaultOptions,
    options_of,
    tls_of,
)
from tests.support.parts.pki import bundle, key_pem, new_key, new_root, write_private

ISSUER = "0b51d2f0-6ff5-4a4c-9f0c-5a6bb2a5a3a1"
TOKEN = {"token": {"file": "token"}}
APPROLE = {"role_id": "r", "secret_id_file": "s"}
GOOD: Mapping[str, Any] = {"addresses": ["https://vault:8200"], "login": TOKEN}
PKI: Mapping[str, Any] = {**GOOD, "issuer": ISSUER, "role": "mesh"}
TRANSIT: Mapping[str, Any] = {**GOOD, "key": "issuing"}
TLS = {"certificate_file": "client.pem", "key_file": "client.key"}
MODELS: Mapping[str, tuple[type[VaultOptions], Mapping[str, Any]]] = {
    "pki": (PKIOptions, PKI),
    "transit": (TransitOptions, TRANSIT),
}


def context(base: Path) -> PluginContext:
    return PluginContext(name="v", base=base)


def parsed(kind: str, base: Path, **changes: Any) -> Any:
    model, good = MODELS[kind]
    given = {**good, **changes}
    return options_of(
        model, {name: one for name, one in given.items() if one != ""}, context(base)
    )


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("pki", {"addresses": ""}, "addresses: expected a value"),
    ("pki", {"addresses": []}, "addresses: Tuple should have at least 1 item"),
    ("pki", {"addresses": ["vault:8200"]}, "addresses.0: expected https://HOST:PORT"),
    ("pki", {"addresses": ["ftp://vault"]}, "addresses.0: expected https://HOST:PORT"),
    ("pki", {"addresses": ["https://vault:x"]}, "addresses.0: expected https://HOST"),
    ("pki", {"addresses": ["https://u:p@vault"]}, "more than scheme, host, port"),
    ("pki", {"addresses": ["http://vault:8200"]}, "without TLS, tokens and requests"),
    ("pki", {"addresses": ["http://10.0.0.1"]}, "without TLS, tokens and requests"),
    (
        "pki",
        {"addresses": ["https://a:1", "http://b:1"]},
        "addresses.1: expected https://HOST:PORT",
    ),
    ("pki", {"ca_file": 1}, "ca_file: "),
    ("pki", {"namespace": "/eu"}, "namespace: String should match"),
    ("pki", {"namespace": "eu/"}, "namespace: String should match"),
    ("pki", {"allow_group_read": "yes"}, "allow_group_read: "),
    ("pki", {"login": ""}, "login: expected a value"),
    ("pki", {"login": {}}, "expected one of token, approle, kubernetes, jwt, tls"),
    (
        "pki",
        {"login": {**TOKEN, "approle": APPROLE}},
        "(found token and approle)",
    ),
    ("pki", {"login": {"token": {}}}, "login.token.file: expected a value"),
    ("pki", {"login": {"token": {"file": "t", "token": "s.x"}}}, "unknown option"),
    ("pki", {"login": {"approle": {"role_id": "r"}}}, "secret_id_file: expected a"),
    ("pki", {"login": {"approle": {**APPROLE, "role_id": ""}}}, "role_id: String"),
    ("pki", {"login": {"approle": {**APPROLE, "mount": "/a"}}}, "mount: String"),
    ("pki", {"login": {"kubernetes": {}}}, "login.kubernetes.role: expected a value"),
    ("pki", {"login": {"jwt": {"role": "r"}}}, "login.jwt.token_file: expected a"),
    ("pki", {"login": {"tls": {"key_file": "k"}}}, "certificate_file: expected a"),
    (
        "pki",
        {"addresses": ["http://127.0.0.1:8200"], "login": {"tls": TLS}},
        "without TLS no certificate is shown",
    ),
    ("pki", {"mount": "/pki"}, "mount: String should match"),
    ("pki", {"issuer": ""}, "issuer: expected a value"),
    ("pki", {"issuer": "default"}, "issuer: String should match pattern"),
    ("pki", {"role": ""}, "role: expected a value"),
    ("pki", {"role": "a/b"}, "role: String should match pattern"),
    ("pki", {"issuing_certificate_urls": "http://a"}, "issuing_certificate_urls: "),
    ("pki", {"ocsp_servers": [""]}, "ocsp_servers.0: String should have at least"),
    ("pki", {"crl_distribution_points": [1]}, "crl_distribution_points.0: "),
    ("pki", {"key": "issuing"}, "key: unknown option"),
    ("transit", {"key": ""}, "key: expected a value"),
    ("transit", {"key": "a/b"}, "key: String should match pattern"),
    ("transit", {"key_version": 0}, "key_version: Input should be greater than"),
    ("transit", {"key_version": "1"}, "key_version: Input should be a valid integer"),
    ("transit", {"mount": "transit/"}, "mount: String should match pattern"),
    ("transit", {"role": "mesh"}, "role: unknown option"),
]


@pytest.mark.parametrize(("kind", "changes", "expected"), REFUSED)
def test_an_option_is_refused_with_its_key_and_what_was_expected(
    tmp_path: Path, kind: str, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=r"^issuing_cas\.v\.options\.") as raised:
        parsed(kind, tmp_path, **changes)
    assert expected in str(raised.value)


@pytest.mark.parametrize("kind", MODELS)
def test_every_option_has_a_case(kind: str) -> None:
    cases = {name for one, changes, _ in REFUSED if one == kind for name in changes}
    shared = {name for one, changes, _ in REFUSED if one == "pki" for name in changes}
    assert {*MODELS[kind][0].model_fields} <= cases | shared


@pytest.mark.parametrize(
    "address",
    [
        "https://vault:8200",
        "http://127.0.0.1:8200",
        "http://[::1]:1",
        "http://localhost",
    ],
)
def test_an_address_has_tls_or_is_on_loopback(tmp_path: Path, address: str) -> None:
    assert parsed("pki", tmp_path, addresses=[address]).addresses == (address,)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options\.addresses\.0: ") as raised:
        parsed("pki", tmp_path, addresses=["a", "http://b"], login={})
    assert len(str(raised.value).splitlines()) == 3


class TestFiles:
    @pytest.fixture
    def client(self, tmp_path: Path) -> Path:
        now = datetime.now(UTC)
        root, key = new_root("CA of clients"), new_key()
        leaf = root.issue_leaf(
            x509.DNSName("bridge.example"),
            key=key,
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(days=1),
        )
        (tmp_path / "client.pem").write_bytes(bundle(leaf))
        write_private(tmp_path / "client.key", key_pem(key))
        (tmp_path / "ca.pem").write_bytes(root.pem)
        return tmp_path

    def tls(self, base: Path, **changes: Any) -> ssl.SSLContext | None:
        return tls_of(parsed("pki", base, **changes), context(base))

    def test_the_cas_of_the_file_are_trusted_and_no_others(self, client: Path) -> None:
        text = "# Größe\n".encode() + (client / "ca.pem").read_bytes()
        (client / "ca.pem").write_bytes(text)
        tls = self.tls(client, ca_file="ca.pem", login={"tls": TLS})
        assert tls is not None
        assert len(tls.get_ca_certs()) == 1
        assert tls.verify_mode == ssl.CERT_REQUIRED
        assert tls.check_hostname
        assert tls.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate

    def test_loopback_needs_no_tls(self, tmp_path: Path) -> None:
        assert self.tls(tmp_path, addresses=["http://127.0.0.1:8200"]) is None

    @pytest.mark.parametrize(
        "harm",
        [
            lambda path: path.unlink(),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(b"-----BEGIN CERTIFICATE-----\n"),
            lambda path: path.write_bytes(path.read_bytes()[:-60]),
            lambda path: (path.unlink(), path.mkdir()),
        ],
        ids=["absent", "empty", "damaged", "cut", "a folder"],
    )
    def test_a_ca_file_that_holds_no_ca_is_refused(
        self, client: Path, harm: Callable[[Path], object]
    ) -> None:
        harm(client / "ca.pem")
        with pytest.raises(ConfigError, match=r"options\.ca_file: .*ca\.pem") as raised:
            self.tls(client, ca_file="ca.pem")
        assert "expected the CAs of the server's certificate" in str(raised.value)

    @pytest.mark.parametrize(
        ("harm", "expected"),
        [
            (lambda base: (base / "client.pem").unlink(), "client.pem"),
            (lambda base: (base / "client.key").unlink(), "client.key"),
            (lambda base: (base / "client.key").chmod(0o644), "run chmod 600"),
            (lambda base: (base / "client.pem").write_bytes(b"x"), "expected a client"),
            (
                lambda base: write_private(base / "client.key", key_pem(new_key())),
                "expected a client certificate and its key",
            ),
            (
                lambda base: write_private(
                    base / "client.key",
                    new_key().private_bytes(
                        Encoding.PEM,
                        PrivateFormat.PKCS8,
                        BestAvailableEncryption(b"password"),
                    ),
                ),
                "its key without a password",
            ),
        ],
        ids=["no certificate", "no key", "open", "damaged", "another key", "password"],
    )
    def test_a_client_certificate_that_cannot_be_used_is_refused(
        self, client: Path, harm: Callable[[Path], object], expected: str
    ) -> None:
        harm(client)
        with pytest.raises(ConfigError, match=r"options\.login\.tls: ") as raised:
            self.tls(client, login={"tls": TLS})
        assert expected in str(raised.value)
