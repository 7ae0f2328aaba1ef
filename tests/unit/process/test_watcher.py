"""A cluster that cannot be watched holds up no others."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.config import BoundConfig, parse
from bridge.kubernetes.clients import watch_source
from bridge.kubernetes.objects import ObjectIndex, WatchState
from bridge.process import watcher
from bridge.process.role import WatcherOrder
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
    """The watcher waits, with nothing more to begin."""


def cluster(name: str) -> dict[str, Any]:
    tokens = {"verify": "bound", "issuer": f"https://{name}.example"}
    return {"name": name, "tokens": tokens | {"kubeconfig": f"{name}.kubeconfig"}}


def end() -> None:
    raise EndedError


def test_a_cluster_without_its_kubeconfig_is_watched_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, written = tmp_path / "bridge.yaml", text(clusters=[*map(cluster, ("a", "b"))])
    sources = [
        watch_source(one.name, one.tokens)
        for one in parse(written, path).clusters
        if isinstance(one.tokens, BoundConfig)
    ]
    (tmp_path / "b.kubeconfig").write_text(KUBECONFIG)
    (tmp_path / "b.kubeconfig").chmod(0o600)
    begun: list[str] = []
    waits: list[tuple[str, ...]] = []

    class Loop:
        def __init__(self, *_: object, **__: object) -> None: ...

        def start(self) -> None:
            begun.append("watch")

    def sleep(_: float) -> None:
        waits.append(tuple(begun))
        if len(waits) == 3:
            (tmp_path / "b.kubeconfig").rename(tmp_path / "a.kubeconfig")

    monkeypatch.setattr("bridge.system.background.BackgroundLoop", Loop)
    monkeypatch.setattr(watcher, "time", SimpleNamespace(sleep=sleep))
    event = SimpleNamespace(Event=lambda: SimpleNamespace(wait=end))
    monkeypatch.setattr(watcher, "threading", event)
    index = tmp_path / "watched"
    order = WatcherOrder(
        text=written, path=str(path), index=str(index), log_level="INFO"
    )
    with pytest.raises(EndedError):
        watcher._run(order)
    assert waits == [("watch",) * 2] * 3
    assert len(begun) == 4
    assert caplog.text.count("cluster a: not watched so far") == 1
    assert "a.kubeconfig" in caplog.text
    with closing(ObjectIndex(index)) as reader:
        assert "a.kubeconfig" in reader.state(sources[0]).trouble
        assert reader.state(sources[1]) == WatchState(None)
