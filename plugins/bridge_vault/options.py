"""The options of the plugins `vault-pki` and `vault-transit`, checked without Vault."""

import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field

from bridge.sdk import (
    FileOption,
    PluginOptions,
    option_error,
    parse_certificates,
    parse_options,
    read_public,
    read_secret,
)
from bridge.spi import ConfigError, PluginContext

_Text = Annotated[str, Field(min_length=1)]
_Path = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
_UUID = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_KUBERNETES_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class TokenLogin(PluginOptions):
    """`login.token`: a token that somebody else writes, such as Vault's agent."""

    file: FileOption
    """The token, in a file that only its owner can read. It is read every 5 s, and when
    Vault refuses the token."""


class AppRoleLogin(PluginOptions):
    """`login.approle`."""

    role_id: _Text
    """The RoleID, which is no secret."""
    secret_id_file: FileOption
    """The SecretID, in a file that only its owner can read. It is read at each login. A
    SecretID that was refused is not tried again."""
    mount: _Path = "approle"
    """Where the method is mounted, under `auth/`."""


class KubernetesLogin(PluginOptions):
    """`login.kubernetes`."""

    role: _Text
    """The role of the method."""
    token_file: FileOption = _KUBERNETES_TOKEN
    """The service account's token. It is read at each login."""
    mount: _Path = "kubernetes"
    """Where the method is mounted, under `auth/`."""


class JWTLogin(PluginOptions):
    """`login.jwt`."""

    role: _Text
    """The role of the method."""
    token_file: FileOption
    """The JWT. It is read at each login."""
    mount: _Path = "jwt"
    """Where the method is mounted, under `auth/`."""


class TLSLogin(PluginOptions):
    """`login.tls`: the method `cert`."""

    certificate_file: FileOption
    """The client certificate and its intermediates."""
    key_file: FileOption
    """Its key, in a file that only its owner can read."""
    role: _Text | None = None
    """The role of the method; without one Vault tries all of them."""
    mount: _Path = "cert"
    """Where the method is mounted, under `auth/`."""


class Login(PluginOptions):
    """`login`. Exactly one of these is given."""

    token: TokenLogin | None = None
    approle: AppRoleLogin | None = None
    kubernetes: KubernetesLogin | None = None
    jwt: JWTLogin | None = None
    tls: TLSLogin | None = None


Method = TokenLogin | AppRoleLogin | KubernetesLogin | JWTLogin | TLSLogin


class VaultOptions(PluginOptions):
    """The options that both backends have. Beside them, `chain` is required."""

    addresses: Annotated[tuple[_Text, ...], Field(min_length=1, strict=False)]
    """`https://host:port`, of one cluster, in order of preference. Without TLS only on
    loopback."""
    ca_file: FileOption | None = None
    """The CAs of the server's certificate, in PEM; by default those of the system."""
    namespace: _Path | None = None
    """The namespace of the mount and of the login."""
    login: Login
    """How the bridge logs in."""
    allow_group_read: bool = False
    """Accept secrets that their group may read, such as a Secret that is mounted with
    an fsGroup."""

    @property
    def method(self) -> Method:
        """The login that is given."""
        login = self.login
        found = login.token or login.approle or login.kubernetes or login.jwt
        method = found or login.tls
        assert method is not None  # noqa: S101 - `options_of` has seen to it
        return method


class PKIOptions(VaultOptions):
    """`issuing_cas.<name>.options` of `vault-pki`."""

    mount: _Path = "pki"
    """Where the PKI engine is mounted."""
    issuer: _UUID
    """The issuer's ID. Names and the default issuer can be moved to another one."""
    role: _Name
    """The role that the leaves are signed under."""
    issuing_certificate_urls: Annotated[tuple[_Text, ...], Field(strict=False)] = ()
    """The AIA URLs of the issuing CA that Vault adds to each leaf, in its order."""
    ocsp_servers: Annotated[tuple[_Text, ...], Field(strict=False)] = ()
    """The OCSP URLs that Vault adds to each leaf, in its order."""
    crl_distribution_points: Annotated[tuple[_Text, ...], Field(strict=False)] = ()
    """The CRL URLs that Vault adds to each leaf, in its order."""


class TransitOptions(VaultOptions):
    """`issuing_cas.<name>.options` of `vault-transit`."""

    mount: _Path = "transit"
    """Where the Transit engine is mounted."""
    key: _Name
    """The name of the key."""
    key_version: Annotated[int, Field(ge=1)] = 1
    """The version whose public key is in the issuing CA's certificate. A rotation of
    the key does not change it."""


Options = TypeVar("Options", bound=VaultOptions)


def options_of(
    model: type[Options], options: Mapping[str, object], context: PluginContext
) -> Options:
    """Check the options, and of their files what can be checked without Vault.

    Raises:
        ConfigError: The message lists every problem, one a line.
    """
    parsed = parse_options(model, options, context)
    problems = [
        option_error(context, f"options.addresses.{number}", text)
        for number, address in enumerate(parsed.addresses)
        if (text := _unusable(address))
    ]
    given = [name for name, one in parsed.login if one is not None]
    if len(given) != 1:
        known, found = ", ".join(Login.model_fields), " and ".join(given) or "none"
        text = f"expected one of {known} (found {found})"
        problems.append(option_error(context, "options.login", text))
    if parsed.login.tls and any(one.startswith("http:") for one in parsed.addresses):
        text = "expected addresses with https: without TLS no certificate is shown"
        problems.append(option_error(context, "options.login.tls", text))
    if problems:
        told = "\n".join(str(problem) for problem in problems)
        raise ConfigError(told, rule=problems[0].rule)
    return parsed


def _unusable(address: str) -> str:
    expected = f"expected https://HOST:PORT (found {address[:80]!r}"
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"{expected}: {error})"
    if parts.scheme not in {"http", "https"} or not host:
        return f"{expected})"
    if parts.username or parts.password or parts.query or parts.fragment:
        return f"{expected}: more than scheme, host, port and path)"
    if parts.scheme == "http" and not _is_loopback(host):
        return f"{expected}: without TLS, tokens and requests are open to the network)"
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls_of(options: VaultOptions, context: PluginContext) -> ssl.SSLContext | None:
    """Return how the server is verified, and the client certificate of `login.tls`.

    Raises:
        ConfigError: A file cannot be used.
    """
    if not any(address.startswith("https") for address in options.addresses):
        return None
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    # A CA in `ca_file` is trusted, root or not, as by Vault's own client.
    tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if options.ca_file is None:
        tls.load_default_certs()
    else:
        try:
            found = parse_certificates(
                read_public(options.ca_file), str(options.ca_file)
            )
            tls.load_verify_locations(
                cadata=b"".join(one.public_bytes(Encoding.DER) for one in found)
            )
        except (ConfigError, ssl.SSLError) as error:
            text = f"{error}: expected the CAs of the server's certificate, in PEM"
            raise option_error(context, "options.ca_file", text) from error
    if isinstance(options.method, TLSLogin):
        _load_client(tls, options.method, options, context)
    return tls


def _load_client(
    tls: ssl.SSLContext, method: TLSLogin, options: VaultOptions, context: PluginContext
) -> None:
    try:
        read_public(method.certificate_file)
        read_secret(method.key_file, allow_group_read=options.allow_group_read)
        # Without a password, OpenSSL would ask for one at the terminal.
        tls.load_cert_chain(method.certificate_file, method.key_file, password="")
    except ConfigError as error:
        raise option_error(context, "options.login.tls", str(error)) from error
    except (OSError, ssl.SSLError) as error:
        text = (
            f"{method.certificate_file} and {method.key_file}: expected a client "
            f"certificate and its key without a password, in PEM ({error})"
        )
        raise option_error(context, "options.login.tls", text) from error


def files_of(options: VaultOptions) -> Sequence[Path]:
    """Return the files whose change makes another issuing CA of the same options.

    Tokens and JWTs are not among them: they are read when they are needed.
    """
    method = options.method
    found = [options.ca_file]
    if isinstance(method, TLSLogin):
        found += [method.certificate_file, method.key_file]
    return [path for path in found if path is not None]
