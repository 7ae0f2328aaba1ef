"""The types of values in the configuration: sections, durations, names, files."""

import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
)

from bridge.dns_names import is_address, is_host, is_label, is_subdomain
from bridge.errors import BridgeError
from bridge.spiffe import TrustDomain

_DURATION = re.compile(
    r"(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9}(?:\.[0-9]{1,6})?)s)?"
)
_LONGEST = timedelta(days=3660)
"""Ten years. Added to any date of use, it stays inside the calendar."""
_PASSWORD = re.compile(
    r"://[^/?#@]*:[^/?#]*@|[?&;](?:password|passwd|pwd)=", re.IGNORECASE
)
_SQLITE_FILE = re.compile(r"(sqlite[\w+]*://[^/?]*/)([^?]+)(.*)", re.DOTALL)
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_IPV4 = re.compile(r"[0-9.]+")
_NOT_SHOWN = "one that is not shown"

_CLUSTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class ValidationState:
    """The context of a validation: what validators need, and what they found."""

    path: Path
    """The configuration file, as it was named."""
    sections: dict[str, Any] = field(default_factory=dict)
    """The top-level values that could be read."""

    @property
    def base(self) -> Path:
        """The folder of the file: relative paths are relative to it.

        Links are not followed. Kubernetes swaps the link: the folder of the link stays,
        and the folder behind it goes.
        """
        return self.path.absolute().parent


class Section(BaseModel):
    """A section of the file: all its keys are known, and it does not change."""

    # A misspelt key must stop the process: an ignored limit is no limit.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WrongError(ValueError):
    """Several keys of a section contradict each other.

    Args:
        expected: What is expected of them.
        found: Their values.
    """

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(expected)
        self.found = found


def _must(is_good: Callable[[Any], object], expected: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if not is_good(value):
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(check)


def _duration(value: object) -> timedelta:
    match = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        raise ValueError('expected a duration such as "24h", "5m" or "1h30m"')
    hours, minutes, seconds = match.groups(default="0")
    found = timedelta(hours=int(hours), minutes=int(minutes), seconds=float(seconds))
    if found > _LONGEST:
        raise ValueError("expected a duration of at most ten years (87840h)")
    return found


def _trust_domain(value: str) -> str:
    try:
        TrustDomain(value)
    except BridgeError as error:
        raise ValueError(str(error)) from None
    return value


def _sha256(value: object) -> str:
    # YAML reads 64 decimal digits without quotes as a number.
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError("expected a SHA-256: 64 hex digits, in quotes")
    return value.lower()


def _address(value: object) -> object:
    if not is_address(value):
        raise ValueError('expected "HOST:PORT", such as "0.0.0.0:15012"')
    return value


def written(value: timedelta) -> str:
    """Write a duration as the configuration does."""
    seconds = value.total_seconds()
    hours, minutes = divmod(seconds // 60, 60)
    parts = ((hours, "h"), (minutes, "m"), (seconds % 60, "s"))
    return "".join(f"{number:g}{unit}" for number, unit in parts if number) or "0s"


def _archive(value: object) -> object:
    # Before any other validator: their messages show the value.
    if not isinstance(value, str) or _PASSWORD.search(value) is None:
        return value
    raise WrongError(
        "expected a URL without a password: secrets are files, such as ~/.pgpass or "
        "a service file of PostgreSQL",
        _NOT_SHOWN,
    )


def _archive_file(value: str, info: ValidationInfo) -> str:
    # The database of a SQLite URL ends at a question mark, and has no escapes.
    match = _SQLITE_FILE.fullmatch(value)
    if match is None or match[2] == ":memory:":
        return value
    path = _base(info) / match[2]
    if "?" in str(path):
        raise ValueError('expected a file in a folder without "?" in its name')
    return f"{match[1]}{path}{match[3]}"


def require_https(
    url: str,
    expected: str = "keys are fetched from https:// only: expected https://HOST/PATH",
) -> str:
    """Return `url` if what is behind it proves who it is, by TLS.

    Args:
        url: Of the configuration.
        expected: Begins the message.

    Raises:
        ValueError: The URL is not `https://HOST[:PORT][/PATH]`. The message does not
            show a password.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        is_good = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
        has_user = "@" in parts.netloc
    except ValueError:
        is_good, has_user = False, "@" in url
    if has_user:
        raise WrongError(f"{expected}, without a user or password", _NOT_SHOWN)
    if not is_good or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(expected)
    return url


def _file(value: Path, info: ValidationInfo) -> Path:
    if value == Path() or not str(value).isprintable():
        raise ValueError("expected the path of a file, in printable characters")
    return _base(info) / value


def _base(info: ValidationInfo) -> Path:
    return info.context.base if info.context else Path()


def _worker_count(value: object) -> object:
    if value == 0 and type(value) is int:
        raise ValueError(
            "expected 1 to 64: a bridge always runs its workers under a parent; write "
            "1 in place of 0"
        )
    return value


def _is_account(value: str) -> bool:
    namespace, _, name = value.partition("/")
    return is_label(namespace) and is_subdomain(name)


# Field(min_length=1) would count only the valid items.
Some = _must(bool, "one or more")
Different = _must(lambda values: len(set(values)) == len(values), "each entry once")
ReplicaName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
"""A part of the name of a journal's folder."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A DNS-1123 label, such as the name of a namespace."""
ClusterName = Annotated[
    str,
    _must(
        _CLUSTER_NAME.fullmatch,
        "a name of 1 to 63 letters, digits, dots, hyphens or underscores; give the "
        "cluster a short name, and put a clusterid with other characters, such as an "
        "ARN, into its aliases",
    ),
]
Text = Annotated[
    str,
    Field(min_length=1),
    _must(
        lambda value: value.isprintable() and value == value.strip(),
        "printable characters, and no blank at an end",
    ),
]
"""A text that has to equal, character for character, one that a caller sends."""
Names = Annotated[tuple[Text, ...], Field(strict=False), Different]
# Metadata of a call have no other characters (gRPC over HTTP/2, ASCII-Value).
_Header = Annotated[
    Text, _must(str.isascii, "ASCII: the header clusterid has nothing else")
]
Headers = Annotated[tuple[_Header, ...], Field(strict=False), Different]
IssuerNames = Annotated[tuple[Name, ...], Field(strict=False), Different]
Fronts = Annotated[
    tuple[Literal["istio", "linkerd"], ...], Field(strict=False), Different
]
DataPlanes = Annotated[
    tuple[Literal["sidecar", "ambient"], ...], Field(strict=False), Different
]
_Namespace = Annotated[
    str,
    _must(
        is_label,
        "the name of a namespace; leave the key out where all are meant",
    ),
]
Namespaces = Annotated[tuple[_Namespace, ...], Field(strict=False), Different]
_ServiceAccount = Annotated[
    str,
    _must(
        is_subdomain,
        "the name of a service account, without its namespace; leave the key out where "
        "all are meant",
    ),
]
ServiceAccounts = Annotated[tuple[_ServiceAccount, ...], Field(strict=False), Different]
_NodeAccount = Annotated[
    str,
    _must(
        _is_account,
        "NAMESPACE/NAME of a service account, such as istio-system/ztunnel",
    ),
]
NodeAccounts = Annotated[tuple[_NodeAccount, ...], Field(strict=False), Different]
"""Service accounts, each as NAMESPACE/NAME."""
WorkerCount = Annotated[int, BeforeValidator(_worker_count), Field(ge=1, le=64)]
Duration = Annotated[timedelta, BeforeValidator(_duration)]
PositiveDuration = Annotated[
    Duration, _must(lambda value: value > timedelta(0), "a duration above 0")
]
UpToAMinute = Annotated[
    PositiveDuration,
    _must(lambda value: value <= timedelta(minutes=1), "a duration of at most 1m"),
]
# A certificate's times have no fraction (RFC 5280, 4.1.2.5): with half a second more,
# the certificate would differ from the one that was prepared.
WholeSeconds = Annotated[
    Duration,
    _must(lambda value: not value.microseconds, "a duration in whole seconds"),
]
"""A duration that goes into a certificate."""
_Host = Annotated[
    str,
    _must(
        lambda value: is_host(value) and not _IPV4.fullmatch(value),
        "a DNS name in lower case, such as meshca.istio-system.svc, without scheme, "
        "port or wildcard",
    ),
]
Hosts = Annotated[tuple[_Host, ...], Field(strict=False), Different]
HttpsURL = Annotated[str, AfterValidator(require_https)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TrustDomainName = Annotated[str, AfterValidator(_trust_domain)]
Address = Annotated[str, BeforeValidator(_address)]
ArchiveURL = Annotated[str, BeforeValidator(_archive), AfterValidator(_archive_file)]
"""The file of a SQLite database is made absolute, as a `FilePath` is."""
SHA256 = Annotated[str, BeforeValidator(_sha256)]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_file)]
"""Absolute once it is read: see `ValidationState.base`."""
