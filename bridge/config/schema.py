"""The sections of the configuration file: which keys there are, and what they may be.

`make docs` writes the tables of `docs/reference/configuration.md` from it.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bridge.config.clusters import ClusterConfig, RemoteSecretsConfig
from bridge.config.first_match import Conditions
from bridge.config.types import (
    SHA256,
    Address,
    ArchiveURL,
    ClusterName,
    DataPlanes,
    Duration,
    FilePath,
    Fronts,
    Hosts,
    IssuerNames,
    Label,
    Name,
    Names,
    Namespaces,
    PositiveDuration,
    PositiveNumber,
    ReplicaName,
    Section,
    ServiceAccounts,
    Some,
    Text,
    TrustDomainName,
    UpToAMinute,
    ValidationState,
    WholeSeconds,
    WorkerCount,
    WrongError,
    written,
)
from bridge.resilience.latch_file import STATE_FOLDER


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


class RenewalConfig(Section):
    """`fronts.istio.mtls_identities[]`: callers that may renew by certificate.

    An entry matches a caller that is listed under each of its keys. A key that is left
    out matches every caller; one of the two is given.
    """

    namespaces: Annotated[Namespaces, Some] | None = None
    """The namespace of the caller, as in its certificate."""
    service_accounts: Annotated[ServiceAccounts, Some] | None = None
    """Names without the namespace. `namespaces` says which namespaces are meant."""

    @property
    def conditions(self) -> Conditions:
        """What a caller must match: namespace, service account."""
        return tuple(
            None if names is None else frozenset(names)
            for names in (self.namespaces, self.service_accounts)
        )

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_null(cls, value: object) -> object:
        # A list that lost its last entry would match everybody.
        if value is None:
            raise ValueError("expected a value; leave the key out where all are meant")
        return value

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if self.namespaces is None and self.service_accounts is None:
            raise WrongError("expected namespaces, service_accounts, or both", "none")
        return self


class IstioConfig(Section):
    """`fronts.istio`."""

    listen: Address
    """TLS. Callers authenticate with a token."""
    mtls_listen: Address | None = None
    """A second port, where a client certificate is required and is the credential."""
    mtls_identities: Annotated[tuple[RenewalConfig, ...], Field(strict=False)] = ()
    """Who gets a new certificate for one that the bridge has issued. By default nobody:
    a stolen key could be renewed for as long as nobody notices."""
    mtls_max_age: PositiveDuration = timedelta(days=30)
    """The longest time since a token last proved the caller. After that, it has to show
    a token again, on `listen`."""
    audiences: Annotated[Names, Some] = ("istio-ca",)
    """A token must be for one of these audiences."""
    data_planes: Annotated[DataPlanes, Some] = ("sidecar",)
    """Who verifies the certificates: `sidecar` is Envoy, beside a workload or as a
    gateway or waypoint, and `ambient` is ztunnel. A chain that one of these rejects is
    refused; what only the others reject is a warning. Linkerd's front serves
    linkerd2-proxy."""
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
    events: bool = True
    """Whether certificates are told as events of their service accounts, as
    linkerd-identity does: at most one in five minutes for an account, from each worker.
    Only where the cluster has `tokens.verify: token_review` or `bound`."""

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
        """Return the addresses that are listened on, by key."""
        found = {
            "fronts.istio.listen": self.istio.listen if self.istio else None,
            "fronts.istio.mtls_listen": self.istio.mtls_listen if self.istio else None,
            "fronts.linkerd.listen": self.linkerd.listen if self.linkerd else None,
        }
        return {key: address for key, address in found.items() if address is not None}


class IssuingCAConfig(Section):
    """`issuing_cas.<name>`: one issuing CA and how to reach it."""

    plugin: Name
    """The backend. `meshca plugins` lists those that are installed."""
    chain: FilePath | None = None
    """PEM: the issuing CA and its intermediates, in any order; the issuing CA first
    where the key is not in a file. Not for a plugin that finds the chain itself."""
    timeout: PositiveDuration = timedelta(seconds=2)
    """The longest that one signature may take. An issuing CA that is slower counts as
    failing, and its calls go to the next one where there is one."""
    assurance: Literal["hsm", "service"] | None = None
    """By default as the plugin has it: `file`, `hsm` or `service`. The issuing CAs of a
    list need the same, since failover may not lower it. Declare it where an HSM and a
    Vault are equals. A key in a file stays `file`."""
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
    """Threads that work on the calls of one front. At most half of them wait for API
    servers, so there are at least two for each cluster with `token_review` or `bound`,
    if there is more than one."""
    per_identity: CeilingConfig | None = None
    """No ceiling by default: the right one depends on how many pods share a name. Each
    ztunnel pod has one of the same size for what it asks for other pods."""
    per_cluster: CeilingConfig | None = None


class LagConfig(Section):
    """`ledger.max_lag`: when the archive is further behind, issuing stops."""

    entries: Annotated[int, Field(ge=1)] = 10_000
    """When the archive is more rows behind than this, issuing stops. From half of it
    on, issuing slows down. In a rebuild of the archive, only rows that were written
    since its begin count."""
    seconds: PositiveNumber = 60
    """The same in time, without slowing down first. A rebuild does not count."""


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
    replica: ReplicaName | None = None
    """The name of this bridge among those that share the archive, different for each
    and the same after a restart. Its journals are then `NAME-w0` and so on."""
    max_lag: LagConfig = LagConfig()
    heads: HeadsConfig
    refusals_per_second: Annotated[int, Field(ge=1)] = 1
    """Unauthenticated calls above this rate, for each worker, share one summary row per
    second. The log has a line for each row. Any peer can cause such calls, so a higher
    rate is disk that any peer can fill: see docs/ledger.md."""
    excess_per_second: Annotated[int, Field(ge=1)] = 5
    """The same for authenticated calls above a rate limit. For what else authenticated
    callers are refused, it holds for each caller and rule, and five times of it for all
    together."""

    @property
    def state(self) -> Path:
        """The folder of what this host keeps that is no journal."""
        return self.journal / STATE_FOLDER

    @property
    def latch(self) -> Path:
        """The file of the latch, see `bridge.resilience.latch`."""
        return self.state / "latch.json"

    @property
    def bars(self) -> Path:
        """The file of the bars, see `bridge.policy.bars`."""
        return self.state / "bars.json"

    @property
    def archive_is_shared(self) -> bool:
        """Whether other hosts may have the same archive: a SQLite file is local."""
        return not self.archive.startswith("sqlite")


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


class RuleConfig(Section):
    """`issuance.rules[]`: other conditions for some callers. The first match applies.

    A rule matches a caller that is listed under each of its first four keys. A key that
    is left out matches every caller.
    """

    fronts: Annotated[Fronts, Some] | None = None
    """The mesh of the caller. Only fronts that are configured."""
    clusters: Annotated[Names, Some] | None = None
    """Names of clusters, not aliases."""
    namespaces: Annotated[Namespaces, Some] | None = None
    """The namespace of the caller, as its credential proves it."""
    service_accounts: Annotated[ServiceAccounts, Some] | None = None
    """Names without the namespace. `namespaces` says which namespaces are meant."""
    refuse: bool = False
    """`true`: these callers get no certificate. `false` alone: these callers get what
    the top level says."""
    default_ttl: WholeSeconds | None = None
    """By default `issuance.default_ttl`, brought inside the limits of the rule.
    Linkerd's proxies request no lifetime, so this is what they get."""
    min_ttl: WholeSeconds | None = None
    """By default `issuance.min_ttl`, and not below it."""
    max_ttl: WholeSeconds | None = None
    """By default `issuance.max_ttl`, and not above it."""
    on_excess_ttl: Literal["refuse", "clamp"] | None = None
    """By default `issuance.on_excess_ttl`. Istio's agents request 24h unless told
    otherwise, so a shorter `max_ttl` needs `clamp`."""
    issuing_cas: Annotated[IssuerNames, Some] | None = None
    """In order of preference. By default `issuance.issuing_cas`. Failover stays inside
    the list."""

    @property
    def conditions(self) -> Conditions:
        """What a caller must match: front, cluster, namespace, service account."""
        return tuple(
            None if names is None else frozenset(names)
            for names in (
                self.fronts,
                self.clusters,
                self.namespaces,
                self.service_accounts,
            )
        )

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_null(cls, value: object) -> object:
        # A list that lost its last entry would match everybody, or allow everything.
        if value is None:
            raise ValueError("expected a value; leave the key out for its default")
        return value

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        given = self.model_fields_set - {
            "fronts",
            "clusters",
            "namespaces",
            "service_accounts",
        }
        if not given:
            raise ValueError(
                "expected what applies to these callers: refuse, a TTL, on_excess_ttl "
                "or issuing_cas (refuse: false gives them what the top level says)"
            )
        if self.refuse and given != {"refuse"}:
            raise ValueError("a rule with refuse: true has no TTL and no issuing CA")
        return self


class IssuanceConfig(Section):
    """`issuance`: limits that no caller and no backend can widen."""

    default_ttl: WholeSeconds = timedelta(hours=24)
    """The lifetime where the caller requests none."""
    min_ttl: WholeSeconds = timedelta(minutes=5)
    """The shortest lifetime that may be requested."""
    max_ttl: WholeSeconds = timedelta(hours=24)
    """The longest lifetime that may be requested."""
    on_excess_ttl: Literal["refuse", "clamp"] = "refuse"
    """What to do with a requested lifetime outside the limits."""
    backdate: WholeSeconds = timedelta(minutes=2)
    """How far notBefore lies in the past, for peers whose clock is slow."""
    issuing_cas: Annotated[IssuerNames, Some]
    """In order of preference. The next one is used while an earlier one is down."""
    cert_signers: dict[Text, IssuerNames] = {}  # noqa: RUF012 - pydantic copies it
    """From a value of Istio's `CertSigner` to a list of issuing CAs. A value that is
    not listed is refused."""
    rules: Annotated[tuple[RuleConfig, ...], Field(strict=False)] = ()
    """Other conditions for some callers, all inside the limits above."""
    csr_names: Literal["ignore", "strict"] = "ignore"
    """`strict` refuses a CSR that asks for any name but the caller's."""
    second_certificate: bool = False
    """Only for issuing CAs that choose serial numbers themselves, such as Vault's PKI
    engine. `true`: a request whose answer is lost is sent again, to the same or the
    next issuing CA, and the lost answer may be a second certificate. `false`: the
    caller has to ask again. What the bridge builds itself is always sent again."""

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.min_ttl <= self.default_ttl <= self.max_ttl:
            raise WrongError(
                "expected min_ttl <= default_ttl <= max_ttl",
                f"min_ttl {written(self.min_ttl)}, default_ttl "
                f"{written(self.default_ttl)}, max_ttl {written(self.max_ttl)}",
            )
        if self.backdate >= self.min_ttl:
            raise WrongError(
                "expected backdate below min_ttl: a leaf that is born past its "
                "half-life is asked for again without a pause",
                f"backdate {written(self.backdate)}, min_ttl {written(self.min_ttl)}",
            )
        for name, chosen in self.cert_signers.items():
            if not chosen:
                raise ValueError(f"cert_signers.{name} names no issuing CA")
        return self

    def routes(self) -> dict[str, tuple[str, ...]]:
        """Return each list of issuing CAs, by the path of its key."""
        return {
            "issuance.issuing_cas": self.issuing_cas,
            **{
                f"issuance.cert_signers.{name}": names
                for name, names in self.cert_signers.items()
            },
            **{
                f"issuance.rules[{index}].issuing_cas": rule.issuing_cas
                for index, rule in enumerate(self.rules)
                if rule.issuing_cas is not None
            },
        }


class BridgeConfig(Section):
    """The whole file."""

    trust_domain: TrustDomainName
    """The trust domain of every SPIFFE ID that is issued, such as `corp.example`."""
    workers: WorkerCount = 1
    """Processes that serve, each on a core of its own, under a parent that supervises
    and replaces them."""
    fronts: FrontsConfig
    clusters: Annotated[tuple[ClusterConfig, ...], Field(strict=False), Some]
    remote_secrets: RemoteSecretsConfig | None = None
    issuing_cas: Annotated[dict[Name, IssuingCAConfig], Field(min_length=1)]
    trust_anchors: FilePath
    """PEM file. Workloads get these as roots; every chain leads to one. A change is
    reloaded; one that shares none with the last is refused: `accept_new_anchors`."""
    accept_new_anchors: SHA256 | None = None
    """The SHA-256 of the file of `trust_anchors`, as the refusal prints it: replaces
    all at once. Workloads with new and old ones cannot connect."""
    crls: Annotated[tuple[FilePath, ...], Field(strict=False)] = ()
    """Revocation lists in PEM or DER. Nothing is issued under a revoked chain."""
    issuance: IssuanceConfig
    limits: LimitsConfig = LimitsConfig()
    ledger: LedgerConfig
    admin: AdminConfig = AdminConfig()

    _path: Path = Path()
    _base: Path = Path()

    def model_post_init(self, state: ValidationState | None) -> None:
        """Keep where the configuration was read from."""
        if state is not None:
            self._path, self._base = state.path, state.base

    @field_validator("*")
    @classmethod
    def _keep(cls, value: object, info: ValidationInfo) -> object:
        # Each section that could be read, for a file whose other sections could not.
        if info.context is not None and info.field_name is not None:
            info.context.sections[info.field_name] = value
        return value

    @property
    def path(self) -> Path:
        """The file, as it was named."""
        return self._path

    @property
    def base(self) -> Path:
        """The folder of the file: relative paths are relative to it."""
        return self._base

    def trust_domain_of(self, cluster: ClusterConfig) -> str:
        """Return the trust domain of a cluster's callers."""
        return cluster.trust_domain or self.trust_domain

    def linkerd_cluster(self) -> ClusterConfig | None:
        """Return the cluster whose tokens Linkerd's callers show, if there is one."""
        front = self.fronts.linkerd
        wanted = front.cluster if front else None
        if wanted is None:
            return self.clusters[0]
        fitting = (one for one in self.clusters if wanted in (one.name, *one.aliases))
        return next(fitting, None)

    def linkerd_trust_domain(self) -> str:
        """Return the trust domain of Linkerd's names."""
        front, cluster = self.fronts.linkerd, self.linkerd_cluster()
        if front is not None and front.trust_domain is not None:
            return front.trust_domain
        return self.trust_domain_of(cluster) if cluster else self.trust_domain

    def callers_by_front(self) -> dict[str, tuple[str, ...]]:
        """Return each front that is configured, with the clusters of its callers."""
        found: dict[str, tuple[str, ...]] = {}
        if self.fronts.istio is not None:
            found["istio"] = tuple(cluster.name for cluster in self.clusters)
        if self.fronts.linkerd is not None:
            cluster = self.linkerd_cluster()
            found["linkerd"] = (cluster.name,) if cluster else ()
        return found
