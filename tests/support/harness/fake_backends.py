"""A bridge in the test's own process, with real listeners and issuing CAs that fail."""

import gc
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from bridge.config import ConfigText
from bridge.errors import BackendTimeoutError
from bridge.process.composition import Process
from bridge.spi import IssuedChain, PluginContext, Prepared
from bridge.system.clock import Clock, system_clock
from tests.support.harness.archive import FeederThread
from tests.support.harness.configuration import merge
from tests.support.harness.core import two_authorities
from tests.support.harness.fake_ca import LyingCA
from tests.support.harness.real_process import Bridge
from tests.support.parts.pki import bundle


@dataclass
class StallingCA(LyingCA):
    """See `LyingCA`. While it stalls, a call ends with its timeout, if at all."""

    is_stalled: bool = False
    is_deaf: bool = False
    """It does not keep to the timeout either."""
    released: threading.Event = field(default_factory=threading.Event)

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        if self.is_stalled:
            self.called.append(prepared)
            self.entered.set()
            self.released.wait(30 if self.is_deaf else timeout)
            raise BackendTimeoutError("no answer in time")
        return super().issue(prepared, timeout=timeout)

    def recover(self) -> None:
        """Answer again."""
        self.is_stalled, self.error = False, None
        self.released.set()


class FakeBackends(Bridge):
    """A bridge with both fronts and two equal issuing CAs, `a` and `b`.

    Args:
        folder: New.
        monkeypatch: Puts the fake plugin in place.
        overrides: Merged into the configuration.
        clock: The time of the bridge. The chains end 99 days from now.
    """

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        overrides: Mapping[str, Any] | None = None,
        clock: Clock = system_clock,
    ) -> None:
        self.clock = clock
        super().__init__(folder, fronts=("istio", "linkerd"))
        now = datetime.now(UTC)
        authorities = two_authorities(
            not_before=now - timedelta(days=3), not_after=now + timedelta(days=99)
        )
        self.roots.write_bytes(bundle(authorities["a"].root))
        self.cas = {name: StallingCA(one) for name, one in authorities.items()}
        tree = yaml.safe_load(self.configuration.read_text())
        tree["issuing_cas"] = {name: {"plugin": "fake"} for name in self.cas}
        tree["issuance"] = {"issuing_cas": [*self.cas]}
        self.configuration.write_text(yaml.safe_dump(merge(tree, overrides or {})))
        monkeypatch.setattr("bridge.snapshot.builder.load", lambda _: self._factory)
        self._parts = ExitStack()

    def _factory(self, _: Mapping[str, object], context: PluginContext) -> StallingCA:
        return self.cas[context.name]

    def __enter__(self) -> Self:
        config = ConfigText.read(self.configuration).config
        process = Process(config, clock=self.clock)
        self._parts.enter_context(FeederThread(config.ledger))
        process.start()
        self._parts.callback(gc.unfreeze)
        self._parts.callback(process.stop)
        return self

    def __exit__(self, *_: object) -> None:
        for ca in self.cas.values():
            ca.recover()
        self._parts.close()
