"""PKCS#11 beside a key in a file and the bare calls (`make bench-backends`).

Bare calls, a bridge with its key in a file and one with its key in SoftHSM take turns.
Server and signer are on core 0, the load client on core 1. What is compared is CPU
time: the rates of a machine that others share move by half.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.x509.algorithm import KeyAlgorithm
from tests.bench.load import (
    SERVER_CORE,
    BenchError,
    Load,
    Result,
    build,
    measure_running,
    require_on_record,
)
from tests.bench.peers import say, surroundings, verdict
from tests.soak.ground import Look
from tests.support.harness.processes import descendants
from tests.support.harness.real_process import Bridge
from tests.support.parts import builds
from tests.support.parts.pkcs11_shim import Shim
from tests.support.parts.softhsm import KEY_LABEL, SoftHSM, Token, write_chain
from tests.support.parts.tokens import TokenIssuer

_ROOT = Path(__file__).resolve().parents[2]
_KEYS: tuple[KeyAlgorithm, ...] = ("p256", "rsa2048")
_MOST_PER_SECOND = 2_800
"""More than one core can do: so many tokens are made for a second of load."""
_MOST_CPU, LEAST_RATE, MOST_MORE_MS, MOST_GROWTH = 1.5, 0.5, 5.0, 0.10
_VOIDS = 3
"""So many rounds in a row may be void before the run gives up."""
WARM = 0.1
"""Of all calls of the long run: from then on nothing may grow."""
_FEW_SESSIONS = 2
WRONG = "errors and repeated serial numbers"
_SIGNER = b"bridge_pkcs11"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """The backend's own call in a loop."""

    per_second: float
    cpu_us: float
    p50_ms: float
    other_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One bridge, with 32 requests in flight and then with one caller."""

    busy: Result
    one_caller: Result

    @property
    def wrong(self) -> int:
        """Calls that failed, and serial numbers that came twice."""
        runs = (self.busy, self.one_caller)
        return sum(sum(one.errors.values()) + one.duplicates for one in runs)

    @property
    def other_percent(self) -> float:
        """What anything else used of the machine."""
        return max(self.busy.other_percent, self.one_caller.other_percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Bare calls, file and a backend, one after the other."""

    bare: Bare
    file: Side
    ours: Side

    @property
    def sum_us(self) -> float:
        """CPU time of file's certificate and the bare call."""
        return self.file.busy.cpu_us + self.bare.cpu_us

    @property
    def cpu_ratio(self) -> float:
        """CPU time of a certificate, as a part of that sum."""
        return self.ours.busy.cpu_us / self.sum_us

    @property
    def bare_per_second(self) -> float:
        """The highest rate of bare calls."""
        return self.bare.per_second

    @property
    def rate_ratio(self) -> float:
        """The rate, as a part of what that sum allows, or of the bare calls'."""
        allowed = min(1e6 / self.sum_us, self.bare_per_second)
        return self.ours.busy.per_second / allowed

    @property
    def more_ms(self) -> float:
        """What one caller waits beyond file's time and the bare call's."""
        shortest = self.file.one_caller.p50_ms + self.bare.p50_ms
        return self.ours.one_caller.p50_ms - shortest


@dataclass(frozen=True, slots=True, kw_only=True)
class Round(Compared):
    """With PKCS#11."""

    ca_key: KeyAlgorithm

    @property
    def other_percent(self) -> float:
        """What anything else used of the machine, in the worst run."""
        return max(one.other_percent for one in (self.bare, self.file, self.ours))


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What all processes of a bridge hold at a moment."""

    resident_kb: int
    threads: int
    sockets: int
    sessions: int
    """Of the token: opened, and not closed."""


def main() -> int:
    """Measure, print the tables and the verdicts; return the exit status."""
    options = options_of("bench-backends", __doc__ or "", _KEYS)
    verdicts: list[tuple[bool, str]] = []
    with prepared(options) as run:
        if "rates" in options.parts:
            rounds = list(_rounds(run, options))
            say("", *_table(rounds), "")
            verdicts += _verdicts(rounds)
            written(options.json, rounds)
        if "long" in options.parts:
            verdicts += _long(run, options.calls)
    say(*(f"* {text}" for _, text in verdicts))
    return 0 if all(good for good, _ in verdicts) else 1


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator["Run"]:
    """Build the clients, make tokens, and say where this is.

    Ends the program with status 2 where the measurement cannot be made.
    """
    peers = os.environ.get("MESHCA_PEERS")
    # Not under /tmp, which may be memory: a journal there would cost nothing.
    home = builds.cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    try:
        programs = build(Path(peers) if peers else _ROOT.parent / "shared/peers")
        with tempfile.TemporaryDirectory("-bench", dir=home) as name:
            folder = Path(name)
            options.tokens = "RS256"
            say(*surroundings(folder, options))
            load = Load(
                programs=programs, ca_key="p256", csr="p256", seconds=options.seconds
            )
            issuer = TokenIssuer()
            tokens = folder / "tokens"
            issuer.write_many(tokens, int(_MOST_PER_SECOND * load.all_seconds))
            yield Run(folder=folder, load=load, issuer=issuer, tokens=tokens)
    except (BenchError, builds.BuildError) as error:
        sys.stderr.write(f"bench-backends: {error}\n")
        raise SystemExit(2) from error


def options_of(
    program: str, description: str, keys: Sequence[str]
) -> argparse.Namespace:
    """Parse the command line of a comparison of backends."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--rounds", type=int, default=5, help="of each key (5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run (8)")
    parser.add_argument(
        "--calls", type=int, default=100_000, help="of the long run (100000)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("rates", "long"),
        default=["rates", "long"],
        help="what is measured (both)",
    )
    parser.add_argument("--key", choices=keys, help="only this one")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round of 3 s, never void, and 3,000 calls",
    )
    parser.add_argument(
        "--void",
        type=float,
        default=20.0,
        help="a round in which others used more of the machine, in %%, is void (20)",
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.calls = 1, 3.0, 3_000
        options.void = 100.0
    return options


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What all rounds have in common."""

    folder: Path
    load: Load
    issuer: TokenIssuer
    tokens: Path

    def bridge(
        self, folder: Path, ca_key: KeyAlgorithm, variables: dict[str, str]
    ) -> Bridge:
        """Make a bridge on the server's core that is not started yet."""
        settings = (f"{name}={value}" for name, value in variables.items())
        return Bridge(
            folder,
            issuers=[self.issuer],
            trust_domain="cluster.local",
            ca_key=ca_key,
            prefix=("env", *settings, "taskset", "-c", SERVER_CORE),
        )

    def side(
        self, bridge: Bridge, ca_key: KeyAlgorithm = "p256", *, signer: bool = False
    ) -> Side:
        """Measure a bridge that is not started yet.

        Args:
            bridge: What `bridge` made.
            ca_key: Of its CA.
            signer: Whether it must have a signer process.
        """
        load = replace(self.load, ca_key=ca_key)
        seconds = max(load.seconds / 2, 2)
        one = replace(load, connections=1, in_flight=1, seconds=seconds)
        with _on_server_core(bridge, signer=signer):
            busy = measure_running(load, self.tokens, bridge)
            one_caller = measure_running(one, self.tokens, bridge)
        require_on_record(bridge, busy, one_caller)
        return Side(busy=busy, one_caller=one_caller)


@dataclass(frozen=True, slots=True, kw_only=True)
class InToken:
    """A bridge whose issuing key is in SoftHSM."""

    bridge: Bridge
    token: Token
    public_key: CertificateIssuerPublicKeyTypes
    shim: Shim | None
    """Between plugin and SoftHSM, where the calls are counted."""


def _in_token(
    run: Run, folder: Path, ca_key: KeyAlgorithm, *, counted: bool = False
) -> InToken:
    store = SoftHSM(folder / "softhsm")
    token = store.new_token()
    public_key = token.new_key(ca_key)
    bridge = run.bridge(folder / "pkcs11", ca_key, store.variables)
    shim = Shim(folder, store.module, store.variables) if counted else None
    chain = bridge.folder / "token-chain.pem"
    write_chain(public_key, bridge.folder / "hierarchy", chain)
    tree = yaml.safe_load(bridge.configuration.read_text())
    issuing_ca = {
        "plugin": "pkcs11",
        "chain": str(chain),
        "options": token.options(
            pin_file=folder / "pin",
            module=shim.module if shim else None,
            # In the long run all of them are open from the beginning.
            **({"sessions": _FEW_SESSIONS} if shim else {}),
        ),
    }
    tree["issuing_cas"] = {"hsm-1": issuing_ca}
    tree["issuance"]["issuing_cas"] = ["hsm-1"]
    bridge.configuration.write_text(yaml.safe_dump(tree))
    return InToken(bridge=bridge, token=token, public_key=public_key, shim=shim)


def _rounds(run: Run, options: argparse.Namespace) -> Iterator[Round]:
    for ca_key in [options.key] if options.key else _KEYS:
        for number in range(options.rounds):
            measure = partial(_round, run, ca_key)
            yield valid(f"{ca_key}-{number}", options.void, measure)


class _Measured(Protocol):
    @property
    def other_percent(self) -> float: ...


Measured = TypeVar("Measured", bound=_Measured)


def valid(name: str, void: float, measure: Callable[[str], Measured]) -> Measured:
    """Measure a round, again where others used more of the machine than `void` %.

    Raises:
        BenchError: Three in a row were void.
    """
    for attempt in range(_VOIDS):
        found = measure(f"{name}-{attempt}")
        if found.other_percent <= void:
            return found
        say(f"{name}: void: something else used {found.other_percent:.0f} %")
    raise BenchError(
        f"{_VOIDS} rounds in a row were void: something else used over {void:.0f} % of "
        "the machine; run again when it is idle"
    )


def _round(run: Run, ca_key: KeyAlgorithm, name: str) -> Round:
    folder = run.folder / name
    folder.mkdir()
    in_token = _in_token(run, folder, ca_key)
    bare = _bare(in_token, run.load.seconds)
    file = run.side(run.bridge(folder / "file", ca_key, {}), ca_key)
    pkcs11 = run.side(in_token.bridge, ca_key, signer=True)
    found = Round(ca_key=ca_key, bare=bare, file=file, ours=pkcs11)
    say(
        f"{name}: bare {bare.cpu_us:.0f} us, file {file.busy.cpu_us:.0f} us, PKCS#11 "
        f"{pkcs11.busy.cpu_us:.0f} us, {found.cpu_ratio:.2f} of the sum; other CPU "
        f"{found.other_percent:.0f} %"
    )
    return found


@contextmanager
def _on_server_core(bridge: Bridge, *, signer: bool) -> Iterator[None]:
    # A signer is not kept to the core of its worker; here it shares it.
    with bridge:
        pids = [bridge.pid, *descendants(bridge.pid)]
        if signer and not any(map(_is_signer, pids)):
            raise BenchError(f"there is no signer process: {bridge.log()}")
        for task in (task for pid in pids for task in _tasks(pid)):
            os.sched_setaffinity(task, {int(SERVER_CORE)})
        yield


def _is_signer(pid: int) -> bool:
    return _SIGNER in Path(f"/proc/{pid}/cmdline").read_bytes()


def _tasks(pid: int) -> list[int]:
    return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]


def _bare(in_token: InToken, seconds: float) -> Bare:
    token = in_token.token
    spki = in_token.public_key.public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    order = {
        "module": str(token.store.module),
        "serial": token.serial,
        "pin": token.pin,
        "key": KEY_LABEL,
        "spki": spki.hex(),
        "seconds": seconds,
    }
    path = f"{_ROOT}:{_ROOT / 'plugins'}"
    busy, began = busy_seconds(), time.monotonic()
    done = subprocess.run(
        ["taskset", "-c", SERVER_CORE, sys.executable, "-m", "tests.bench.bare_call"],
        cwd=_ROOT,
        env={**os.environ, **token.store.variables, "PYTHONPATH": path},
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"the bare calls failed: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    whole = time.monotonic() - began
    # Its start counts as other use too, so this is at most too strict.
    other = busy_seconds() - busy - found.pop("cpu_seconds")
    percent = 100 * max(other, 0.0) / whole / (os.cpu_count() or 1)
    return Bare(**found, other_percent=percent)


def busy_seconds() -> float:
    """Return the CPU time that the machine has spent, and what was stolen from it."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _long(run: Run, calls: int) -> Iterator[tuple[bool, str]]:
    """Issue many certificates; yield what may not have grown after the first tenth."""
    folder = run.folder / "long"
    folder.mkdir()
    in_token = _in_token(run, folder, "p256", counted=True)
    bridge = in_token.bridge
    load = replace(run.load, tokens_are_for_one=False)
    looks: list[Held] = []
    wrong = 0
    with _on_server_core(bridge, signer=True):
        for wanted in (int(calls * WARM), calls):
            result = None
            while (done := bridge.metric("meshca_requests_total", code="OK")) < wanted:
                rate = max(result.per_second, 1) if result else _MOST_PER_SECOND / 4
                seconds = min(30.0, max(1.0, (wanted - done) / rate))
                result = measure_running(
                    replace(load, seconds=round(seconds, 1)), run.tokens, bridge
                )
                wrong += sum(result.errors.values()) + result.duplicates
            looks.append(_held(in_token))
            say(f"{done:,.0f} calls: {looks[-1]}")
    checked = bridge.run("ledger", "verify")
    if checked.returncode:
        raise BenchError(f"the ledger does not verify: {checked.stderr}")
    yield verdict(f"long run: {WRONG}: {wrong}", good=wrong == 0)
    warm, end = looks
    growth = end.resident_kb / warm.resident_kb - 1
    text = f"after {calls:,} calls, compared with {int(calls * WARM):,}"
    yield verdict(
        f"{text}: memory {end.resident_kb / 1024:.0f} MiB, {growth:+.1%}, bound "
        f"{MOST_GROWTH:+.0%}",
        good=growth <= MOST_GROWTH,
    )
    for name in ("sessions", "sockets", "threads"):
        before, after = getattr(warm, name), getattr(end, name)
        yield verdict(f"{text}: {name} {before} and {after}", good=after <= before)


def _held(in_token: InToken) -> Held:
    bridge, shim = in_token.bridge, in_token.shim
    pids = [bridge.pid, *descendants(bridge.pid)]
    look = Look.at(*pids)
    files = [path for pid in pids for path in Path(f"/proc/{pid}/fd").iterdir()]
    sockets = sum(str(path.readlink()).startswith("socket:") for path in files)
    opened = shim.calls("C_OpenSession") - shim.calls("C_CloseSession") if shim else 0
    return Held(
        resident_kb=look.resident_kb,
        threads=look.threads,
        sockets=sockets,
        sessions=opened,
    )


def written(path: Path | None, rounds: Sequence[Any]) -> None:
    """Write all figures of dataclasses to a file, if there is one."""
    if path is None:
        return
    figures = [
        asdict(one)
        | {
            "cpu_ratio": one.cpu_ratio,
            "rate_ratio": one.rate_ratio,
            "more_ms": one.more_ms,
        }
        for one in rounds
    ]
    report = {"at": datetime.now(UTC).isoformat(), "rounds": figures}
    path.write_text(json.dumps(report, indent=2) + "\n")


def _table(rounds: list[Round]) -> Iterator[str]:
    yield (
        "| CA key | CPU us: bare call | file | PKCS#11 | of the sum | per second: bare "
        "| file | PKCS#11 | of what is allowed | one caller, p50 ms: bare | file | "
        "PKCS#11 | more | other CPU |"
    )
    yield "|" + "---|" * 14
    for one in rounds:
        bare, file, ours = one.bare, one.file, one.ours
        cells = [
            one.ca_key,
            *(f"{us:.0f}" for us in (bare.cpu_us, file.busy.cpu_us, ours.busy.cpu_us)),
            f"{one.cpu_ratio:.2f}",
            f"{bare.per_second:,.0f}",
            *(f"{side.busy.per_second:,.0f}" for side in (file, ours)),
            f"{one.rate_ratio:.2f}",
            f"{bare.p50_ms:.2f}",
            *(f"{side.one_caller.p50_ms:.2f}" for side in (file, ours)),
            f"{one.more_ms:.2f}",
            f"{one.other_percent:.0f} %",
        ]
        yield f"| {' | '.join(cells)} |"


def _verdicts(rounds: list[Round]) -> Iterator[tuple[bool, str]]:
    for ca_key in dict.fromkeys(one.ca_key for one in rounds):
        of_key = [one for one in rounds if one.ca_key == ca_key]
        found = statistics.median(one.cpu_ratio for one in of_key)
        yield verdict(
            f"CA {ca_key}: CPU of a certificate {found:.2f} of file's and the bare "
            f"call's (median of {len(of_key)}), bound {_MOST_CPU}",
            good=found <= _MOST_CPU,
        )
        found = statistics.median(one.rate_ratio for one in of_key)
        yield verdict(
            f"CA {ca_key}: certificates a second {found:.2f} of what that CPU or the "
            f"bare call allows, floor {LEAST_RATE}",
            good=found >= LEAST_RATE,
        )
        found = statistics.median(one.more_ms for one in of_key)
        yield verdict(
            f"CA {ca_key}: one caller waits {found:.2f} ms more than for file and the "
            f"bare call, bound {MOST_MORE_MS:.0f} ms",
            good=found <= MOST_MORE_MS,
        )
    wrong = sum(one.file.wrong + one.ours.wrong for one in rounds)
    yield verdict(f"{WRONG}: {wrong}", good=wrong == 0)


if __name__ == "__main__":
    sys.exit(main())
