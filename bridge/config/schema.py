"""The sections of the configuration file: which keys there are, and what they may be.

`make docs` writes the tables of `docs/reference/configuration.md` from it.
"""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bridge.config.section import Section
from bridge.config.types import (
    Address,
    ArchiveURL,
    ClusterName,
    Duration,
    FilePath,
    Hosts,
    HttpsURL,
    Label,
    Name,
    Names,
    PositiveDuration,
    PositiveNumber,
    Some,
    Text,
    TrustDomainName,
    UpToAMinute,
    WholeSeconds,
    WrongError,
    require_https,
    written,
)


class ServingConfig(Section):
    """`fronts.istio.tls`: the listener's certificate.

    The bridge issues it to itself for `dns_names`, unless `certificate` and `key` are
    given.
    """

    dns_names: Hosts = ()
    """The host of `caAddress`. The bridge issues its serving certificate to itself for
    these names. Required, unless `certificate` is given."""
    ttl: WholeSeconds | None = None
    """Lifetime of that certificate, above `issuance.backdate`. By default 24h, or
    `issuance.max_ttl` if that is shorter."""
    certificate: FilePath | None = None
    """A serving certificate of your own instead, with its chain, in PEM. Needs
    `key`."""
    key: FilePath | None = None
    """The private key of `certificate`. Only the owner of the file, and its group, may
    read it."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key are given together or not at all")
        if self.certificate is None and not self.dns_names:
            raise ValueError("expected dns_names (the host of caAddress) or a key pair")
        return self


class IstioConfig(Section):
    """`fronts.istio`."""

    listen: Address
    """TLS. Callers authenticate with a token."""
    mtls_listen: Address | None = None
    """A second port, where a client certificate is required and is the credential."""
    audiences: Annotated[Names, Some] = ("istio-ca",)
    """A token must be for one of these audiences."""
    tls: ServingConfig


class LinkerdConfig(Section):
    """`fronts.linkerd`."""

    listen: Address
    """HTTP/2 without TLS: the sidecar of the bridge's own pod terminates TLS. Linkerd's
    chart expects `0.0.0.0:8080`, as the sidecar calls the pod's own address."""
    audiences: Annotated[Names, Some] = ("identity.l5d.io",)
    """A token must be for one of these audiences."""
    control_plane_namespace: Label = "linkerd"
    """Part of every identity."""
    cluster: ClusterName | None = None
    """The cluster whose tokens callers show, one of `clusters`. By default the
    first."""
    trust_domain: TrustDomainName | None = None
    """Linkerd's `identityTrustDomain`. By default the trust domain of the cluster."""
    spiffe_uri: bool = False
    """Whether the leaf has the SPIFFE ID beside its DNS name. Refused in a trust domain
    that the Istio front issues for."""
    in_flight: Annotated[int, Field(ge=1, le=100_000)] = 4096
    """As `limits.in_flight`, for this front."""
    queue_seconds: Annotated[PositiveNumber, Field(le=100)] = 30
    """As `limits.queue_seconds`, for this front. Proxies wait without a deadline, and a
    refused proxy comes back only after 10 s."""
    deadline: PositiveDuration = timedelta(seconds=40)
    """As `limits.deadline`, for this front. Above `queue_seconds`."""

    @model_validator(mode="after")
    def _has_time_left(self) -> Self:
        if self.queue_seconds >= self.deadline.total_seconds():
            raise WrongError(
                "expected queue_seconds below deadline: what has waited for so long "
                "could not be worked on",
                f"queue_seconds {self.queue_seconds:g}, deadline "
                f"{written(self.deadline)}",
            )
        return self


class FrontsConfig(Section):
    """`fronts`: one or more."""

    istio: IstioConfig | None = None
    linkerd: LinkerdConfig | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if self.istio is None and self.linkerd is None:
            raise WrongError("expected a front: istio, linkerd, or both", "none")
        return self

    def addresses(self) -> dict[str, str]:
        """Return what is listened on, by key."""
        found = {
            "fronts.istio.listen": self.istio.listen if self.istio else None,
            "fronts.istio.mtls_listen": self.istio.mtls_listen if self.istio else None,
            "fronts.linkerd.listen": self.linkerd.listen if self.linkerd else None,
        }
        return {key: address for key, address in found.items() if address is not None}


class TokensConfig(Section):
    """`clusters[].tokens`: how this cluster's service-account tokens are verified."""

    verify: Literal["jwks"]
    """Signature, issuer, audience and time are verified offline, with the cluster's
    public keys."""
    issuer: Text
    """The value of `iss`, character for character."""
    file: FilePath | None = None
    """The public keys, as a JWK Set. Exactly one of `file`, `url` and `discovery` is
    given."""
    url: HttpsURL | None = None
    """Where the public keys are fetched, by `https://` only."""
    discovery: bool = False
    """Fetch the address of the keys from
    `<issuer>/.well-known/openid-configuration`."""
    ca_file: FilePath | None = None
    """Trust anchors for `url` and `discovery`. By default those of the system."""
    max_key_age: PositiveDuration = timedelta(hours=24)
    """Keys are trusted for this long after they were last confirmed."""
    refresh_floor: Duration = timedelta(seconds=10)
    """The shortest time between two refreshes that an unknown key ID causes."""

    @property
    def source_key(self) -> str:
        """The one key of this section that says where the keys are."""
        if self.file is not None:
            return "file"
        return "discovery" if self.url is None else "url"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.file is None, self.url is None, not self.discovery].count(False) != 1:
            raise ValueError("expected one of file, url and discovery: true")
        if self.discovery:
            require_https(self.issuer)
        if self.file is not None and self.ca_file is not None:
            raise WrongError(
                "expected ca_file beside url or discovery only: a file is not fetched",
                "ca_file beside file",
            )
        return self


class ClusterConfig(Section):
    """`clusters[]`: one cluster and the names that its callers may get."""

    name: ClusterName
    """As in the header `clusterid`."""
    aliases: Names = ()
    """Other values of `clusterid` that mean this cluster."""
    trust_domain: TrustDomainName | None = None
    """By default the top-level `trust_domain`."""
    namespaces: Names | None = None
    """The namespaces whose callers get certificates; `["*"]` is all. By default all for
    the first cluster and none for the others."""
    tokens: TokensConfig


class IssuingCAConfig(Section):
    """`issuing_cas.<name>`: one issuing CA and how to reach it."""

    plugin: Name
    """The backend. `meshca plugins` lists those that are installed."""
    chain: FilePath | None = None
    """PEM: the issuing CA, then the intermediates, without the root. Not for a plugin
    that finds the chain itself."""
    timeout: PositiveDuration = timedelta(seconds=5)
    """The longest that one signature may take."""
    options: dict[str, object] = {}  # noqa: RUF012 - pydantic copies it
    """The options of the plugin; see below. Secrets are given as paths of files."""


class CeilingConfig(Section):
    """`limits.per_identity` and `limits.per_cluster`: how often one may ask."""

    rate: PositiveNumber
    """Calls per second, on average."""
    burst: Annotated[int, Field(ge=1)]
    """Calls that may come at once. The pods of one restart share an identity."""


class LimitsConfig(Section):
    """`limits`."""

    in_flight: Annotated[int, Field(ge=1, le=100_000)] = 4096
    """Calls of the Istio front that wait or are worked on. Further calls are refused at
    once. A bound on memory: some 0.1 MiB for each, with its connection."""
    queue_seconds: Annotated[PositiveNumber, Field(le=60)] = 1.25
    """The longest that a call of the Istio front waits for its turn. Then it is
    refused, and nothing was done for it."""
    deadline: PositiveDuration = timedelta(seconds=10)
    """The longest that a call of the Istio front may take, whatever deadline its client
    sets."""
    drain: Duration = timedelta(seconds=15)
    """How long calls in progress may take to finish after SIGTERM."""
    threads: Annotated[int, Field(ge=1, le=256)] = 24
    """Threads that work on the calls of one front."""
    per_identity: CeilingConfig | None = None
    """No ceiling by default: the right one depends on how many pods share a name."""
    per_cluster: CeilingConfig | None = None


class LagConfig(Section):
    """`ledger.max_lag`: when the archive is further behind, issuing stops."""

    entries: Annotated[int, Field(ge=1)] = 10_000
    """When the archive is more rows behind than this, issuing stops. From half of it
    on, issuing slows down."""
    seconds: PositiveNumber = 60
    """The same in time, without slowing down first."""


class HeadsConfig(Section):
    """`ledger.heads`: where the signed tips of the journals go."""

    sink: FilePath
    """The file that gets the signed heads of the journals. Its folder must exist, best
    on another disk or host."""
    key: FilePath | None = None
    """Ed25519 key (PKCS#8 PEM). By default one is made beside the journal."""
    interval: UpToAMinute = timedelta(seconds=30)
    """How often a head is published, if it has moved."""


class LedgerConfig(Section):
    """`ledger`."""

    journal: FilePath
    """The folder of the journals, on a local disk. Made if it does not exist."""
    archive: ArchiveURL
    """`sqlite:///archive.db` is a file beside the configuration file, in a folder that
    exists. No password: PostgreSQL has `~/.pgpass` and service files."""
    max_lag: LagConfig = LagConfig()
    heads: HeadsConfig
    refusals_per_second: Annotated[int, Field(ge=1)] = 50
    """Unauthenticated calls above this rate share one summary row per second, and so do
    calls above a rate limit. The log has a line for each row."""


class AdminConfig(Section):
    """`admin`: health and metrics, on an address of their own."""

    listen: Address = "127.0.0.1:9990"
    """HTTP: `/healthz`, `/readyz`, `/metrics`, and Linkerd's `/ping` and `/ready`."""
    grpc_listen: Address | None = None
    """gRPC health (`grpc.health.v1`) and reflection. Without it neither is served: the
    ports of the fronts answer only the CA's method. It has no authentication, and who
    can reach it can keep it busy, so use the loopback address or restrict access to it.
    With several workers, each answers for itself."""

    def addresses(self) -> dict[str, str]:
        """Return each address to listen on, by key."""
        found = {"admin.listen": self.listen}
        if self.grpc_listen is not None:
            found["admin.grpc_listen"] = self.grpc_listen
        return found
