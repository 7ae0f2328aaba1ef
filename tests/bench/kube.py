"""Tokens of Kubernetes: the bridge beside the meshes' own CAs (`make bench-kube`).

One API server with its etcd, one load client, and in turn, alone on core 0: the bridge
with each `tokens.verify`, Istio's CA, and what stands in for linkerd-identity. The last
two review each token, as they are shipped and without the limiter of their client. All
else is on core 1. Then the watcher is measured: what it needs to list many pods, and
how many watches the API server counts.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import kube_verdicts
from tests.bench.kube_cluster import PEERS, Cluster, write_in_two
from tests.bench.kube_verdicts import (
    BOUND,
    BRIDGES,
    ISTIO,
    ISTIO_FREE,
    JWKS,
    LINKERD,
    LINKERD_FREE,
    REVIEW,
    Round,
    Side,
)
from tests.bench.kube_watcher import (
    bridge_of,
    empty_kb,
    is_bound,
    listed,
    listed_stream,
    watches,
)
from tests.bench.load import (
    BenchError,
    Load,
    Programs,
    build,
    build_linkerd,
    measure_running,
    require_on_record,
    run_client,
    serving_peer,
)
from tests.bench.peers import BUSY_PERCENT, say, surroundings
from tests.support.clients.istio_raw import Wire, bearer
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import await_true
from tests.support.parts import builds
from tests.support.parts.kubernetes import APIServer

_ROOT = Path(__file__).resolve().parents[2]
_PARTS = ("rates", "watcher")
_MOST_PER_SECOND = 1_800
"""More than one core can do: so many tokens are made for a second of load."""
_FREE = ("-kube-qps", "1e9", "-kube-burst", "1000000000")
_JUNK_TIMES = 20
_LIST_SECONDS = 60.0
_IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    # What both parts stand on.
    folder: Path
    cluster: Cluster
    empty_kb: int
    """What a watcher holds where there are no pods."""

    def new_folder(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rates:
    # What all rounds have in common.
    ground: _Ground
    load: Load
    linkerd: Path
    tokens: Iterator[Path]

    @property
    def cluster(self) -> Cluster:
        return self.ground.cluster

    def round(self) -> Round:
        # What is held against each other runs one after the other.
        found = {name: self._bridge(name) for name in BRIDGES}
        istio = ("-ca-key", self.load.ca_key)
        found[ISTIO_FREE] = self._peer("istio", *istio, *_FREE)
        found[ISTIO] = self._peer("istio", *istio)
        found[LINKERD] = self._peer("linkerd")
        found[LINKERD_FREE] = self._peer("linkerd", *_FREE)
        rates = (f"{name} {one.result.per_second:.0f}/s" for name, one in found.items())
        say(", ".join(rates))
        return found

    def _bridge(self, verify: str) -> Side:
        section = {} if verify == JWKS else self.cluster.section(verify)
        folder = self.ground.new_folder(verify)
        bridge = bridge_of(self.cluster, folder / "bridge", section)
        with bridge:
            if verify == BOUND:
                await_true(lambda: is_bound(bridge), _LIST_SECONDS)
            calls, issued = self.cluster.calls(), _issued(bridge)
            result = measure_running(self.load, next(self.tokens), bridge)
            calls = self.cluster.calls() - calls
            issued = _issued(bridge) - issued
        require_on_record(bridge, result)
        intents = bridge.rows(kind="intent", purpose="workload")
        ways = {row["verified_by"] for row in intents}
        if ways != {verify}:
            raise BenchError(f"tokens were verified by {ways}, not by {verify}")
        return Side(result=result, api_calls=calls.total(), certificates=int(issued))

    def _peer(self, front: str, *options: str) -> Side:
        programs = {"istio": self.load.programs.peer, "linkerd": self.linkerd}
        account = dict(zip(programs, (name for _, name in PEERS), strict=True))[front]
        kubeconfig = str(self.cluster.kubeconfig(account))
        every = ("-auth", "kube", "-kubeconfig", kubeconfig, *options)
        folder = self.ground.new_folder(front)
        with serving_peer(programs[front], folder, *every) as running:
            result = run_client(
                replace(self.load, front=front),
                running.address,
                running.roots,
                {"server": running.pid},
                next(self.tokens),
            )
        if not result.good:
            raise BenchError(f"{front}'s CA gave out nothing: {result.errors}")
        return Side(result=result)

    def junk(self) -> tuple[bool, str]:
        """Show a bridge that reviews each token what is none."""
        section = self.cluster.section(REVIEW)
        bridge = bridge_of(
            self.cluster, self.ground.new_folder("junk") / "bridge", section
        )
        asked = 0
        with bridge:
            before = _of_callers(self.cluster)
            for name, token in self.cluster.junk().items():
                with Wire(bridge) as wire:  # one with much junk would be closed
                    for _ in range(_JUNK_TIMES):
                        answer = wire.ask(bearer(token))
                        asked += 1
                        if answer.code != "UNAUTHENTICATED":
                            raise BenchError(f"junk, {name}: {answer}")
            reviews = _of_callers(self.cluster) - before
        return kube_verdicts.of_junk(asked, reviews)


def main() -> int:
    """Measure, print the table and the verdicts; return the exit status."""
    options = _options()
    rounds: list[Round] = []
    verdicts: list[tuple[bool, str]] = []
    try:
        programs = _built() if "rates" in options.parts else None
        with _prepared(options) as ground:
            if programs is not None:
                rates = _rates(ground, *programs, options.seconds)
                rounds += (rates.round() for _ in range(options.rounds))
                verdicts += kube_verdicts.of_rates(rounds)
                verdicts.append(rates.junk())
            if "watcher" in options.parts:
                verdicts += _watcher(ground, options.stream)
    except (BenchError, builds.BuildError) as error:
        sys.stderr.write(f"bench-kube: {error}\n")
        return 2
    if rounds:
        say("", *kube_verdicts.table(rounds))
        _note_others(rounds)
    say("", *(f"* {text}" for _, text in verdicts))
    if options.json:
        figures = [{name: asdict(one) for name, one in each.items()} for each in rounds]
        report = {
            "at": datetime.now(UTC).isoformat(),
            "rounds": figures,
            "verdicts": [text for _, text in verdicts],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(good for good, _ in verdicts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-kube", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of all servers (3)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run (8)")
    parser.add_argument("--pods", type=int, default=10_000, help="real ones (10000)")
    parser.add_argument("--nodes", type=int, default=500, help="real ones (500)")
    parser.add_argument(
        "--stream", type=int, default=50_000, help="pods of the recorded stream (50000)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=_PARTS,
        default=_PARTS,
        help="what is measured (both)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of 3 s, a tenth of the pods"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 3.0
        options.pods, options.nodes, options.stream = 1_000, 50, 5_000
    return options


def _built() -> tuple[Programs, Path]:
    peers = os.environ.get("MESHCA_PEERS")
    source = Path(peers) if peers else _ROOT.parent / "shared/peers"
    say("building the load client and the peers (minutes, the first time)")
    programs = build(source)
    given = os.environ.get("LINKERDID")
    said = given or "the stand-in of tests/bench/linkerd_identity"
    say(f"linkerd-identity is {said}")
    return programs, Path(given) if given else build_linkerd(source)


@contextmanager
def _prepared(options: argparse.Namespace) -> Iterator[_Ground]:
    if (os.cpu_count() or 1) < 2:
        raise BenchError("needs two cores: one for the server, one for all else")
    # Not under /tmp, which may be memory: a journal there would cost nothing.
    home = builds.cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=home)))
        options.tokens = "RS256"
        say(*surroundings(folder, options))
        server = stack.enter_context(APIServer(folder / "cluster"))
        cluster = Cluster(server)
        # Before there is a pod: this is what a watcher starts with.
        empty = empty_kb(cluster, folder / "empty")
        began = time.monotonic()
        cluster.populate(options.pods, options.nodes)
        seconds = time.monotonic() - began
        say(f"{options.pods} pods and {options.nodes} nodes made in {seconds:.0f} s")
        yield _Ground(folder=folder, cluster=cluster, empty_kb=empty)


def _rates(
    ground: _Ground, programs: Programs, linkerd: Path, seconds: float
) -> _Rates:
    cluster = ground.cluster
    load = Load(
        programs=programs,
        ca_key="rsa2048",
        csr="p256",
        seconds=seconds,
        beside=cluster.pin(),
    )
    tokens = [*cluster.tokens(2 * int(_MOST_PER_SECOND * load.all_seconds))]
    say(f"{len(tokens)} tokens made")
    _note_idle(cluster)
    return _Rates(
        ground=ground,
        load=load,
        linkerd=linkerd,
        tokens=write_in_two(ground.folder, tokens),
    )


def _watcher(ground: _Ground, stream: int) -> Iterator[tuple[bool, str]]:
    cluster, empty = ground.cluster, ground.empty_kb
    cluster.pin()
    for found in (
        listed(cluster, ground.new_folder("listed") / "bridge", empty),
        listed_stream(cluster, ground.new_folder("stream") / "of", empty, stream),
    ):
        say(str(found))
        yield from kube_verdicts.of_list(found)
    for counted in watches(cluster, ground.new_folder("watches") / "bridge"):
        yield kube_verdicts.of_watches(counted)


def _issued(bridge: Bridge) -> float:
    return bridge.metric("meshca_requests_total", front="istio", code="OK")


def _of_callers(cluster: Cluster) -> int:
    # What a bridge asks for a caller, and the API server never asks itself.
    calls = cluster.calls()
    asked = ("POST tokenreviews", "GET pods", "LIST pods", "GET serviceaccounts")
    return sum(calls[one] for one in asked)


def _note_idle(cluster: Cluster) -> None:
    before = cluster.calls()
    time.sleep(_IDLE_SECONDS)
    idle = cluster.calls() - before
    say(
        f"the API server answers {idle.total() / _IDLE_SECONDS:.1f} requests a second "
        "of its own; these count as the bridge's"
    )


def _note_others(rounds: list[Round]) -> None:
    busiest = max(one.result.other_percent for each in rounds for one in each.values())
    if busiest > BUSY_PERCENT:
        say(
            f"NOTE: something else used up to {busiest:.0f} % of this machine: run "
            "again when it is idle"
        )


if __name__ == "__main__":
    sys.exit(main())
