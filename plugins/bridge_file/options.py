"""The options of the plugin `file`, and the set of files that they name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bridge.spi import ConfigError, PluginContext

_PathOption = Annotated[Path, Field(strict=False)]
_SHOWN_CHARACTERS = 80
_SHAPES = "key, tls_folder, cacerts_folder"


class Options(BaseModel):
    """`issuing_cas.<name>.options`. Exactly one of the first three is given."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key: _PathOption | None = None
    """The private key, in PEM (PKCS#8, SEC1 or PKCS#1). Needs `chain`."""
    tls_folder: _PathOption | None = None
    """A `kubernetes.io/tls` Secret: `tls.crt`, `tls.key` and perhaps `ca.crt`. Without
    `chain`."""
    cacerts_folder: _PathOption | None = None
    """Istio's `cacerts`: `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`,
    `root-cert.pem`. Without `chain`."""
    passphrase_file: _PathOption | None = None
    """The passphrase of the key. One newline at the end of the file is not part of
    it."""
    allow_group_read: bool = False
    """Accept a key that its group may read, such as a Secret that is mounted with an
    fsGroup."""


@dataclass(frozen=True, slots=True)
class FileSet:
    """The files of one issuing CA, in any of the three layouts."""

    key: Path
    certificates: Path
    """Issuing CA first."""
    chain: Path | None = None
    """More intermediates; cacerts only."""
    anchors: Path | None = None
    """The trust anchors in the folder. May be absent in a tls folder."""
    anchors_are_required: bool = False
    passphrase: Path | None = None
    allow_group_read: bool = False
    keys: Mapping[Path, str] = field(default_factory=dict)
    """The configuration key of each file, or of the folder that it is in."""

    def placed(self, error: ConfigError) -> ConfigError:
        """Put the configuration key before each line that begins with a file."""
        lines = [self._placed(line) for line in str(error).splitlines()]
        return ConfigError("\n".join(lines), rule=error.rule, detail=error.detail)

    def _placed(self, line: str) -> str:
        for path, key in self.keys.items():
            if line.startswith((f"{path}:", f"{path}/")):
                return f"{key}: {line}"
        return line

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file, present or not, in a fixed order."""
        files = (
            self.key,
            self.certificates,
            self.chain,
            self.anchors,
            self.passphrase,
        )
        return tuple(path for path in files if path is not None)


def parse_options(options: Mapping[str, object], context: PluginContext) -> FileSet:
    """Check the options and return the files that they name.

    Raises:
        ConfigError: An option is unknown, of the wrong type, or does not go with
            another one. The message lists every problem, one a line.
    """
    where = f"issuing_cas.{context.name}"
    try:
        parsed = Options.model_validate(dict(options))
    except ValidationError as error:
        problems = [_problem(where, item) for item in error.errors()]
        raise ConfigError("\n".join(problems), rule="file.options") from None
    _require_one_shape(parsed, where)
    if parsed.key is None:
        _require_no_chain(context, where)
        return _folder(parsed, context.base, where)
    if context.chain is None:
        raise _bad(
            f"{where}.chain: with the option key, expected a file that holds the "
            "issuing CA's certificate and then its intermediates (found nothing)"
        )
    passphrase = _passphrase(parsed, context.base)
    key, chain = context.base / parsed.key, context.base / context.chain
    return FileSet(
        key=key,
        certificates=chain,
        passphrase=passphrase,
        allow_group_read=parsed.allow_group_read,
        keys=_keys(where, passphrase)
        | {key: f"{where}.options.key", chain: f"{where}.chain"},
    )


def _keys(where: str, passphrase: Path | None) -> dict[Path, str]:
    if passphrase is None:
        return {}
    return {passphrase: f"{where}.options.passphrase_file"}


def _folder(options: Options, base: Path, where: str) -> FileSet:
    passphrase = _passphrase(options, base)
    if options.tls_folder is not None:
        folder = base / options.tls_folder
        return FileSet(
            key=folder / "tls.key",
            certificates=folder / "tls.crt",
            anchors=folder / "ca.crt",
            passphrase=passphrase,
            allow_group_read=options.allow_group_read,
            keys=_keys(where, passphrase) | {folder: f"{where}.options.tls_folder"},
        )
    folder = base / (options.cacerts_folder or "")
    return FileSet(
        key=folder / "ca-key.pem",
        certificates=folder / "ca-cert.pem",
        chain=folder / "cert-chain.pem",
        anchors=folder / "root-cert.pem",
        anchors_are_required=True,
        passphrase=passphrase,
        allow_group_read=options.allow_group_read,
        keys=_keys(where, passphrase) | {folder: f"{where}.options.cacerts_folder"},
    )


def _passphrase(options: Options, base: Path) -> Path | None:
    return None if options.passphrase_file is None else base / options.passphrase_file


def _require_one_shape(options: Options, where: str) -> None:
    shapes = _SHAPES.split(", ")
    given = [name for name in shapes if getattr(options, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise _bad(f"{where}.options: expected one of {_SHAPES} (found {found})")


def _require_no_chain(context: PluginContext, where: str) -> None:
    if context.chain is not None:
        raise _bad(
            f"{where}.chain: expected nothing: with tls_folder and cacerts_folder the "
            f"chain is the folder's own (found {str(context.chain)!r})"
        )


def _problem(where: str, item: Any) -> str:
    option = ".".join([f"{where}.options", *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        known = ", ".join(Options.model_fields)
        # The value of an unknown option may be a secret, so it is not shown.
        return f"{option}: unknown option; expected one of {known}"
    shown = repr(item["input"])
    if len(shown) > _SHOWN_CHARACTERS:
        shown = f"{shown[:_SHOWN_CHARACTERS]}..."
    told = item["msg"].removeprefix("Value error, ")
    return f"{option}: {told} (found {shown})"


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="file.options")
