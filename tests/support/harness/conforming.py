"""A plugin that passes the conformance tests, and runs one of them on what does not.

Its part is in this process, and can be harmed in every way that the tests know.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
)

from bridge.errors import BackendTimeoutError, BackendUnavailableError
from bridge.sdk import SigningCA, signature_of
from bridge.spi import (
    Description,
    IssuedChain,
    LeafRequest,
    PluginContext,
    Prepared,
    SignatureAlgorithm,
)
from bridge.testing import Backend, IssuingCAConformance
from tests.support.parts.pki import Authority, Key, new_key

PIN = b"correct horse battery"
"""The secret of the part."""


@dataclass
class Part:
    """What holds the key: in this process, and as a test wants it."""

    authority: Authority
    key: Key = field(init=False)
    well: threading.Event = field(default_factory=threading.Event)
    is_away: bool = False
    restarts: int = 0
    last: list["PartSigner"] = field(default_factory=list)
    line: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.key = self.authority.key
        self.well.set()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        self.well.clear()
        try:
            yield
        finally:
            self.well.set()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.is_away = True
        try:
            yield
        finally:
            self.is_away = False

    @contextmanager
    def other_key(self) -> Iterator[None]:
        self.key = new_key()
        try:
            yield
        finally:
            self.key = self.authority.key

    def restart(self) -> None:
        self.restarts += 1


class PartSigner:
    """A `Signer` whose key is in a part."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.closed = threading.Event()
        self.pin = ""
        """Nothing, but for a plugin that tells secrets."""

    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        return self.part.authority.key.public_key()

    def check(self, *, timeout: float) -> None:
        self._reach(timeout)

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        self._reach(timeout)
        return signature_of(self.part.key, algorithm, tbs)

    def close(self) -> None:
        self.closed.set()

    def _reach(self, timeout: float) -> None:
        if self.closed.is_set() or self.part.is_away:
            raise BackendUnavailableError("closed, or away")
        if not self.part.well.wait(timeout):
            raise BackendTimeoutError("no answer")


class HonestCA:
    """Passes every test. A subclass breaks one thing."""

    def __init__(self, part: Part, context: PluginContext) -> None:
        certificate, *above = part.authority.chain
        description = Description(certificate=certificate, intermediates=tuple(above))
        self.signer = PartSigner(part)
        self.inner = SigningCA(description, self.signer)

    def describe(self) -> Description:
        return self.inner.describe()

    def prepare(self, request: LeafRequest) -> Prepared:
        return self.inner.prepare(request)

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        return self.inner.issue(prepared, timeout=timeout)

    def check(self, *, timeout: float) -> None:
        self.inner.check(timeout=timeout)

    def close(self) -> None:
        self.inner.close()


class Quick(IssuingCAConformance):
    """The tests, with less patience."""

    recovery_seconds = 0.3


Kind = Callable[[Part, PluginContext], HonestCA]
NAMES = tuple(name for name in dir(Quick) if name.startswith("test_"))


def factory_of(kind: Kind, part: Part) -> "_Factory":
    """Return the factory of a plugin whose CAs are of this kind."""
    return _Factory(kind, part)


class _Factory:
    api_version = 2

    def __init__(self, kind: Kind, part: Part) -> None:
        self.kind = kind
        self.part = part

    def __call__(
        self, options: Mapping[str, object], context: PluginContext, /
    ) -> HonestCA:
        return self.kind(self.part, context)


def backend_of(kind: Kind, part: Part) -> Backend:
    """Return a backend with every ability but that of being searched for secrets."""
    return Backend(
        factory=factory_of(kind, part),
        options={},
        context=PluginContext(name="fake", base=Path()),
        secrets={"pin": PIN},
        stall=part.stalled,
        away=part.away,
        restart=part.restart,
        other_key=part.other_key,
        other_version=part.other_key,
        cannot={"memory": "a part in this process has its secrets here"},
    )


def run(name: str, backend: Backend, request: pytest.FixtureRequest) -> None:
    """Run one conformance test as pytest would, with its largest parameters."""
    test = partial(getattr(Quick(), name))
    wanted = inspect.signature(test).parameters
    values: dict[str, object] = {
        "backend": backend,
        "timeout": 0.0,
        "threads": 8,
        "calls": 24,
    }
    if "ca" in wanted:
        values["ca"] = backend.build()
    for fixture in {"caplog", "capfd"} & wanted.keys():
        values[fixture] = request.getfixturevalue(fixture)
    test(**{one: values[one] for one in wanted})
