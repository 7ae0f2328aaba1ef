"""The sections of clusters: their names, and how their tokens are verified."""

import urllib.parse
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bridge.config.types import (
    ClusterName,
    Duration,
    FilePath,
    Headers,
    HttpsURL,
    Label,
    Names,
    NodeAccounts,
    PositiveDuration,
    Section,
    Some,
    Text,
    TrustDomainName,
    WrongError,
    require_https,
    written,
)

_LEAST_WATCH_AGE = timedelta(minutes=2)


class _OfflineConfig(Section):
    # What is needed to verify a token by its cluster's keys.
    issuer: Text | None = None
    """The value of `iss`, character for character. Either `issuer` or `issuers` is
    given."""
    issuers: Annotated[Names, Some] | None = None
    """While the cluster's issuer is being changed: each value of `iss` that is
    accepted, the current one first. Discovery asks at the first."""
    max_key_age: PositiveDuration = timedelta(hours=24)
    """Keys are trusted for this long after they were last confirmed."""
    refresh_floor: Duration = timedelta(seconds=10)
    """The shortest time between two refreshes that an unknown key ID causes."""

    @property
    def accepted_issuers(self) -> tuple[str, ...]:
        """The values of `iss` that are accepted; the current one first."""
        return self.issuers or (self.issuer or "",)

    @model_validator(mode="after")
    def _has_issuer(self) -> Self:
        if (self.issuer is None) == (self.issuers is None):
            raise WrongError(
                "expected issuer, or issuers while it is being changed",
                "neither" if self.issuer is None else "both",
            )
        return self


class JWKSConfig(_OfflineConfig):
    """`clusters[].tokens` with `verify: jwks`: tokens are verified offline."""

    verify: Literal["jwks"]
    """`jwks`: signature, issuer, audience and time are verified offline, with the
    cluster's public keys. `token_review`: the cluster's API server reviews each token,
    and knows of pods that are gone. `bound`: tokens are verified offline, with keys
    from the API server, and a watch tells of pods and accounts that are gone."""
    file: FilePath | None = None
    """The public keys, as a JWK Set. Exactly one of `file`, `url` and `discovery` is
    given."""
    url: HttpsURL | None = None
    """Where the public keys are fetched, by `https://` only."""
    discovery: bool = False
    """Fetch the address of the keys from
    `<issuer>/.well-known/openid-configuration`."""
    ca_file: FilePath | None = None
    """Trust anchors for `url` and `discovery`, read again when the file changes. By
    default those of the system."""
    token_file: FilePath | None = None
    """A bearer token for `url` and `discovery`, read again for each fetch. An API
    server asks for one by default. Needs `ca_file`: the token is sent only to servers
    with a certificate under it."""

    @property
    def source_key(self) -> str:
        """The one key of this section that says where the keys are."""
        if self.file is not None:
            return "file"
        return "discovery" if self.url is None else "url"

    @property
    def place(self) -> str:
        """Where the keys are, as a message names it."""
        return str(self.file or self.url or self.accepted_issuers[0])

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.file is None, self.url is None, not self.discovery].count(False) != 1:
            raise ValueError("expected one of file, url and discovery: true")
        if self.discovery:
            require_https(self.accepted_issuers[0])
        for key in ("ca_file", "token_file") if self.file is not None else ():
            if getattr(self, key) is not None:
                raise WrongError(
                    f"expected {key} beside url or discovery only: a file is not "
                    "fetched",
                    f"{key} beside file",
                )
        if self.token_file is not None and self.ca_file is None:
            raise ValueError(
                "expected ca_file beside token_file: the token is sent only to servers "
                "with a certificate under these trust anchors"
            )
        return self


def _server_url(value: str) -> str:
    parts = urllib.parse.urlsplit(value)
    try:
        is_good = parts.scheme == "https" and parts.hostname and parts.port != 0
    except ValueError:
        is_good = False
    rest = (parts.path.strip("/"), parts.query, parts.fragment, parts.username)
    if not is_good or any(rest) or any(map(str.isspace, value)):
        raise ValueError("expected https://HOST:PORT")
    return value


_ServerURL = Annotated[str, AfterValidator(_server_url)]


class APIServerConfig(Section):
    """What `clusters[].tokens` says of the API server that is asked."""

    server: _ServerURL | None = None
    """The API server, as `https://HOST:PORT`. By default that of the cluster in whose
    pod the bridge runs, with the credentials of the pod."""
    ca_file: FilePath | None = None
    """Trust anchors of `server`, read again when the file changes."""
    token_file: FilePath | None = None
    """The bridge's own bearer token for `server`, read again every minute and when it
    is refused. Either this or a client certificate is given."""
    client_certificate_file: FilePath | None = None
    """The bridge's client certificate for `server`, with its chain, in PEM. Read again
    when the file changes."""
    client_key_file: FilePath | None = None
    """The private key of `client_certificate_file`. Only the owner of the file, and its
    group, may read it."""
    kubeconfig: FilePath | None = None
    """In place of `server` and its files: a kubeconfig. It is read again when it
    changes. Only its owner, and its group, may read it. Its exec plugin runs as the
    bridge's user."""
    context: Text | None = None
    """The context of `kubeconfig`. By default its `current-context`."""
    timeout: PositiveDuration = timedelta(seconds=5)
    """The longest that one request to the API server may take. The call of a workload
    ends with UNAVAILABLE after it, which clients try again."""

    @model_validator(mode="after")
    def _is_reachable(self) -> Self:
        files = ("ca_file", "token_file", "client_certificate_file", "client_key_file")
        given = [key for key in files if getattr(self, key) is not None]
        if self.context is not None and self.kubeconfig is None:
            raise ValueError("expected kubeconfig beside context")
        if self.kubeconfig is not None:
            beside = [*(["server"] if self.server else []), *given]
            if beside:
                raise WrongError(
                    f"expected either kubeconfig or {beside[0]}", "both of them"
                )
            return self
        if self.server is None:
            if given:
                raise WrongError(
                    f"expected server beside {given[0]}; without server, the bridge "
                    "uses the credentials of its pod",
                    f"{' and '.join(given)} without server",
                )
            return self
        if (self.client_certificate_file is None) != (self.client_key_file is None):
            raise ValueError(
                "expected client_certificate_file and client_key_file together"
            )
        if self.ca_file is None:
            raise ValueError("expected ca_file beside server")
        if (self.token_file is None) == (self.client_certificate_file is None):
            raise WrongError(
                "expected either token_file, or client_certificate_file with its key, "
                "beside server",
                "neither" if self.token_file is None else "both",
            )
        return self


class _RemoteConfig(APIServerConfig):
    # What may be in a remote secret in place of the section.
    remote_secret: bool = False
    """In place of `server` and `kubeconfig`: the kubeconfig is in the secret of Istio
    that has the cluster's name, or an alias, as its key. See `remote_secrets`."""

    @model_validator(mode="after")
    def _is_one_way(self) -> Self:
        ways = ("server", "kubeconfig")
        given = [key for key in ways if getattr(self, key) is not None]
        if self.remote_secret and given:
            raise WrongError(
                f"expected either remote_secret or {given[0]}", "both of them"
            )
        return self


class TokenReviewConfig(_RemoteConfig):
    """`clusters[].tokens` with `verify: token_review`: the API server is asked."""

    verify: Literal["token_review"] = "token_review"


class RemoteSecretsConfig(APIServerConfig):
    """`remote_secrets`: the secrets of Istio that have kubeconfigs of clusters.

    Its keys for the API server are those of the cluster that has the secrets.
    """

    namespace: Label
    """The namespace of the secrets with the label `istio/multiCluster=true`. Whoever
    may write them chooses which API server vouches for a cluster."""
    allowed_commands: Names = ()
    """The programs that a secret may name as exec plugins, character for character.
    The secret chooses their arguments and environment: it runs programs in the CA."""
    allowed_files: Annotated[tuple[FilePath, ...], Field(strict=False)] = ()
    """The files of the bridge's host that a secret may name."""


class BoundConfig(_OfflineConfig, _RemoteConfig):
    """`clusters[].tokens` with `verify: bound`: offline, and by a watch of pods."""

    verify: Literal["bound"]
    max_watch_age: PositiveDuration = timedelta(minutes=3)
    """With `bound`: how long the watch is believed after it last heard of the API
    server. After that, the API server reviews each token. At least 2m: a watch of what
    does not change hears of it about once a minute."""

    @model_validator(mode="after")
    def _hears_in_time(self) -> Self:
        if self.max_watch_age < _LEAST_WATCH_AGE:
            raise WrongError(
                "expected max_watch_age of at least 2m: a watch of what does not "
                "change hears of the API server about once a minute",
                written(self.max_watch_age),
            )
        return self


_BY_VERIFY: dict[str, type[JWKSConfig | TokenReviewConfig | BoundConfig]] = {
    "jwks": JWKSConfig,
    "token_review": TokenReviewConfig,
    "bound": BoundConfig,
}


def _by_verify(value: object, info: ValidationInfo) -> object:
    # A union of pydantic's own would put the choice into the path of each key.
    wanted: object = "jwks"
    if isinstance(value, Mapping):
        # The weaker mode is never taken unsaid.
        names_keys = not value.keys().isdisjoint(("file", "url"))
        wanted = value.get("verify", "jwks" if names_keys else "token_review")
    kind = _BY_VERIFY.get(wanted) if isinstance(wanted, str) else None
    if kind is None:
        *most, last = _BY_VERIFY
        expected = f"expected {', '.join(most)} or {last}"
        error = PydanticCustomError("verify", "{expected}", {"expected": expected})
        raise ValidationError.from_exception_data(
            "tokens", [{"type": error, "loc": ("verify",), "input": wanted}]
        )
    return kind.model_validate(value, context=info.context)


TokensConfig = Annotated[
    JWKSConfig | TokenReviewConfig | BoundConfig, BeforeValidator(_by_verify)
]
"""How a cluster's service-account tokens are verified."""


class ClusterConfig(Section):
    """`clusters[]`: one cluster and the names that its callers may get."""

    name: ClusterName
    """As in the header `clusterid`."""
    aliases: Headers = ()
    """Other values of `clusterid` that mean this cluster."""
    trust_domain: TrustDomainName | None = None
    """By default the top-level `trust_domain`."""
    namespaces: Names | None = None
    """The namespaces whose callers get certificates; `["*"]` is all. By default all for
    the first cluster and none for the others."""
    trusted_node_accounts: NodeAccounts = ("istio-system/ztunnel",)
    """The accounts of ztunnel, each as `NAMESPACE/NAME`. Their pods get certificates
    for the other pods of their node, as the API server has them. `[]` allows nobody.
    Needs `tokens.verify: token_review` or `bound`."""
    tokens: TokensConfig

    @model_validator(mode="after")
    def _can_tell_nodes(self) -> Self:
        is_given = "trusted_node_accounts" in self.model_fields_set
        if is_given and self.trusted_node_accounts and self.tokens.verify == "jwks":
            raise WrongError(
                "expected tokens.verify: token_review or bound beside "
                "trusted_node_accounts: keys tell nothing of the pods on a node",
                "jwks",
            )
        return self

    def allowed_namespaces(self, *, is_first: bool) -> frozenset[str] | None:
        """Return the namespaces whose callers get certificates; `None` is all.

        Args:
            is_first: Whether it is the first of `clusters`. The namespaces of another
                cluster are other people's: by default, none of them is allowed.
        """
        if self.namespaces is None:
            return None if is_first else frozenset()
        return None if "*" in self.namespaces else frozenset(self.namespaces)
