"""What the parts of the soak stand on: a served bridge, load on it, a look at it."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from bridge.x509.algorithm import KeyAlgorithm
from tests.bench.load import CLIENT_CORE, SERVER_CORE, BenchError, Programs
from tests.support.harness.real_process import PEER_SERVER_NAME
from tests.support.harness.workers import Supervised
from tests.support.parts.tokens import TokenIssuer

TRUST_DOMAIN = "cluster.local"
_MOST_ERRORS = 0.01
"""On a machine that others use, a call may wait too long."""
_TICKS = os.sysconf("SC_CLK_TCK")
_TOKENS = 10_000
"""Distinct; the bridge remembers none, so each use of one is checked anew."""


def say(*lines: str) -> None:
    """Tell how far the run is."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Target(Protocol):
    """What load is put on."""

    @property
    def address(self) -> str:
        """Where it listens."""

    @property
    def roots(self) -> Path:
        """The file with what its chains end in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is asked of the bridge."""

    kills: int
    seconds: float
    """Of each overload and of each measured run."""
    clients: int
    """Of a storm."""
    issuances: int
    """Over which memory is watched."""
    attacks: tuple[str, ...] = ()
    """Which of them; all if there are none."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Where the parts run."""

    folder: Path
    """On a disk, not in memory."""
    programs: Programs
    istio_client: Path
    sizes: Sizes
    ca_key: KeyAlgorithm = "p256"
    threads: int | None = None
    """`limits.threads` of the bridge; None for the default."""

    @cached_property
    def issuer(self) -> TokenIssuer:
        """Signs the tokens of all callers."""
        return TokenIssuer()

    @cached_property
    def tokens(self) -> Path:
        """A file of tokens, one a line."""
        path = self.folder / "tokens"
        say(f"making {_TOKENS} tokens")
        self.issuer.write_many(path, _TOKENS)
        return path

    def bridge(
        self,
        name: str,
        *,
        workers: int = 1,
        core: str | None = SERVER_CORE,
        fronts: tuple[str, ...] = ("istio",),
    ) -> Supervised:
        """Make a bridge that is not started yet.

        Args:
            name: Of its folder.
            workers: How many serve.
            core: That it keeps to; None for all.
            fronts: Which there are.
        """
        return Supervised(
            self.folder / name,
            workers,
            {"limits": {"threads": self.threads}} if self.threads else None,
            issuers=[self.issuer],
            trust_domain=TRUST_DOMAIN,
            ca_key=self.ca_key,
            fronts=fronts,
            prefix=("taskset", "-c", core) if core is not None else (),
        )

    @contextmanager
    def load(
        self,
        target: Target,
        *options: str,
        core: str | None = CLIENT_CORE,
        watch: Mapping[str, int] | None = None,
    ) -> Iterator["Load"]:
        """Run the load client beside the block; see `caload -h` for `options`.

        A target that asks for no token does not look at those that it is shown.
        """
        watched = ",".join(f"{name}={pid}" for name, pid in (watch or {}).items())
        command: list[str | Path] = ["taskset", "-c", core] if core else []
        command += [self.programs.client, "-front", "istio", "-json"]
        command += ["-addr", target.address, "-root", target.roots]
        command += ["-server-name", PEER_SERVER_NAME, "-token-file", self.tokens]
        command += [*(("-watch", watched) if watched else ()), *options]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield Load(process, time.monotonic())
            finally:
                process.kill()

    def measured(self, target: Target, *options: str, **how: Any) -> dict[str, Any]:
        """Run the load client to its end and return its report."""
        with self.load(target, *options, **how) as load:
            return load.report()

    def highest_rate(self, target: Target, seconds: float = 10.0) -> float:
        """Return the certificates a second of a server that is kept busy."""
        return float(self.busiest(target, seconds)["ok_per_second"])

    def busiest(self, target: Target, seconds: float, **how: Any) -> Mapping[str, Any]:
        """Keep a server busy and return the load client's report.

        Raises:
            BenchError: Calls failed.
        """
        seconds = min(seconds, self.sizes.seconds)
        options = ("-warmup", "2s", "-duration", f"{seconds}s")
        report = self.measured(target, *options, **how)
        say(
            f"highest rate {report['ok_per_second']:.0f}/s, "
            f"p99 {report['p99_ms']:.0f} ms"
        )
        if sum(report["errors"].values()) > report["ok"] * _MOST_ERRORS:
            raise BenchError(f"the load that sets the rate had errors: {report}")
        return report


class Load:
    """A load client that runs."""

    def __init__(self, process: "subprocess.Popen[str]", began: float) -> None:
        self._process = process
        self.began = began
        """By `time.monotonic()`."""

    def report(self) -> dict[str, Any]:
        """Wait for the end; return what it saw.

        Raises:
            BenchError: It could not do its work.
        """
        out, error = self._process.communicate()
        if self._process.returncode:
            raise BenchError(f"the load client failed: {error}")
        found: dict[str, Any] = json.loads(out)
        return found

    def require_running(self) -> None:
        """Raise BenchError if it has ended."""
        if self._process.poll() is not None:
            raise BenchError(f"the load ended too early: {self._process.communicate()}")


@dataclass(frozen=True, slots=True)
class Look:
    """What processes hold at a moment, all together."""

    resident_kb: int
    files: int
    threads: int
    cpu_seconds: float

    @classmethod
    def at(cls, *pids: int) -> "Look":
        """Look at processes; pages that several have are counted for each."""
        looks = [cls._at(pid) for pid in pids]
        return cls(
            sum(look.resident_kb for look in looks),
            sum(look.files for look in looks),
            sum(look.threads for look in looks),
            sum(look.cpu_seconds for look in looks),
        )

    @classmethod
    def _at(cls, pid: int) -> "Look":
        status = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(
            int(status["VmRSS"].split()[0]),
            len(list(Path(f"/proc/{pid}/fd").iterdir())),
            int(status["Threads"]),
            sum(map(int, itertools.islice(fields, 11, 13))) / _TICKS,
        )
