"""What the watcher does: it follows the objects of clusters, and keeps the index.

The watches of a cluster begin when its credentials can be read, and hold up no others.
They end when its remote secret or kubeconfig names another API server, or the secret is
gone.
"""

import logging
import time
from contextlib import suppress
from pathlib import Path

from bridge.config import BoundConfig, BridgeConfig, ClusterConfig
from bridge.errors import ConfigError, ReviewError
from bridge.kubernetes.clients import (
    WatchSource,
    access_source_of,
    api_server_of,
    has_remote_secret,
    remote_secrets_of,
)
from bridge.kubernetes.informer import RESOURCES, Informer, Sink
from bridge.kubernetes.objects import PODS, ObjectIndex
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
    entries = [
        (one, one.tokens)
        for one in config.clusters
        if isinstance(one.tokens, BoundConfig)
    ]
    remote = [one.name for one, _ in entries if has_remote_secret(one)]
    index = ObjectIndex(path)
    index.create([WatchSource(one, None)() for one, _ in entries], remote)
    secrets = _Secrets(config, is_needed=bool(remote))
    clusters = [_Cluster(index, *one) for one in entries]
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
    def __init__(
        self, index: ObjectIndex, entry: ClusterConfig, tokens: BoundConfig
    ) -> None:
        self._index = index
        self._entry = entry
        self._tokens = tokens
        self._secrets: RemoteSecrets | None = None
        self._called = WatchSource(entry, None)
        self._source = ""
        self._watches: list[tuple[Sink, BackgroundLoop]] = []
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
        for resource in RESOURCES.values():
            sink = Sink(self._index, source, resource.kind)
            informer = Informer(server, resource, sink)
            loop = BackgroundLoop(
                "watch", informer.follow, informer.pause, is_immediate=True
            )
            loop.start()
            self._watches.append((sink, loop))

    def _end(self) -> None:
        # A stream that is silent is left alone until it is dead.
        for sink, loop in self._watches:
            sink.is_over = True
            loop.stop()
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
