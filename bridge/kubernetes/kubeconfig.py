"""Read a kubeconfig: one context of it becomes the access to an API server.

What would weaken the connection, or is not supported, is refused in words. Nothing of
the content is shown in an error: it holds secrets.

Source:
    k8s.io/client-go, tools/clientcmd/api/v1/types.go.
"""

import base64
import binascii
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bridge.config.strict_yaml import parse_yaml
from bridge.errors import ConfigError
from bridge.kubernetes.credentials import APIAccess
from bridge.kubernetes.exec_plugin import API_VERSIONS, Command
from bridge.system.files import Stamp, read_public, read_secret, stamp_of

_EXTENSION = "client.authentication.k8s.io/exec"
_LOOK_SECONDS = 1.0


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )


class _Cluster(_Part):
    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""
    extensions: list[dict[str, Any]] = Field(default_factory=list)


class _Variable(_Part):
    name: str
    value: str


class _Exec(_Part):
    api_version: str = Field(alias="apiVersion")
    command: str
    args: list[str] | None = None
    env: list[_Variable] | None = None
    interactive_mode: str = Field(default="", alias="interactiveMode")
    provide_cluster_info: bool = Field(default=False, alias="provideClusterInfo")


class _User(_Part):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = Field(default="", alias="tokenFile")
    exec: _Exec | None = None
    auth_provider: dict[str, Any] | None = None
    username: str = ""
    password: str = ""
    act_as: str = Field(default="", alias="as")


class _Context(_Part):
    cluster: str
    user: str


class _NamedCluster(_Part):
    name: str
    cluster: _Cluster


class _NamedUser(_Part):
    name: str
    user: _User


class _NamedContext(_Part):
    name: str
    context: _Context


class _Kubeconfig(_Part):
    current_context: str = ""
    clusters: list[_NamedCluster] = Field(default_factory=list)
    users: list[_NamedUser] = Field(default_factory=list)
    contexts: list[_NamedContext] = Field(default_factory=list)


_Named = TypeVar("_Named", _NamedCluster, _NamedUser, _NamedContext)


class KubeconfigFile:
    """A kubeconfig on disk. See `AccessSource`.

    Args:
        path: The file; only its owner, and at most its group, may read it.
        context: The name of the context; empty for `current-context`.
    """

    keeps = True

    def __init__(self, path: Path, context: str = "") -> None:
        self._path = path
        self._context = context
        self._place: object = None
        self._placed: Stamp | None = None
        self._looked_at = float("-inf")

    def place(self) -> object:
        """Return what differs once it names another API server; None before any.

        What was read last stays while the file cannot be used. Called for each token:
        the file is looked at once a second.
        """
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            stamp = self.stamp()
            if stamp != self._placed:
                with suppress(ConfigError):  # told by who asks the API server
                    self._place = self.access().place
                    self._placed = stamp
        return self._place

    def stamp(self) -> Stamp:
        """See AccessSource.stamp."""
        return stamp_of([self._path])

    def access(self) -> APIAccess:
        """See AccessSource.access."""
        content = read_secret(self._path, allow_group_read=True)
        try:
            return access_of(content, self._context, self._path.parent)
        except ConfigError as error:
            raise ConfigError(f"{self._path}: {error}") from error


def access_of(
    content: bytes, context: str = "", folder: Path | None = None
) -> APIAccess:
    """Return the access that a context of a kubeconfig describes.

    Args:
        content: The kubeconfig.
        context: The name of the context; empty for `current-context`.
        folder: What relative paths are relative to; None if there is no such folder.

    Raises:
        ConfigError: It is no kubeconfig, has no such context, or asks for what is not
            supported.
    """
    found = _parsed(content)
    wanted = context or found.current_context
    if not wanted:
        raise ConfigError("expected current-context, or the name of a context")
    chosen = _named("contexts", found.contexts, wanted).context
    cluster = _named("clusters", found.clusters, chosen.cluster).cluster
    user = _named("users", found.users, chosen.user).user
    in_cluster, in_user = f"cluster {chosen.cluster}", f"user {chosen.user}"
    _refuse(in_cluster, _CLUSTER_REFUSALS, cluster)
    _refuse(in_user, _USER_REFUSALS, user)
    ca = _either(in_cluster, "certificate-authority", cluster, folder)
    certificate = _either(in_user, "client-certificate", user, folder)
    key = _either(in_user, "client-key", user, folder)
    if (certificate is None) != (key is None):
        raise ConfigError(f"{in_user}: expected client-certificate and client-key")
    token: Path | str = user.token
    if user.token_file:
        token = _path(user.token_file, folder)
    if not (token or key or user.exec):
        raise ConfigError(f"{in_user}: expected a token, a client certificate or exec")
    command = None
    if user.exec is not None:
        command = _command(in_user, user.exec, cluster, folder)
    if not _is_origin(cluster.server):
        raise ConfigError(f"{in_cluster}: server: expected https://HOST:PORT")
    return APIAccess(
        server=cluster.server,
        server_name=cluster.tls_server_name,
        ca=ca,
        token=token,
        certificate=certificate,
        key=key,
        command=command,
    )


def _parsed(content: bytes) -> _Kubeconfig:
    try:
        tree = parse_yaml(content.decode())
    except ValueError as error:
        # Its message shows a part of the content.
        raise ConfigError("expected a kubeconfig in YAML") from error
    if not isinstance(tree, Mapping):
        raise ConfigError("expected a kubeconfig: a mapping in YAML")
    try:
        return _Kubeconfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{place}: {first['msg']}") from None


def _named(kind: str, parts: Sequence[_Named], wanted: str) -> _Named:
    found = [one for one in parts if one.name == wanted]
    if len(found) != 1:
        raise ConfigError(
            f"{kind}: expected one with the name {wanted!r:.80} (found {len(found)})"
        )
    return found[0]


_CLUSTER_REFUSALS = {
    "insecure_skip_tls_verify": "the API server would not be verified: take it out, "
    "and give certificate-authority-data",
    "proxy_url": "a proxy is not supported: let the bridge reach the API server",
}
_USER_REFUSALS = {
    "auth_provider": "auth providers are not supported: use exec",
    "username": "a password is not supported: use a token",
    "password": "a password is not supported: use a token",
    "act_as": "impersonation is not supported: give the user itself the rights",
}


def _refuse(place: str, refusals: Mapping[str, str], part: _Part) -> None:
    for name, why in refusals.items():
        if getattr(part, name):
            key = type(part).model_fields[name].alias or name
            raise ConfigError(f"{place}: {key}: {why}")


def _is_origin(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        is_good = parts.scheme == "https" and parts.hostname and parts.port != 0
    except ValueError:
        return False
    rest = (parts.path.strip("/"), parts.query, parts.fragment, parts.username)
    is_plain = url.isascii() and not any(map(str.isspace, url))
    return bool(is_good) and is_plain and not any(rest)


def _either(
    place: str, key: str, part: _Part, folder: Path | None
) -> Path | bytes | None:
    # As in kubectl, the content goes before the file.
    name = key.replace("-", "_")
    if data := getattr(part, f"{name}_data"):
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise ConfigError(f"{place}: {key}-data: expected base64") from None
    path = getattr(part, name)
    return _path(path, folder) if path else None


def _path(path: str, folder: Path | None) -> Path:
    return Path(path) if folder is None else folder / path


def _command(
    place: str, found: _Exec, cluster: _Cluster, folder: Path | None
) -> Command:
    if found.api_version not in API_VERSIONS:
        raise ConfigError(
            f"{place}: exec.apiVersion: expected {' or '.join(API_VERSIONS)}"
        )
    if found.interactive_mode == "Always":
        raise ConfigError(
            f"{place}: exec.interactiveMode: Always needs a terminal; the bridge has "
            "none"
        )
    if not found.command:
        raise ConfigError(f"{place}: exec.command: expected a program")
    command = found.command
    if folder is not None and "/" in command and not command.startswith("/"):
        command = str(folder / command)
    return Command(
        api_version=found.api_version,
        command=command,
        args=tuple(found.args or ()),
        env=tuple((one.name, one.value) for one in found.env or ()),
        cluster=_info(cluster, folder) if found.provide_cluster_info else None,
    )


def _info(cluster: _Cluster, folder: Path | None) -> dict[str, object]:
    data = cluster.certificate_authority_data
    if not data and cluster.certificate_authority:
        path = _path(cluster.certificate_authority, folder)
        data = base64.b64encode(read_public(path)).decode()
    info = {
        "server": cluster.server,
        "tls-server-name": cluster.tls_server_name,
        "certificate-authority-data": data,
        "config": next(
            (
                one.get("extension")
                for one in cluster.extensions
                if one.get("name") == _EXTENSION
            ),
            None,
        ),
    }
    return {key: value for key, value in info.items() if value}
