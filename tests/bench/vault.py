"""Vault beside a key in a file and the bare calls (a part of `make bench-backends`).

A bridge with its key in a file, one with an issuing CA in OpenBao, and bare calls of
the same path take turns. Answers of OpenBao are 5 ms late. Server and bare calls are on
core 0; the load client, OpenBao and the delay are on core 1.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.testing import leaf_request
from tests.bench.backends import (
    LEAST_RATE,
    MOST_GROWTH,
    MOST_MORE_MS,
    WARM,
    WRONG,
    Bare,
    Compared,
    Run,
    busy_seconds,
    options_of,
    prepared,
    valid,
    written,
)
from tests.bench.load import CLIENT_CORE, SERVER_CORE, BenchError, measure_running
from tests.bench.peers import say, verdict
from tests.soak.ground import Look
from tests.support.harness.processes import descendants
from tests.support.harness.real_process import Bridge
from tests.support.harness.vault import ROLE
from tests.support.parts import vault_mounts
from tests.support.parts.delaying_proxy import DelayingProxy
from tests.support.parts.vault import Server
from tests.support.parts.vault_mounts import PKI, Transit

_ROOT = Path(__file__).resolve().parents[2]
_BACKENDS = ("vault-transit", "vault-pki")
_MOST_CPU: Mapping[str, float] = {"vault-transit": 1.5, "vault-pki": 1.8}
_MOST_OF_REQUESTS = 0.5
_COMMIT_MS = 2.0
"""Where the backend chooses the serial number, its outcome is on disk before the
answer."""
_DELAY_SECONDS = 0.005
_IN_FLIGHT = 32
_ROLE = {**ROLE, "allowed_uri_sans": ["spiffe://cluster.local/*"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultRound(Compared):
    """With one backend of Vault. `bare` is one caller."""

    backend: str
    at_once: Bare
    """32 callers."""
    requests: Bare
    """One caller, with hvac over requests."""
    other_percent: float

    @property
    def bare_per_second(self) -> float:
        """See `Compared`: that of 32 callers."""
        return self.at_once.per_second

    @property
    def of_requests(self) -> float:
        """CPU time of a bare call, as a part of one by requests."""
        return self.bare.cpu_us / self.requests.cpu_us


@dataclass(frozen=True, slots=True, kw_only=True)
class InVault:
    """A bridge whose issuing CA is in OpenBao, and the call that signs there."""

    bridge: Bridge
    path: str
    body: Mapping[str, object]
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """OpenBao, and the port where its answers are late."""

    server: Server
    url: str
    delay_pid: int

    @property
    def cpu_seconds(self) -> float:
        """CPU time that both have used."""
        return Look.at(self.server.pid, self.delay_pid).cpu_seconds


def main() -> int:
    """Measure, print the tables and the verdicts; return the exit status."""
    options = options_of("bench-vault", __doc__ or "", _BACKENDS)
    with prepared(options) as run, _place(run.folder) as place:
        verdicts: list[tuple[bool, str]] = []
        if "rates" in options.parts:
            rounds = list(_rounds(run, place, options))
            say("", *_table(rounds), "")
            verdicts += _verdicts(rounds)
            written(options.json, rounds)
        if "long" in options.parts:
            for backend in [options.key] if options.key else _BACKENDS:
                verdicts += _long(run, place, backend, options.calls)
    say(*(f"* {text}" for _, text in verdicts))
    return 0 if all(good for good, _ in verdicts) else 1


@contextmanager
def _place(folder: Path) -> Iterator[Place]:
    with (
        Server(folder / "openbao", storage="inmem") as server,
        DelayingProxy(server.url, _DELAY_SECONDS) as delay,
    ):
        for pid in (server.pid, delay.pid):
            command = ["taskset", "-acp", CLIENT_CORE, str(pid)]
            subprocess.run(command, check=True, capture_output=True)
        yield Place(server=server, url=delay.url, delay_pid=delay.pid)


def _in_vault(run: Run, place: Place, folder: Path, backend: str) -> InVault:
    bridge = run.bridge(folder / "vault", "p256", {})
    server, hierarchy = place.server, bridge.folder / "hierarchy"
    chain = bridge.folder / "vault-chain.pem"
    mount: PKI | Transit
    if backend == "vault-pki":
        mount = PKI.make(server, hierarchy, chain)
        mount.write_role(**_ROLE)
        path = f"/v1/{mount.mount}/issuer/{mount.issuer}/sign/{mount.role}"
        body = _leaf_body()
    else:
        mount = Transit.make(server, hierarchy, chain)
        path = f"/v1/{mount.mount}/sign/{mount.key}"
        body = _digest_body()
    policy = vault_mounts.write_policy(server, mount.rules)
    token = vault_mounts.new_token(server, policy)
    login = vault_mounts.token_login(token, folder / "token")
    tree = yaml.safe_load(bridge.configuration.read_text())
    tree["issuing_cas"] = {
        "vault-1": {
            "plugin": backend,
            "chain": str(chain),
            "options": mount.options(login, addresses=[place.url]),
        }
    }
    tree["issuance"]["issuing_cas"] = ["vault-1"]
    bridge.configuration.write_text(yaml.safe_dump(tree))
    return InVault(bridge=bridge, path=path, body=body, token=token)


def _leaf_body() -> dict[str, object]:
    name = "spiffe://cluster.local/ns/shop/sa/cart"
    request = leaf_request((x509.UniformResourceIdentifier(name),))
    csr = x509.load_der_x509_csr(request.csr).public_bytes(Encoding.PEM)
    return {
        "csr": csr.decode("ascii"),
        "common_name": "",
        "exclude_cn_from_sans": True,
        "uri_sans": [name],
        "format": "pem",
        "ttl": "3600s",
    }


def _digest_body() -> dict[str, object]:
    return {
        "input": "A" * 43 + "=",
        "prehashed": True,
        "hash_algorithm": "sha2-256",
        "marshaling_algorithm": "asn1",
        "key_version": 1,
    }


def _rounds(
    run: Run, place: Place, options: argparse.Namespace
) -> Iterator[VaultRound]:
    for backend in [options.key] if options.key else _BACKENDS:
        for number in range(options.rounds):
            measure = partial(_round, run, place, backend)
            yield valid(f"{backend}-{number}", options.void, measure)


def _round(run: Run, place: Place, backend: str, name: str) -> VaultRound:
    folder = run.folder / name
    folder.mkdir()
    made = _in_vault(run, place, folder, backend)
    seconds = run.load.seconds
    bare = _bare(made, place, seconds)
    at_once = _bare(made, place, seconds, threads=_IN_FLIGHT)
    requests = _bare(made, place, seconds, client="requests")
    file = run.side(run.bridge(folder / "file", "p256", {}))
    used, began = place.cpu_seconds, time.monotonic()
    vault = run.side(made.bridge)
    # To the load client, OpenBao and the delay are other programs of the machine.
    known = 50 * (place.cpu_seconds - used) / (time.monotonic() - began)
    others = max(bare.other_percent, file.other_percent, vault.other_percent - known)
    found = VaultRound(
        backend=backend,
        bare=bare,
        at_once=at_once,
        requests=requests,
        file=file,
        ours=vault,
        other_percent=others,
    )
    say(
        f"{name}: bare {bare.cpu_us:.0f} us (by requests {requests.cpu_us:.0f}), file "
        f"{file.busy.cpu_us:.0f} us, {backend} {vault.busy.cpu_us:.0f} us, "
        f"{found.cpu_ratio:.2f} of the sum; other CPU {others:.0f} %"
    )
    return found


def _bare(
    made: InVault, place: Place, seconds: float, *, threads: int = 1, client: str = ""
) -> Bare:
    order = {
        "url": place.url,
        "token": made.token,
        "path": made.path,
        "body": made.body,
        "seconds": seconds,
        "threads": threads,
        "client": client,
    }
    used, busy, began = place.cpu_seconds, busy_seconds(), time.monotonic()
    done = subprocess.run(
        ["taskset", "-c", SERVER_CORE, sys.executable, "-m", "tests.bench.bare_vault"],
        cwd=_ROOT,
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"the bare calls failed: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    whole = time.monotonic() - began
    # Its start and its warm-up count as other use too, so this is at most too strict.
    other = busy_seconds() - busy - found.pop("cpu_seconds")
    other -= place.cpu_seconds - used
    return Bare(**found, other_percent=50 * max(other, 0.0) / whole)


def _long(
    run: Run, place: Place, backend: str, calls: int
) -> Iterator[tuple[bool, str]]:
    """Issue many certificates; yield what may not have grown after the first tenth."""
    folder = run.folder / f"long-{backend}"
    folder.mkdir()
    made = _in_vault(run, place, folder, backend)
    bridge, load = made.bridge, replace(run.load, tokens_are_for_one=False)
    looks: list[tuple[Look, int]] = []
    wrong = 0
    with bridge:
        for wanted in (int(calls * WARM), calls):
            rate = 200.0
            while (done := bridge.metric("meshca_requests_total", code="OK")) < wanted:
                seconds = min(30.0, max(1.0, (wanted - done) / rate))
                result = measure_running(
                    replace(load, seconds=round(seconds, 1)), run.tokens, bridge
                )
                rate = max(result.per_second, 1)
                wrong += sum(result.errors.values()) + result.duplicates
            pids = [bridge.pid, *descendants(bridge.pid)]
            looks.append((Look.at(*pids), _sockets(pids)))
            say(f"{backend}, {done:,.0f} calls: {looks[-1]}")
    yield verdict(f"{backend}, long run: {WRONG}: {wrong}", good=wrong == 0)
    (warm, warm_sockets), (end, end_sockets) = looks
    growth = end.resident_kb / warm.resident_kb - 1
    text = f"{backend}, after {calls:,} calls, compared with {int(calls * WARM):,}"
    yield verdict(
        f"{text}: memory {end.resident_kb / 1024:.0f} MiB, {growth:+.1%}, bound "
        f"{MOST_GROWTH:+.0%}",
        good=growth <= MOST_GROWTH,
    )
    for name, before, after in (
        ("sockets", warm_sockets, end_sockets),
        ("threads", warm.threads, end.threads),
    ):
        yield verdict(f"{text}: {name} {before} and {after}", good=after <= before)


def _sockets(pids: list[int]) -> int:
    files = [path for pid in pids for path in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(str(path.readlink()).startswith("socket:") for path in files)


def _table(rounds: list[VaultRound]) -> Iterator[str]:
    yield (
        "| backend | CPU us: bare call | by requests | file | bridge | of the sum "
        "| per second: bare | file | bridge | of what is allowed "
        "| one caller, p50 ms: bare | file | bridge | more | other CPU |"
    )
    yield "|" + "---|" * 15
    for one in rounds:
        file, ours = one.file, one.ours
        cells = [
            one.backend,
            f"{one.bare.cpu_us:.0f}",
            f"{one.requests.cpu_us:.0f}",
            *(f"{side.busy.cpu_us:.0f}" for side in (file, ours)),
            f"{one.cpu_ratio:.2f}",
            f"{one.at_once.per_second:,.0f}",
            *(f"{side.busy.per_second:,.0f}" for side in (file, ours)),
            f"{one.rate_ratio:.2f}",
            f"{one.bare.p50_ms:.2f}",
            *(f"{side.one_caller.p50_ms:.2f}" for side in (file, ours)),
            f"{one.more_ms:.2f}",
            f"{one.other_percent:.0f} %",
        ]
        yield f"| {' | '.join(cells)} |"


def _verdicts(rounds: list[VaultRound]) -> Iterator[tuple[bool, str]]:
    for backend in dict.fromkeys(one.backend for one in rounds):
        same = [one for one in rounds if one.backend == backend]
        found = statistics.median(one.cpu_ratio for one in same)
        yield verdict(
            f"{backend}: CPU of a certificate {found:.2f} of file's and the bare "
            f"call's (median of {len(same)}), bound {_MOST_CPU[backend]}",
            good=found <= _MOST_CPU[backend],
        )
        found = statistics.median(one.rate_ratio for one in same)
        yield verdict(
            f"{backend}: certificates a second {found:.2f} of what that CPU or the "
            f"bare calls allow, floor {LEAST_RATE}",
            good=found >= LEAST_RATE,
        )
        found = statistics.median(one.more_ms for one in same)
        most = MOST_MORE_MS + (_COMMIT_MS if backend == "vault-pki" else 0)
        yield verdict(
            f"{backend}: one caller waits {found:.2f} ms more than for file and the "
            f"bare call, bound {most:.0f} ms",
            good=found <= most,
        )
        found = statistics.median(one.of_requests for one in same)
        yield verdict(
            f"{backend}: CPU of a call {found:.2f} of hvac's over requests, bound "
            f"{_MOST_OF_REQUESTS}",
            good=found <= _MOST_OF_REQUESTS,
        )
    wrong = sum(one.file.wrong + one.ours.wrong for one in rounds)
    yield verdict(f"{WRONG}: {wrong}", good=wrong == 0)


if __name__ == "__main__":
    sys.exit(main())
