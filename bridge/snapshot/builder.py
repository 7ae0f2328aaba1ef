"""Build the snapshot of a configuration: load plugins, validate chains, sign nothing.

Every problem is reported at once, so that an operator has to edit the file only once.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.config import SECTIONS, BridgeConfig, IssuingCAConfig
from bridge.config.types import written
from bridge.dataplanes.acceptance import acceptance_warnings, require_accepted
from bridge.dataplanes.planes import DataPlane
from bridge.errors import BackendError, BridgeError, ConfigError, PluginError
from bridge.identity.clusters import ClusterRegistry
from bridge.kubernetes.clients import has_remote_secret
from bridge.policy.issued import PinnedIssuer
from bridge.policy.linkerd_names import LinkerdNames
from bridge.policy.rate_limit import RateLimits
from bridge.policy.rules import ISTIO, LINKERD, RoutedCaller, Rules
from bridge.registry import load
from bridge.resilience.boundary import close_plugin, from_plugin
from bridge.snapshot.model import Issuer, Snapshot
from bridge.snapshot.revocation import RevocationLists, read_lists
from bridge.snapshot.trust_bundle import TrustBundle, parse_bundle
from bridge.spi import (
    Description,
    IssuingCA,
    Latch,
    PluginContext,
    PluginMetrics,
)
from bridge.spiffe import TrustDomain
from bridge.system.clock import Clock
from bridge.system.files import failure_text
from bridge.x509.ca_certificate import RENEWAL_SHARE, least_life
from bridge.x509.certificate import name_text
from bridge.x509.path import FoundChain, ValidatedChain, find_chain
from bridge.x509.pem import encode_certificate

_OF_A_FACTORY = (ConfigError, PluginError, BackendError)
_METHODS = ("describe", "prepare", "issue", "check", "close")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """Builds snapshots and issuing CAs, for a start, a check or a change of files."""

    config: BridgeConfig
    clock: Clock
    warn: Callable[[str], None]
    """Warns the operator of a setting that is allowed but unwise."""
    shared: Path | None = None
    """The file of what all workers count together; None where one process serves."""
    watched: Path | None = None
    """The index of what the watcher has seen; None where none runs."""
    state: Path | None = None
    """The folder of what plugins keep on this host; None where they keep nothing."""
    anchors: bytes | None = None
    """The content of `trust_anchors`; None: it is read from the file."""
    plugin_metrics: Callable[[str], PluginMetrics] | None = None
    """Returns the metrics of the plugin of an issuing CA; None: they go nowhere."""
    sections: frozenset[str] = SECTIONS
    """The sections of `config` that could be read; only `problems` needs fewer than
    all."""

    def snapshot(self) -> Snapshot:
        """Build the snapshot of the configuration.

        Raises:
            ConfigError: The message lists every problem of every section, one a line.
        """
        rate_limits = RateLimits.of(self.config.limits, self.shared)
        parts = self._parts()
        clusters, bundle, issuers = parts.clusters, parts.bundle, parts.issuers
        if parts.problems or clusters is None or bundle is None:
            parts.close()
            raise _all_of(parts.problems, self.config.path)
        rules = self._rules()
        return Snapshot(
            generation=1,
            issuers=issuers,
            bundle=bundle,
            crls=parts.crls,
            trust_domains=_trust_domains(self.config),
            rules=rules,
            clusters=clusters,
            rate_limits=rate_limits,
            probe_names=self._probe_names(rules, issuers),
            linkerd=LinkerdNames.of(self.config),
        )

    def problems(self) -> list[str]:
        """Open what `sections` describe, close it, and return every problem."""
        parts = self._parts()
        parts.close()
        return str(_all_of(parts.problems, self.config.path)).splitlines()

    def _parts(self) -> "_Parts":
        parts = _Parts()
        if self._has("trust_anchors"):
            try:
                parts.bundle = self.bundle()
            except BridgeError as error:
                parts.problems.append(error)
        for name in self.config.issuing_cas if self._has("issuing_cas") else ():
            try:
                if parts.bundle is not None:
                    parts.issuers[name] = self.issuer(
                        name, parts.bundle, may_have_ended=True
                    )
                else:
                    # No chain can be validated. Other problems show nevertheless.
                    close_plugin(self._opened(name).close)
            except BridgeError as error:
                parts.problems.append(error)
        parts.revoke(self.config.crls if self._has("crls") else ())
        if _has_clusters(self.config, self.sections):
            try:
                parts.clusters = _clusters(self)
            except BridgeError as error:
                parts.problems.append(error)
        if self._has("issuance"):
            parts.problems += self._unequal(parts.issuers)
        if self._has("fronts", "clusters", "issuance"):
            parts.problems += _ended(parts.issuers, self._rules())
        return parts

    def _has(self, *sections: str) -> bool:
        return self.sections.issuperset(sections)

    def bundle(self) -> TrustBundle:
        """Read the trust anchors.

        Raises:
            ConfigError: The file cannot be read, or is no list of certificates, or none
                of them can be read.
        """
        path = self.config.trust_anchors
        source = f"trust_anchors: {path}"
        content = self.anchors
        if content is None:
            content = _content(path, source)
        return parse_bundle(content, source)

    def issuer(
        self, name: str, bundle: TrustBundle, *, may_have_ended: bool = False
    ) -> Issuer:
        """Build one issuing CA and validate its chain to the trust anchors.

        Args:
            name: In the configuration.
            bundle: The trust anchors.
            may_have_ended: Take a chain of which nothing is wrong but that it has
                ended. Nothing can be issued under it.

        Raises:
            ConfigError: Options, files or chain cannot be used.
            PluginError: The plugin cannot be loaded.
        """
        config = self.config.issuing_cas[name]
        where = f"issuing_cas.{name}"
        source = f"{where}.chain: {config.chain}" if config.chain else where
        ca = self._opened(name)
        try:
            description = from_plugin(ca.describe, Description)
            chain, ended = self._chain(name, source, description, bundle)
            if ended and not may_have_ended:
                raise ConfigError(ended, rule="config.chain")
            if not ended:
                _require_renewal_budget(chain, self._longest_ttl(name), source)
            pinned = PinnedIssuer(
                description.certificate,
                _encoded(description.certificate, *description.intermediates),
                added=description.added_extensions,
                ends=chain.not_after,
            )
        except BackendError as error:
            close_plugin(ca.close)
            raise _failed(where, config.plugin, error) from error
        except BridgeError:
            close_plugin(ca.close)
            raise
        served = _encoded(chain.issuing, *chain.intermediates)
        return Issuer(
            name=name,
            ca=ca,
            description=description,
            chain=chain,
            pinned=pinned,
            certificate_sha256=hashlib.sha256(pinned.intermediates[0]).hexdigest(),
            served=served,
            served_pem=tuple(encode_certificate(item) for item in served),
            timeout_seconds=config.timeout.total_seconds(),
            ended=ended,
        )

    def _chain(
        self, name: str, source: str, description: Description, bundle: TrustBundle
    ) -> tuple[ValidatedChain, str]:
        # The best chain, and what has ended of it, a line each.
        search = partial(
            find_chain,
            description.certificate,
            description.intermediates,
            bundle.anchors,
            source=source,
            require=partial(self._require_accepted, name, source),
        )
        now, ended = self.clock(), ""
        try:
            found = search(now=now)
        except ConfigError as error:
            found, ended = _ended_chain(search, now, error), str(error)
        if told := _left_out(found, bundle.anchors, source):
            self.warn(told)
        self._warn_of_planes(name, source, found.chain)
        return found.chain, ended

    def _opened(self, name: str) -> IssuingCA:
        config = self.config.issuing_cas[name]
        where, context = f"issuing_cas.{name}", self._context(name, config)
        try:
            make: Any = from_plugin(load, object, config.plugin, allowed=(PluginError,))
        except PluginError as error:
            raise PluginError(
                f"{where}.plugin: {error}", detail=error.detail
            ) from error
        except BackendError as error:
            raise _failed(where, config.plugin, error) from error
        try:
            ca: Any = from_plugin(
                make, object, config.options, context, allowed=_OF_A_FACTORY
            )
        except BackendError as error:
            raise _failed(where, config.plugin, error) from error
        lacking = [name for name in _METHODS if not callable(getattr(ca, name, None))]
        if lacking:
            raise PluginError(
                f"{where}: plugin {config.plugin} made no issuing CA: "
                f"{type(ca).__name__} has no {', '.join(lacking)}"
            )
        return cast("IssuingCA", ca)

    def _context(self, name: str, config: IssuingCAConfig) -> PluginContext:
        # Of a file with errors only the sections that could be read are there.
        latch = self.config.ledger.latch if self._has("ledger") else None
        context = PluginContext(
            name=name,
            base=self.config.base,
            chain=config.chain,
            clock=self.clock,
            warn=self.warn,
            latch=Latch(latch, issuing_ca=name, clock=self.clock),
            state=None if self.state is None else _made(self.state / name),
            workers=self.config.workers if self._has("workers") else 1,
        )
        if self.plugin_metrics is None:
            return context
        return replace(context, metrics=self.plugin_metrics(name))

    def _probe_names(
        self, rules: Rules, issuers: Mapping[str, Issuer]
    ) -> dict[str, tuple[x509.GeneralName, ...]]:
        # Names of the kind that callers get: a constraint that forbids them then shows.
        found: dict[str, tuple[x509.GeneralName, ...]] = {}
        for name, issuer in issuers.items():
            led = {
                front: route[name]
                for front, route in rules.routes.items()
                if name in route
            } or dict.fromkeys(rules.routes, (RoutedCaller(),))
            found[name] = tuple(
                self._probe_name(front, callers, issuer)
                for front, callers in led.items()
            )
        return found

    def _probe_name(
        self, front: str, callers: tuple[RoutedCaller, ...], issuer: Issuer
    ) -> x509.GeneralName:
        linkerd = LinkerdNames.of(self.config)
        if front != LINKERD or linkerd is None:
            uri = f"spiffe://{self.config.trust_domain}/meshca/probe"
            return x509.UniformResourceIdentifier(uri)
        namespaces = [one.namespace for one in callers]
        if None in namespaces:
            return x509.DNSName(f"meshca-probe{linkerd.suffix}")
        # The constraints of a chain may permit only the names of some namespaces.
        if issuer.chooses_serial:
            # Vault leaves a name with an underscore out. This one has no account.
            return x509.DNSName(f"{namespaces[0]}{linkerd.suffix}")
        # The name of a service account cannot contain an underscore.
        return x509.DNSName(f"meshca_probe.{namespaces[0]}{linkerd.suffix}")

    def _rules(self) -> Rules:
        return Rules.of(self.config.issuance, self.config.callers_by_front())

    def _require_accepted(self, name: str, source: str, chain: ValidatedChain) -> None:
        # The proxies that can get leaves of this issuing CA must verify its chain.
        require_accepted(_path(chain), self._served(name), source=source)

    def _warn_of_planes(self, name: str, source: str, chain: ValidatedChain) -> None:
        if served := self._served(name):
            told = acceptance_warnings(_path(chain), served, source=source)
            for line in told.splitlines():
                self.warn(line)

    def _longest_ttl(self, name: str) -> timedelta | None:
        if not self._has("fronts", "clusters", "issuance"):
            return None
        return self._rules().longest_ttls.get(name)

    def _served(self, name: str) -> dict[DataPlane, bool]:
        # Which data planes get leaves of an issuing CA, and whether with a URI name.
        if not self._has("fronts", "clusters", "issuance"):
            return {}
        fronts, routes = self.config.fronts, self._rules().routes
        served: dict[DataPlane, bool] = {}
        if fronts.istio is not None and name in routes[ISTIO]:
            served |= {DataPlane(one): True for one in fronts.istio.data_planes}
        if fronts.linkerd is not None and name in routes[LINKERD]:
            served[DataPlane.LINKERD] = fronts.linkerd.spiffe_uri
        return served

    def _unequal(self, issuers: Mapping[str, Issuer]) -> list[BridgeError]:
        # Failover from an HSM to a file would lower the assurance of a list.
        found: list[BridgeError] = []
        for path, names in self.config.issuance.routes().items():
            kinds = {
                _assurance(self.config, issuers[name])
                for name in names
                if name in issuers
            }
            if len(kinds) > 1:
                found.append(
                    ConfigError(
                        f"{path}: expected issuing CAs of one assurance, found "
                        f"{', '.join(sorted(kinds))}: failover may not lower it. An "
                        "HSM and a service that are equals have the same "
                        "issuing_cas.<name>.assurance"
                    )
                )
        return found


@dataclass(slots=True)
class _Parts:
    # What was opened for a snapshot, and what could not be.
    bundle: TrustBundle | None = None
    issuers: dict[str, Issuer] = field(default_factory=dict)
    clusters: ClusterRegistry | None = None
    crls: RevocationLists = field(default_factory=RevocationLists)
    problems: list[BridgeError] = field(default_factory=list)

    def revoke(self, paths: Sequence[Path]) -> None:
        issuers = self.issuers.values()
        try:
            self.crls = read_lists(paths)
            self.crls.require_signed([one for each in issuers for one in each.path])
        except BridgeError as error:
            self.problems.append(error)
            return
        self.issuers = {one.name: one.under(self.crls) for one in issuers}

    def close(self) -> None:
        for issuer in self.issuers.values():
            close_plugin(issuer.ca.close)
        if self.clusters is not None:
            self.clusters.close()


def _ended(issuers: Mapping[str, Issuer], rules: Rules) -> list[BridgeError]:
    # A chain that has ended, or is revoked, is no reason to refuse a front that has
    # another one. Those that could not be built are problems already.
    ended = {name for name, one in issuers.items() if one.ended or one.revoked}
    routes = [{*route} for route in rules.routes.values() if route]
    lost = set[str]().union(*(route for route in routes if route <= ended))
    return [
        ConfigError(
            issuers[name].ended or f"issuing_cas.{name}: {issuers[name].revoked}",
            rule="config.chain",
        )
        for name in sorted(lost)
    ]


def _failed(where: str, plugin: str, error: BackendError) -> ConfigError:
    return ConfigError(
        f"{where}: plugin {plugin} cannot be set up: {error}", detail=error.detail
    )


def _trust_domains(config: BridgeConfig) -> tuple[TrustDomain, ...]:
    own = config.trust_domain
    names = [own, *(item.trust_domain or own for item in config.clusters)]
    return tuple(TrustDomain(name) for name in dict.fromkeys(names))


def _assurance(config: BridgeConfig, issuer: Issuer) -> str:
    own = issuer.description.assurance
    # Nobody makes an HSM of a file by declaring it.
    return own if own == "file" else config.issuing_cas[issuer.name].assurance or own


def _require_renewal_budget(
    chain: ValidatedChain, longest: timedelta | None, source: str
) -> None:
    # Dates and lifetimes decide, and the time does not: what once served is not refused
    # later, while it comes to its end. See decision 38.
    lives = chain.not_after - chain.issuing.not_valid_before_utc
    if longest is None or lives > (least := least_life(longest)):
        return
    role, _ = min(chain.tiers(), key=lambda tier: tier[1].not_valid_after_utc)
    raise ConfigError(
        f"{source}: the issuing CA ({name_text(chain.issuing, 'subject')}) lives "
        f"{written(lives)}, to the end of the {role}, and issues certificates of up to "
        f"{written(longest)}: expected more than {written(least)}, so that the last "
        f"1/{RENEWAL_SHARE} of its life, in which it is replaced, covers them; have it "
        "issued for longer, or lower max_ttl of issuance and of the rules that lead to "
        "it",
        rule="config.renewal-budget",
    )


def _encoded(*certificates: x509.Certificate) -> tuple[bytes, ...]:
    return tuple(one.public_bytes(Encoding.DER) for one in certificates)


def _ended_chain(
    search: Callable[..., FoundChain], now: datetime, problem: ConfigError
) -> FoundChain:
    # The chain of which nothing is wrong but that it has ended, or the problem.
    try:
        found = search(now=None)
    except ConfigError:
        raise problem from None
    if found.chain.not_after > now:
        raise problem
    return found


def _left_out(
    found: FoundChain, anchors: Sequence[x509.Certificate], source: str
) -> str:
    if not found.left_out:
        return ""
    told = "; ".join(_one_left_out(one, anchors) for one in found.left_out)
    return (
        f"{source}: not on the path to the trust anchor "
        f"({name_text(found.chain.anchor, 'subject')}), and therefore not served: "
        f"{told}; take out of the file what does not belong there"
    )


def _one_left_out(
    certificate: x509.Certificate, anchors: Sequence[x509.Certificate]
) -> str:
    # Two certificates of one name differ by their serial number.
    kind = ", a trust anchor" if certificate in anchors else ""
    serial = f"serial {certificate.serial_number:x}"
    return f"{name_text(certificate, 'subject')} ({serial}{kind})"


def _content(path: Path, source: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = failure_text(path, error)
        raise ConfigError(f"{source}: cannot be read: {reason}") from error


def _path(chain: ValidatedChain) -> list[x509.Certificate]:
    return [certificate for _, certificate in chain.tiers()]


def _made(folder: Path) -> Path | None:
    state = folder.parent
    try:
        state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None  # The ledger says so when it is opened, and nothing is served.
    try:
        for each in (state, folder):
            each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"issuing_cas.{folder.name}: {folder}: expected a folder that can be made, "
            f"below ledger.journal ({error.strerror})"
        ) from error
    return folder


def _has_clusters(config: BridgeConfig, sections: Collection[str]) -> bool:
    # Whether all could be read that says how clusters are reached.
    if not {"clusters", "trust_domain"}.issubset(sections):
        return False
    is_joined = any(map(has_remote_secret, config.clusters))
    return "remote_secrets" in sections or not is_joined


def _clusters(assembly: Assembly) -> ClusterRegistry:
    return ClusterRegistry(
        assembly.config, clock=assembly.clock, watched=assembly.watched
    )


def _all_of(problems: list[BridgeError], path: Path) -> ConfigError:
    lines = [
        f"{path}: {line}" for error in problems for line in str(error).splitlines()
    ]
    details = "\n".join(error.detail for error in problems if error.detail)
    return ConfigError("\n".join(dict.fromkeys(lines)), detail=details)
