"""A cluster that cannot be watched holds up no others; a remote secret is followed."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from bridge.config import BridgeConfig, parse
from bridge.errors import ReviewError
from bridge.kubernetes import clients, cluster_watch, kubeconfig
from bridge.kubernetes.clients import WatchSource
from bridge.kubernetes.credentials import APIAccess
from bridge.kubernetes.informer import Sink
from bridge.kubernetes.objects import PODS, ClusterObject, ObjectIndex, WatchState
from bridge.kubernetes.remote_secrets import _Known
from tests.support.harness.configuration import text

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: one
clusters:
  - name: one
    cluster: {server: "https://10.0.0.1", certificate-authority: ca.pem}
users: [{name: one, user: {tokenFile: token}}]
contexts: [{name: one, context: {cluster: one, user: one}}]
"""


class EndedError(Exception):
    """The test has seen enough."""


class Loop:
    """Takes the place of the thread of one watch."""

    running: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, _: str, step: Any, *__: object, **___: object) -> None:
        informer = step.__self__
        self._what = informer._sink._source, informer._resource.kind

    def start(self) -> None:
        self.running.append(self._what)

    def stop(self) -> None:
        self.running.remove(self._what)


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return what is watched: the name of a cluster in the index, and a resource."""
    monkeypatch.setattr(cluster_watch, "BackgroundLoop", Loop)
    monkeypatch.setattr(kubeconfig, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(Loop, "running", [])
    return Loop.running


def watched(
    config: BridgeConfig,
    index: Path,
    monkeypatch: pytest.MonkeyPatch,
    *steps: Callable[[], object],
) -> None:
    """Watch, and do one step in each pause."""
    left = [*steps]

    def sleep(_: float) -> None:
        if not left:
            raise EndedError
        left.pop(0)()

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: 1.0)
    monkeypatch.setattr(cluster_watch, "time", clock)
    with pytest.raises(EndedError):
        cluster_watch.watch(config, index)


def cluster(name: str, **tokens: object) -> dict[str, Any]:
    bound = {"verify": "bound", "issuer": f"https://{name}.example"}
    return {"name": name, "tokens": bound | tokens}


def test_a_cluster_without_its_kubeconfig_is_watched_later(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    running: list[tuple[str, str]],
) -> None:
    both = [cluster(one, kubeconfig=f"{one}.kubeconfig") for one in ("a", "b")]
    config = parse(text(clusters=both), tmp_path / "bridge.yaml")
    without = WatchSource(config.clusters[0], None)()
    (tmp_path / "b.kubeconfig").write_text(KUBECONFIG)
    (tmp_path / "b.kubeconfig").chmod(0o600)
    begun: list[int] = []

    def wait() -> None:
        begun.append(len(running))

    def mend() -> None:
        (tmp_path / "b.kubeconfig").rename(tmp_path / "a.kubeconfig")

    watched(config, tmp_path / "watched", monkeypatch, wait, wait, mend, wait)
    assert begun == [2, 2, 4]
    (tmp_path / "b.kubeconfig").write_text(KUBECONFIG)
    (tmp_path / "b.kubeconfig").chmod(0o600)
    sources = [WatchSource(one, None)() for one in config.clusters]
    assert {source for source, _ in running} == set(sources)
    assert caplog.text.count("cluster a: not watched so far") == 1
    assert "a.kubeconfig" in caplog.text
    with closing(ObjectIndex(tmp_path / "watched")) as reader:
        assert "a.kubeconfig" in reader.state(without).trouble
        assert reader.state(sources[1]) == WatchState(None)


def test_a_cluster_is_watched_anew_where_its_kubeconfig_names_another_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: list[tuple[str, str]]
) -> None:
    path = tmp_path / "a.kubeconfig"
    path.touch(0o600)
    path.write_text(KUBECONFIG)
    changed = {"clusters": [cluster("a", kubeconfig="a.kubeconfig")]}
    config = parse(text(**changed), tmp_path / "bridge.yaml")
    seen: list[str] = []

    def put(content: str) -> Callable[[], object]:
        def step() -> None:
            (source,) = {source for source, _ in running}
            seen.append(source)
            path.write_text(content)

        return step

    steps = (
        put(KUBECONFIG.replace("tokenFile: token", "tokenFile: another")),
        put(KUBECONFIG.replace("10.0.0.1", "10.0.0.2")),
        put(KUBECONFIG.replace("ca.pem", "ca2.pem")),
        put("cut"),
        put(""),
    )
    watched(config, tmp_path / "watched", monkeypatch, *steps)
    one, with_other_token, other_server, other_ca, *_ = seen
    assert one == with_other_token
    assert len({one, other_server, other_ca}) == 3


def test_workers_and_watcher_notice_another_server_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = [100.0]
    now = SimpleNamespace(monotonic=lambda: at[-1])
    monkeypatch.setattr(kubeconfig, "time", now)
    path = tmp_path / "a.kubeconfig"
    path.touch(0o600)
    path.write_text(KUBECONFIG)
    entry = parse(
        text(clusters=[cluster("a", kubeconfig="a.kubeconfig")]),
        tmp_path / "bridge.yaml",
    ).clusters[0]
    source = WatchSource(entry, None)
    first = source()
    for content in ("cut", KUBECONFIG.replace("10.0.0.1", "10.0.0.2")):
        path.write_text(content)
        assert source() == first, "looked at again too early, or it is no kubeconfig"
        at.append(at[-1] + 1)
        is_changed = source() != first
        assert is_changed is (content != "cut")


def access(host: str, token: str = "one") -> APIAccess:  # noqa: S107 - of a test
    return APIAccess(server=f"https://{host}", ca=b"", token=token)


def test_a_cluster_is_watched_where_its_remote_secret_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    running: list[tuple[str, str]],
) -> None:
    section = {"server": "https://10.0.0.1", "ca_file": "ca.pem", "token_file": "t"}
    changed = {
        "clusters": [cluster("a", **section), cluster("far", remote_secret=True)],
        "remote_secrets": section | {"namespace": "istio-system"},
    }
    config = parse(text(**changed), tmp_path / "bridge.yaml")
    secrets = clients.remote_secrets_of(config)
    assert secrets is not None
    monkeypatch.setattr(secrets, "start", lambda: None)
    monkeypatch.setattr(cluster_watch, "remote_secrets_of", lambda _: secrets)
    index = ObjectIndex(tmp_path / "watched")
    seen: list[str] = []

    def see() -> None:
        names = {source for source, _ in running if source.startswith("far ")}
        assert len(running) == 2 + 2 * len(names)
        seen.append(next(iter(names), ""))

    def say(found: APIAccess | None) -> Callable[[], object]:
        known = {} if found is None else {"far": _Known(b"", found)}

        def step() -> None:
            see()
            if seen[-1]:
                pod = ClusterObject("shop", "web-0", "1")
                index.publish(seen[-1], PODS, [pod], 1.0)
            secrets._known = known

        return step

    steps = [access("one"), access("one", token="two"), access("other"), None]  # noqa: S106 - see above
    watched(config, tmp_path / "watched", monkeypatch, *map(say, steps), see)
    before, one, same, other, gone = seen
    assert (before, one, gone) == ("", same, "")
    assert len({one, other}) == 2
    with closing(index):
        # What was seen elsewhere is forgotten.
        assert [index.find(each, PODS, "shop", "web-0") for each in (one, other)] == [
            None,
            None,
        ]


def test_what_was_seen_by_a_remote_secret_outlives_the_watcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"server": "https://10.0.0.1", "ca_file": "ca.pem", "token_file": "t"}
    changed = {
        "clusters": [cluster("far", remote_secret=True)],
        "remote_secrets": section | {"namespace": "istio-system"},
    }
    config = parse(text(**changed), tmp_path / "bridge.yaml")
    monkeypatch.setattr(cluster_watch, "remote_secrets_of", lambda _: None)
    with closing(ObjectIndex(tmp_path / "watched")) as index:
        index.create(["far 1", "near 1"])
        for source in ("far 1", "near 1"):
            index.publish(source, PODS, [ClusterObject("shop", "web-0", "1")], 1.0)
        watched(config, tmp_path / "watched", monkeypatch)
        assert index.find("far 1", PODS, "shop", "web-0") is not None
        assert index.find("near 1", PODS, "shop", "web-0") is None


def test_home_that_cannot_be_told_holds_up_no_other_cluster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    running: list[tuple[str, str]],
) -> None:
    section = {"server": "https://10.0.0.1", "ca_file": "ca.pem", "token_file": "t"}
    changed = {
        "clusters": [cluster("a", **section), cluster("far", remote_secret=True)],
        "remote_secrets": {"kubeconfig": "home", "namespace": "istio-system"},
    }
    config = parse(text(**changed), tmp_path / "bridge.yaml")
    watched(config, tmp_path / "watched", monkeypatch, lambda: None)
    assert {source.partition(" ")[0] for source, _ in running} == {"a"}
    assert caplog.text.count("remote secrets: not listed so far") == 1


def test_a_watch_that_is_over_changes_nothing(tmp_path: Path) -> None:
    pod = ClusterObject("shop", "web-0", "1")
    with closing(ObjectIndex(tmp_path / "watched")) as index:
        index.create(["one"])
        sink = Sink(index, "one", PODS)
        sink.put(pod)
        sink.is_over = True
        changes: list[Callable[[], object]] = [
            lambda: sink.publish([]),
            lambda: sink.put(pod._replace(uid="2")),
            lambda: sink.remove(pod),
            sink.confirm,
        ]
        for change in changes:
            with pytest.raises(ReviewError, match="this watch is over"):
                change()
        sink.trouble("it is over")
        assert index.find("one", PODS, "shop", "web-0") == pod
        assert index.state("one", [PODS]).trouble == ""
