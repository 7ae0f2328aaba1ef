"""Clients for the API servers that a configuration names, and how each is reached."""

import hashlib
import threading

from bridge.config import (
    APIServerConfig,
    BridgeConfig,
    ClusterConfig,
    JWKSConfig,
)
from bridge.errors import ConfigError
from bridge.kubernetes.api import APIServer
from bridge.kubernetes.credentials import (
    AccessSource,
    APIAccess,
    Credentials,
    in_cluster,
)
from bridge.kubernetes.kubeconfig import KubeconfigFile
from bridge.kubernetes.remote_secrets import Allowed, RemoteSecret, RemoteSecrets


def key_of(tokens: APIServerConfig) -> str:
    """Return the key of a section that says where its API server is."""
    return "server" if tokens.kubeconfig is None else "kubeconfig"


class WatchSource:
    """What a cluster is called in the index of what the watcher has seen.

    One that is reached in another way is another: what was seen of it is forgotten.
    Called for each token, so little is done. Safe between threads.

    Args:
        entry: The cluster.
        secrets: Has the credentials of clusters with `tokens.remote_secret`.
    """

    def __init__(self, entry: ClusterConfig, secrets: RemoteSecrets | None) -> None:
        self._name = entry.name
        fields = set(APIServerConfig.model_fields)
        self._section = entry.tokens.model_dump_json(include=fields)
        self._is_remote = has_remote_secret(entry)
        self._located = access_source_of(entry, secrets) or _kubeconfig_of(entry)
        self._made: tuple[object, str] = (None, self._source_at(None))

    def __call__(self) -> str:
        """Return its name and a digest; empty while no secret has its API server."""
        place = None if self._located is None else self._located.place()
        if place is None and self._is_remote:
            return ""
        known, source = self._made
        if place != known:
            source = self._source_at(place)
            self._made = place, source
        return source

    def _source_at(self, place: object) -> str:
        digest = hashlib.sha256(f"{self._section}{place}".encode()).hexdigest()
        return f"{self._name} {digest[:16]}"


def api_server_of(
    tokens: APIServerConfig,
    calls: int = 1,
    source: AccessSource | None = None,
    spare: threading.Semaphore | None = None,
) -> APIServer:
    """Build the client of the API server that a section names. It asks nothing yet.

    Args:
        tokens: The section; by default the API server of the pod's own cluster.
        calls: How many requests may be in flight.
        source: Says how it is reached in place of the section.
        spare: Places for further requests, which it shares with other API servers.

    Raises:
        ConfigError: There is no such API server, or its URL cannot be used.
    """
    return APIServer(
        Credentials(source or _access_of(tokens)),
        seconds=tokens.timeout.total_seconds(),
        calls=calls,
        spare=spare,
    )


def access_source_of(
    entry: ClusterConfig, secrets: RemoteSecrets | None
) -> RemoteSecret | None:
    """Return what says how a cluster is reached in place of its section.

    Args:
        entry: The cluster.
        secrets: Has the credentials of clusters with `tokens.remote_secret`.
    """
    if secrets is None or not has_remote_secret(entry):
        return None
    return RemoteSecret(secrets, entry.name)


def has_remote_secret(entry: ClusterConfig) -> bool:
    """Return whether the credentials of a cluster are in a remote secret."""
    tokens = entry.tokens
    return not isinstance(tokens, JWKSConfig) and tokens.remote_secret


def _kubeconfig_of(entry: ClusterConfig) -> KubeconfigFile | None:
    tokens = entry.tokens
    if isinstance(tokens, JWKSConfig) or tokens.kubeconfig is None:
        return None
    return KubeconfigFile(tokens.kubeconfig, tokens.context or "")


def _access_of(tokens: APIServerConfig) -> APIAccess | AccessSource:
    if tokens.kubeconfig is not None:
        file = KubeconfigFile(tokens.kubeconfig, tokens.context or "")
        file.access()  # a mistake is told at once
        return file
    if tokens.server is None:
        return in_cluster()
    return APIAccess(
        server=tokens.server,
        ca=tokens.ca_file,
        token=tokens.token_file or "",
        certificate=tokens.client_certificate_file,
        key=tokens.client_key_file,
    )


def remote_secrets_of(config: BridgeConfig) -> RemoteSecrets | None:
    """Build what reads the remote secrets; None where there are none to read.

    Raises:
        ConfigError: Their API server cannot be asked, or its URL cannot be used.
    """
    section = config.remote_secrets
    if section is None:
        return None
    try:
        home = api_server_of(section)
    except ConfigError as error:
        raise ConfigError(f"remote_secrets.{key_of(section)}: {error}") from error
    names = {
        name: entry.name
        for entry in config.clusters
        if has_remote_secret(entry)
        for name in (entry.name, *entry.aliases)
    }
    allowed = Allowed(
        commands=frozenset(section.allowed_commands),
        files=frozenset(section.allowed_files),
    )
    return RemoteSecrets(home, section.namespace, names, allowed)
