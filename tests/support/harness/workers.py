"""A served bridge whose processes and configuration a test does things to."""

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bridge.client.istio import IstioReply, IstioRequest, ask
from bridge.ledger.journal.segments import writer_folders
from tests.support.harness import processes
from tests.support.harness.real_process import SERVER_NAME, Bridge

WAIT_SECONDS = 20.0
"""Longer than anything takes that a test waits for."""
RELOAD_SECONDS = 60.0
"""The same of a reload: a worker may take 30 s for its start."""


def await_true(what: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Wait until `what` says so.

    Raises:
        TimeoutError: It does not.
    """
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError("it does not become true")
        time.sleep(0.02)


def is_refused(address: str) -> bool:
    """Tell whether nothing listens at `host:port`."""
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


class Supervised(Bridge):
    """See `Bridge`."""

    def __init__(
        self,
        folder: Path,
        workers: int = 1,
        overrides: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Write its configuration; `more` is as `Bridge` wants it."""
        changed = {"workers": workers, **(overrides or {})}
        super().__init__(folder, overrides=changed, **more)

    def ask(self, *audiences: str, address: str = "") -> IstioReply:
        """Get a certificate over a connection of its own."""
        return ask(
            IstioRequest(
                address=address or self.address,
                roots=self.roots.read_bytes(),
                token=self.token(audiences=audiences or ("istio-ca",)),
                server_name=SERVER_NAME,
            )
        )

    def children(self) -> list[int]:
        """Return the worker processes."""
        return processes.workers(self.pid)

    @property
    def is_gone(self) -> bool:
        """Whether the parent is not there, to be started again."""
        return self._process is None

    def forget(self) -> None:
        """Take leave of a parent that was killed."""
        if self._process is not None:
            self._process.wait(timeout=WAIT_SECONDS)
            self._process = None

    def hang_up(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def change(self, **values: Any) -> None:
        """Put another configuration in place at once; `a__b` is the key `b` in `a`."""
        tree = yaml.safe_load(self.configuration.read_text())
        for path, value in values.items():
            *above, last = path.split("__")
            at = tree
            for key in above:
                at = at[key]
            at[last] = value
        self.put(yaml.safe_dump(tree, sort_keys=False))

    def put(self, text: str) -> None:
        new = self.configuration.with_suffix(".new")
        new.write_text(text)
        new.replace(self.configuration)

    def await_reloads(self, result: str, count: float = 1) -> None:
        told = "meshca_reloads_total"
        await_true(lambda: self.metric(told, result=result) == count, RELOAD_SECONDS)
        if result == "ok":
            # Workers of before take connections until they have heard of it, and answer
            # scrapes for longer.
            workers = yaml.safe_load(self.configuration.read_text())["workers"]
            await_true(lambda: len(self.children()) == workers)

    def issued_by(self) -> dict[str, int]:
        """Return how many certificates of workloads each writer's journal has."""
        return {
            folder.name: sum(
                line.count('"kind":"issued"') * line.count('"purpose":"workload"')
                for file in folder.glob("*.jsonl")
                for line in file.read_text("utf-8").splitlines()
            )
            for folder in writer_folders(self.folder / "journal")
        }

    def require_sound_ledger(self, *options: str) -> None:
        """Hold the journals against themselves and the heads.

        Raises:
            AssertionError: They do not verify, or an attempt has no outcome.
        """
        checked = self.run("ledger", "verify", *options)
        if checked.returncode or " 0 attempts without" not in checked.stdout:
            raise AssertionError(checked.stdout + checked.stderr)
