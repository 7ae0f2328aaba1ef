"""Clusters by istiod's remote secrets: a kubeconfig for each, in the home cluster.

The secrets are listed every few seconds. What cannot be used in a secret leaves what it
said before in use, and disturbs no other secret. A secret that is gone takes the
credentials with it. Whoever may write the secrets chooses which API server vouches for
a cluster; programs and files of the bridge's host are theirs only by name.

Source:
    istio.io/istio, pkg/kube/multicluster/secretcontroller.go: the label
    `istio/multiCluster=true`, and one key of `data` for each cluster ID.
"""

import base64
import binascii
import logging
import threading
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bridge.errors import ConfigError, ReviewError
from bridge.kubernetes.api import APIServer, endless, unreadable
from bridge.kubernetes.credentials import APIAccess
from bridge.kubernetes.kubeconfig import access_of
from bridge.resilience.budget import Budget
from bridge.system.background import BackgroundLoop

_LABEL = "istio/multiCluster=true"
_SECONDS = 5.0
_LOOK_SECONDS = 30.0
_PAGE = 10
"""An answer has at most 1 MiB, and what `kubectl apply` made has its content twice."""
_MOST = 1000
"""Secrets that are read: each may have a MiB."""
_CLOSE_SECONDS = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What a remote secret may name of the bridge's own host."""

    commands: frozenset[str] = frozenset()
    """The values of `exec.command`, character for character."""
    files: frozenset[Path] = frozenset()


@dataclass(frozen=True, slots=True)
class _Known:
    # What the secrets say of one cluster.
    content: bytes
    access: APIAccess | None
    trouble: str = ""
    place: str = ""
    """The name of the secret, and the key in it."""


class RemoteSecrets:
    """The credentials of clusters, by the secrets of a namespace. For all threads.

    Args:
        home: The API server that has the secrets.
        namespace: Where they are.
        names: From each cluster ID that is looked for to the name of its cluster.
        allowed: What a secret may name of the bridge's own host.
    """

    def __init__(
        self,
        home: APIServer,
        namespace: str,
        names: Mapping[str, str],
        allowed: Allowed,
    ) -> None:
        self._home = home
        self._namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}/secrets"
        self._names = names
        self._allowed = allowed
        self._known: Mapping[str, _Known] = {}
        self._unused: tuple[str, ...] = ()
        self._trouble = "not listed so far"
        self._told: frozenset[str] = frozenset()
        self._loop = BackgroundLoop(
            "remote-secrets", self.look, _SECONDS, is_immediate=True
        )
        self._looking = threading.Lock()

    def known(self, cluster: str) -> _Known | None:
        """Return what the secrets say of a cluster; None if no secret does."""
        return self._known.get(cluster)

    def missing(self) -> frozenset[str]:
        """Return the clusters for which no secret has had credentials."""
        known = self._known
        return frozenset(
            cluster
            for cluster in self._names.values()
            if cluster not in known or known[cluster].access is None
        )

    @property
    def trouble(self) -> str:
        """Why the secrets cannot be listed; empty if they could be."""
        return self._trouble

    def look(self) -> None:
        """List the secrets, and take over what they say. An error is kept."""
        with self._looking:
            try:
                found = list(self._listed(Budget.of_seconds(_LOOK_SECONDS)))
            except ReviewError as error:
                self._trouble = f"{error}: {error.detail}"
            else:
                self._adopt(found)
                self._trouble = ""
            self._tell()

    def problems(self) -> list[str]:
        """Return what is wrong with the secrets, one sentence each."""
        place = f"remote secrets in {self._namespace}"
        found = [f"{place} cannot be listed: {self._trouble}"] if self._trouble else []
        found += [
            f"remote secret {known.place}: {known.trouble}"
            for known in self._known.values()
            if known.trouble
        ]
        return [*found, *self._unused]

    def start(self) -> None:
        """Start to list the secrets, again and again."""
        self._loop.start()

    def close(self) -> None:
        """Stop it. A list in progress ends by its time limit."""
        self._loop.close(_CLOSE_SECONDS)
        self._home.close()

    def _listed(self, budget: Budget) -> Iterator[Mapping[str, Any]]:
        query: dict[str, str | int] = {"labelSelector": _LABEL, "limit": _PAGE}
        for _ in range(_MOST // _PAGE):
            page = self._home.get(self._path, query, budget) or {}
            items, meta = page.get("items") or [], page.get("metadata") or {}
            if not isinstance(items, list) or not isinstance(meta, dict):
                raise unreadable("expected a list of secrets")
            yield from (one for one in items if isinstance(one, dict))
            if not (more := meta.get("continue")):
                return
            query["continue"] = str(more)
        raise endless(f"it has more than {_MOST} remote secrets")

    def _adopt(self, secrets: list[Mapping[str, Any]]) -> None:
        known: dict[str, _Known] = {}
        unused: list[str] = []
        for secret in sorted(secrets, key=_age):
            name = str(_mapping(secret, "metadata").get("name"))
            for cluster_id, value in _mapping(secret, "data").items():
                cluster = self._names.get(cluster_id)
                if cluster is None:
                    unused.append(
                        f"remote secret {name} is not used: no entry of clusters with "
                        f"tokens.remote_secret has the cluster ID {cluster_id!r:.80}"
                    )
                elif cluster in known:
                    unused.append(
                        f"remote secret {name} is not used: an older one is for the "
                        f"cluster {cluster}, too"
                    )
                else:
                    place = f"{name}, key {cluster_id}"
                    known[cluster] = self._read(cluster, value, place)
        self._known, self._unused = known, tuple(unused)

    def _read(self, cluster: str, value: object, place: str) -> _Known:
        before = self._known.get(cluster)
        try:
            content = base64.b64decode(str(value), validate=True)
        except (binascii.Error, ValueError):
            content = b""
        if before is not None and before.content == content:
            return replace(before, place=place)
        try:
            access = access_of(content)
            self._require_allowed(access)
        except (ConfigError, ValueError, TypeError, OSError, RecursionError) as error:
            # Whatever is wrong in it, the other secrets are looked at. What it said
            # itself stays in use, and not what another one said that is gone.
            old = before.access if before and before.place == place else None
            return _Known(content, old, str(error), place)
        _log.info("cluster %s has new credentials by its remote secret", cluster)
        return _Known(content, access, place=place)

    def _require_allowed(self, access: APIAccess) -> None:
        for path in access.files:
            if path not in self._allowed.files:
                raise ConfigError(
                    f"expected no file of the bridge's host (found {str(path)!r:.80}): "
                    "add it to remote_secrets.allowed_files if it is meant"
                )
        command = access.command
        if command is not None and command.command not in self._allowed.commands:
            raise ConfigError(
                f"expected no exec plugin (found {command.command!r:.80}): add it to "
                "remote_secrets.allowed_commands if whoever writes the secret may run "
                "it in the CA"
            )

    def _tell(self) -> None:
        # Each problem once, while it lasts.
        now = frozenset(self.problems())
        for problem in sorted(now - self._told):
            _log.warning("%s", problem)
        self._told = now


class RemoteSecret:
    """The access to one cluster's API server. See `AccessSource`."""

    keeps = False

    def __init__(self, secrets: RemoteSecrets, cluster: str) -> None:
        self._secrets = secrets
        self._cluster = cluster

    def stamp(self) -> Hashable:
        """See AccessSource.stamp."""
        known = self._secrets.known(self._cluster)
        return None if known is None else (known.content, known.access is None)

    def place(self) -> object:
        """Return what differs once it is another API server; None without one."""
        known = self._secrets.known(self._cluster)
        if known is None or known.access is None:
            return None
        return known.access.place

    def access(self) -> APIAccess:
        """See AccessSource.access."""
        known = self._secrets.known(self._cluster)
        if known is not None and known.access is not None:
            return known.access
        why = self._secrets.trouble or "no remote secret has its cluster ID"
        if known is not None:
            why = f"{known.place}: {known.trouble}"
        raise ConfigError(f"there is no remote secret to use: {why}")


def _mapping(secret: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = secret.get(key)
    return found if isinstance(found, dict) else {}


def _age(secret: Mapping[str, Any]) -> tuple[str, str]:
    meta = _mapping(secret, "metadata")
    return str(meta.get("creationTimestamp")), str(meta.get("name"))
