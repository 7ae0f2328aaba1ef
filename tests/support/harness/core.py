"""The core put together in one folder: real ledger, clusters and chains, no server.

The issuing CAs are `LyingCA`s with the keys of the chains, or the file backend's own.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.config import parse
from bridge.errors import LedgerError
from bridge.identity.caller import (
    CertificateCredential,
    Credential,
    TokenCredential,
)
from bridge.issuance.call import Call, Issued
from bridge.issuance.own_certificates import OwnCertificates
from bridge.issuance.procedure import Issuance
from bridge.issuance.signing import Signing
from bridge.ledger.archive.lineages import Lineages
from bridge.ledger.ledger import Ledger
from bridge.metrics.instruments import Metrics
from bridge.policy.bars import BarKind, Bars, new_entry
from bridge.policy.certificate_renewal import CertificateRenewal
from bridge.resilience.budget import Budget
from bridge.resilience.failover import Failover, Guards
from bridge.resilience.latch_file import LatchFile
from bridge.resilience.quarantine import StoppedCAs
from bridge.server.status import status_name
from bridge.snapshot.builder import Assembly
from bridge.snapshot.model import Issuer, Snapshot
from bridge.x509.pem import parse_certificates
from tests.support.harness.archive import FeederThread
from tests.support.harness.clock import SetClock
from tests.support.harness.configuration import merge, smallest
from tests.support.harness.fake_ca import LyingCA
from tests.support.harness.journals import journaled
from tests.support.parts.pki import NOW, Authority, Key, bundle, new_key, new_root
from tests.support.parts.tokens import TokenIssuer

TRUST_DOMAIN = "corp.example"
CALLER = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"
TOKENS = TokenIssuer(algorithm="ES256")
_OF_SEGMENTS = frozenset({"opened", "closed", "published"})


def csr(*names: x509.GeneralName, key: Key | None = None) -> str:
    """Write a CSR as an agent does; PEM."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    if names:
        san = x509.SubjectAlternativeName(names)
        builder = builder.add_extension(san, critical=True)
    request = builder.sign(key or new_key(), hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


class World:
    """A context manager: inside it everything is open.

    Args:
        folder: New or empty.
        authorities: The issuing CAs by name, in order of preference, under one root;
            by default `a` and `b`.
        overrides: Merged into the configuration.
        fake: Whether the issuing CAs are `LyingCA`s.
    """

    def __init__(
        self,
        folder: Path,
        *,
        authorities: Mapping[str, Authority] | None = None,
        overrides: Mapping[str, Any] | None = None,
        fake: bool = True,
    ) -> None:
        self.folder = folder
        self.clock = SetClock(NOW)
        self.authorities = dict(authorities or two_authorities())
        self.warnings: list[str] = []
        self.write()
        TOKENS.write_jwks(folder / "jwks.json")
        tree = merge(self._defaults(), overrides or {})
        self.config = parse(yaml.safe_dump(tree), folder / "bridge.yaml")
        self.assembly = Assembly(
            config=self.config, clock=self.clock, warn=self.warnings.append
        )
        self.fake = fake
        self.is_ready = True
        self.draw = 0.5
        self.cas: dict[str, LyingCA] = {}
        self.metrics = Metrics("1", self.clock)

    def write(self) -> None:
        """Write every chain, key and the root."""
        roots = {one.root for one in self.authorities.values()}
        (self.folder / "roots.pem").write_bytes(bundle(*roots))
        for name, authority in self.authorities.items():
            self.write_authority(name, authority)

    def write_authority(self, name: str, authority: Authority) -> None:
        """Write the files of one issuing CA, the key first."""
        key = self.folder / f"{name}.key"
        key.touch(mode=0o600)
        key.write_bytes(authority.key_pem())
        (self.folder / f"{name}.pem").write_bytes(bundle(*authority.chain))

    def __enter__(self) -> Self:
        self.snapshot = self.assembly.snapshot()
        if self.fake:
            self.snapshot = replace(self.snapshot, issuers=self._faked())
        self.ledger = self.open_ledger()
        self._feeding = FeederThread(self.config.ledger)
        self._feeding.start()
        self.guards = Guards(self.config.limits.threads, self.metrics.backend)
        stopped = StoppedCAs(self.config.ledger.latch, self.clock)
        self.signing = Signing(
            self.ledger, self.metrics, status_name, stopped, self.guards
        )
        self.failover = Failover(self.guards)
        self.own = OwnCertificates(
            lambda: self.snapshot, self.signing, self.failover, self.clock
        )
        self.lineages = Lineages(self.config.ledger.archive, seconds=30.0)
        self.bars = Bars(self.config.ledger.bars)
        self.issuance = Issuance(
            snapshot=lambda: self.snapshot,
            ledger=self.ledger,
            signing=self.signing,
            failover=self.failover,
            metrics=self.metrics,
            clock=self.clock,
            status_name=status_name,
            ready=lambda: self.is_ready,
            renewal=CertificateRenewal.of(self.config, self.lineages),
            bars=self.bars,
            events=None,
            draw=lambda: self.draw,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(LedgerError):  # some tests shut it
            self.ledger.close()
        self._feeding.close()
        self.lineages.close()
        for issuer in self.snapshot.issuers.values():
            issuer.ca.close()
        self.snapshot.clusters.close()

    def open_ledger(self) -> Ledger:
        return Ledger.open(
            self.config.ledger,
            writer="bridge",
            clock=self.clock,
        )

    def token(self, namespace: str = "shop", account: str = "web") -> str:
        return TOKENS.token(namespace, account, now=self.clock())

    def call(
        self,
        *,
        token: str | None = None,
        pem: str | None = None,
        cluster: str = "",
        budget: Budget | None = None,
        **changed: Any,
    ) -> Call:
        """Make a call as an agent would, valid but for what is changed."""
        credential: Credential = TokenCredential(
            (f"Bearer {self.token() if token is None else token}",), (cluster,)
        )
        values: dict[str, Any] = {
            "front": "istio",
            "csr": csr() if pem is None else pem,
            "credential": credential,
            "audiences": frozenset({"istio-ca"}),
            "ttl_seconds": 3600,
            "budget": budget or Budget.of_seconds(30),
        }
        return Call(**(values | changed))

    def issue(self, **changed: Any) -> Issued:
        """Make a call and have it answered."""
        return self.issuance.issue(self.call(**changed))

    def renew(self, shown: Issued, *, key: Key | None = None) -> Issued:
        """Show a certificate on the second port, with its chain, once it is fed."""
        self.await_fed()
        chain = "".join(shown.chain_pem).encode()
        credential = CertificateCredential(shown.leaf, chain)
        pem = csr(key=key)
        return self.issue(credential=credential, pem=pem, ttl_seconds=0)

    def bar(self, kind: BarKind, value: str) -> None:
        """Bar something, as an operator does."""
        with LatchFile(self.config.ledger.bars).change() as content:
            content.put(new_entry(kind, value, reason="stolen", at=1.0))
        self.bars.look()

    def await_fed(self) -> None:
        """Wait until the archive has every row."""
        # Not by `Ledger.lag`: of a new archive that is still fed, no row counts.
        until, journal = time.monotonic() + 20, self.ledger._journal
        while (fed := journal.progress.fed) is None or fed < journal.head.seq:
            assert time.monotonic() < until
            time.sleep(0.01)

    def rows(self) -> list[dict[str, Any]]:
        """Return what is on disk, without the rows that are of no call."""
        rows = journaled(self.folder / "journal")
        return [row for row in rows if row["kind"] not in _OF_SEGMENTS]

    def ended(self) -> list[dict[str, Any]]:
        """Close the ledger, so that all is on disk, and return the rows."""
        self.ledger.close()
        return self.rows()

    def replace_issuer(self, name: str, change: Callable[[Issuer], Issuer]) -> Snapshot:
        """Return the snapshot with one issuing CA changed."""
        issuers = dict(self.snapshot.issuers)
        issuers[name] = change(issuers[name])
        return replace(
            self.snapshot, issuers=issuers, generation=self.snapshot.generation + 1
        )

    def _faked(self) -> dict[str, Issuer]:
        made: dict[str, Issuer] = {}
        for name, issuer in self.snapshot.issuers.items():
            issuer.ca.close()
            self.cas[name] = LyingCA(self.authorities[name])
            made[name] = replace(issuer, ca=self.cas[name])
        return made

    def _defaults(self) -> dict[str, Any]:
        tree = smallest(issuance={"issuing_cas": [*self.authorities]})
        tree["clusters"][0]["tokens"]["issuer"] = TOKENS.issuer
        tree["issuing_cas"] = {
            name: {
                "plugin": "file",
                "chain": f"{name}.pem",
                "options": {"key": f"{name}.key"},
            }
            for name in self.authorities
        }
        return tree


def leaf_of(pem: str) -> x509.Certificate:
    """Read the one certificate of an element of an answer."""
    (leaf,) = parse_certificates(pem.encode(), "the answer")
    return leaf


def kinds(rows: list[dict[str, Any]]) -> list[str]:
    """Return what each row is."""
    return [row["kind"] for row in rows]


def two_authorities(
    constraints: x509.NameConstraints | None = None,
    not_after: datetime = NOW + timedelta(days=365),
    not_before: datetime | None = None,
) -> dict[str, Authority]:
    """Make two issuing CAs, `a` and `b`, under one root.

    By default they have lived 30 days.
    """
    since = min(NOW, not_after) - timedelta(days=30)
    root = new_root(not_before=not_before or since)
    intermediate = root.issue_ca("region", path_length=1, not_after=not_after)
    return {
        name: intermediate.issue_ca(
            f"issuing {name}", path_length=0, constraints=constraints
        )
        for name in ("a", "b")
    }
