"""The options of the plugin `file`, and the set of files that they name."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bridge.sdk import FileOption, PluginOptions, option_error, placed
from bridge.sdk import parse_options as checked_options
from bridge.spi import ConfigError, PluginContext

_SHAPES = "key, tls_folder, cacerts_folder"


class Options(PluginOptions):
    """`issuing_cas.<name>.options`. Exactly one of the first three is given."""

    key: FileOption | None = None
    """The private key, in PEM (PKCS#8, SEC1 or PKCS#1). Needs `chain`."""
    tls_folder: FileOption | None = None
    """A `kubernetes.io/tls` Secret: `tls.crt`, `tls.key` and perhaps `ca.crt`. Without
    `chain`."""
    cacerts_folder: FileOption | None = None
    """Istio's `cacerts`: `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`,
    `root-cert.pem`. Without `chain`."""
    passphrase_file: FileOption | None = None
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
    """The issuing CA, and in any order what else there is."""
    chain: Path | None = None
    """More intermediates; cacerts only."""
    anchors: Path | None = None
    """The trust anchors in the folder."""
    optional: frozenset[Path] = frozenset()
    """Files that may be absent or empty."""
    passphrase: Path | None = None
    allow_group_read: bool = False
    keys: Mapping[Path, str] = field(default_factory=dict)
    """The configuration key of each file, or of the folder that it is in."""

    def placed(self, error: ConfigError) -> ConfigError:
        """See `bridge.sdk.placed`."""
        return placed(error, self.keys)

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
    parsed = checked_options(Options, options, context)
    _require_one_shape(parsed, context)
    where, passphrase = f"issuing_cas.{context.name}", parsed.passphrase_file
    keys = {} if passphrase is None else {passphrase: "passphrase_file"}
    if parsed.key is None:
        _require_no_chain(context)
        files = _folder(parsed)
        folder = "tls_folder" if parsed.tls_folder else "cacerts_folder"
        keys[files.key.parent] = folder
    elif context.chain is None:
        raise option_error(
            context,
            "chain",
            "with the option key, expected a file that holds the issuing CA's "
            "certificate and its intermediates (found nothing)",
        )
    else:
        files = FileSet(key=parsed.key, certificates=context.base / context.chain)
        keys[parsed.key] = "key"
    places = {path: f"{where}.options.{key}" for path, key in keys.items()}
    if context.chain is not None:
        places[files.certificates] = f"{where}.chain"
    return replace(
        files,
        passphrase=passphrase,
        allow_group_read=parsed.allow_group_read,
        keys=places,
    )


def _folder(options: Options) -> FileSet:
    if options.tls_folder is not None:
        folder = options.tls_folder
        return FileSet(
            key=folder / "tls.key",
            certificates=folder / "tls.crt",
            anchors=folder / "ca.crt",
            optional=frozenset({folder / "ca.crt"}),
        )
    folder = options.cacerts_folder or Path()
    return FileSet(
        key=folder / "ca-key.pem",
        certificates=folder / "ca-cert.pem",
        chain=folder / "cert-chain.pem",
        anchors=folder / "root-cert.pem",
        optional=frozenset({folder / "cert-chain.pem"}),
    )


def _require_one_shape(options: Options, context: PluginContext) -> None:
    shapes = _SHAPES.split(", ")
    given = [name for name in shapes if getattr(options, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise option_error(
            context, "options", f"expected one of {_SHAPES} (found {found})"
        )


def _require_no_chain(context: PluginContext) -> None:
    if context.chain is not None:
        raise option_error(
            context,
            "chain",
            "expected nothing: with tls_folder and cacerts_folder the chain is the "
            f"folder's own (found {str(context.chain)!r})",
        )
