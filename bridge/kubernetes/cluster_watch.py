"""What the watcher does: it follows the objects of clusters, and keeps the index.

The watches of a cluster begin when its credentials can be read, and hold up no others.
They end when its remote secret or kubeconfig names another API server, or the secret is
gone.
"""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from bridge.config import BoundConfig, BridgeConfig, ClusterConfig
from bridge.errors import ConfigError, ReviewError
from bridge.kubernetes.api import APIServer
from bridge.kubernetes.clients import (
    WatchSource,
    access_source_of,
    api_server_of,
    has_remote_secret,
    remote_secrets_of,
)
from bridge.kubernetes.informer import RESOURCES, Informer, Resource
from bridge.kubernetes.objects import PODS, ClusterObject, ObjectIndex
from bridge.kubernetes.remote_secrets import RemoteSecrets
from bridge.system.background import BackgroundLoop

_CALLS = 4
_LOOK_SECONDS = 1.0
_log = logging.getLogger(__name__)


def watch(config: BridgeConfig, path: Path) -> None:
    """Watch every cluster with `verify: bound`. Does not return.

    Args:
        config: The whole configuration.
        path: The file of the index.

    Raises:
        ReviewError: The index cannot be written.
    """
    entries = [one for one in config.clusters if isinstance(one.tokens, BoundConfig)]
    remote = [one.name for one in entries if has_remote_secret(one)]
    index = ObjectIndex(path)
    index.create([WatchSource(one, None)() for one in entries], remote)
    secrets = _Secrets(config, is_needed=bool(remote))
    clusters = [_Cluster(index, one) for one in entries]
    while True:
        found = secrets.found()
        for one in clusters:
            one.look(found)
        time.sleep(_LOOK_SECONDS)


class _Secrets:
    # The remote secrets, from when it can be told who has them.
    def __init__(self, config: BridgeConfig, *, is_needed: bool) -> None:
        self._config = config
        self._is_needed = is_needed
        self._made: RemoteSecrets | None = None
        self._trouble = ""

    def found(self) -> RemoteSecrets | None:
        """Return them; None while there are none to read."""
        if self._is_needed and self._made is None:
            try:
                self._made = remote_secrets_of(self._config)
            except ConfigError as error:
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    _log.error("remote secrets: not listed so far: %s", error)
            else:
                if self._made is not None:
                    self._made.start()
        return self._made


class _Cluster:
    # Its watches begin when its credentials can be read, and hold up no others. They
    # end when a remote secret or kubeconfig names another API server, or the secret is
    # gone.
    def __init__(self, index: ObjectIndex, entry: ClusterConfig) -> None:
        self._index = index
        self._entry = entry
        self._secrets: RemoteSecrets | None = None
        self._called = WatchSource(entry, None)
        self._source = ""
        self._watches: list[_Watch] = []
        self._trouble = ""

    def look(self, secrets: RemoteSecrets | None) -> None:
        """Start and end watches, if that is due. What cannot start is tried again."""
        if secrets is not self._secrets:
            self._secrets, self._called = secrets, WatchSource(self._entry, secrets)
        source = self._called()
        if source != self._source:
            self._end()
            if source:
                self._begin(source, secrets)

    def _begin(self, source: str, secrets: RemoteSecrets | None) -> None:
        try:
            access = access_source_of(self._entry, secrets)
            server = api_server_of(self._tokens, _CALLS, access)
        except (ConfigError, ReviewError, OSError) as error:
            self._tell(source, str(error))
            return
        self._source = source
        self._watches = [
            _Watch(server, resource_, _IntoIndex(self._index, source, resource_.kind))
            for resource_ in RESOURCES.values()
        ]

    @property
    def _tokens(self) -> BoundConfig:
        tokens = self._entry.tokens
        assert isinstance(tokens, BoundConfig)  # noqa: S101 - for the type checker
        return tokens

    def _end(self) -> None:
        for watch in self._watches:
            watch.end()
        if self._source:
            _log.info("cluster %s: not watched where it was before", self._entry.name)
            with suppress(ReviewError):  # nobody looks there any more
                self._index.forget(self._source)
        self._source, self._watches = "", []

    def _tell(self, source: str, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            _log.error("cluster %s: not watched so far: %s", self._entry.name, trouble)
        with suppress(ReviewError):  # those of others may be written
            self._index.trouble(source, PODS, trouble)


class _Watch:
    # One resource of one cluster is followed, until `end`.
    def __init__(
        self, server: APIServer, followed: Resource, sink: "_IntoIndex"
    ) -> None:
        self._sink = sink
        informer = Informer(server, followed, sink)
        self._loop = BackgroundLoop(
            "watch", informer.follow, informer.pause, is_immediate=True
        )
        self._loop.start()

    def end(self) -> None:
        """End it. A stream that is silent is left alone until it is dead."""
        self._sink.is_over = True
        self._loop.stop()


class _IntoIndex:
    # The sink of one informer: see `Sink`.
    def __init__(self, index: ObjectIndex, source: str, kind: str) -> None:
        self._index = index
        self._source = source
        self._kind = kind
        self.is_over = False

    def publish(self, objects: Iterable[ClusterObject]) -> None:
        self._require_open()
        self._index.publish(self._source, self._kind, objects, time.monotonic())

    def put(self, found: ClusterObject) -> None:
        self._require_open()
        self._index.put(self._source, self._kind, found, time.monotonic())

    def remove(self, gone: ClusterObject) -> None:
        self._require_open()
        self._index.remove(self._source, self._kind, gone, time.monotonic())

    def confirm(self) -> None:
        self._require_open()
        self._index.confirm(self._source, self._kind, time.monotonic())

    def trouble(self, text: str) -> None:
        if not self.is_over:
            self._index.trouble(self._source, self._kind, text)

    def _require_open(self) -> None:
        if self.is_over:
            raise ReviewError("this watch is over", rule="review.gone")
