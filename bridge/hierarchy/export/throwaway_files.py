"""Writes a throwaway hierarchy into a folder: all files or none; overwrites none."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from bridge.errors import ConfigError
from bridge.hierarchy.export.shapes import ExportedCA, Files, cacerts, tls
from bridge.hierarchy.throwaway import Hierarchy
from bridge.system.files import create_all
from bridge.x509.algorithm import CAPrivateKey
from bridge.x509.pem import key_pem, pem_of

Layout = Literal["key", "tls", "cacerts"]
"""The layout of the issuing CA's files; see `bridge_file.options`."""

WARNING = (
    "These keys are throwaway: they were made on this machine, lie unencrypted in "
    "one folder, and the root was never offline. Use them to try things only."
)

_Content = bytes | CAPrivateKey
_FOLDER_MODE = 0o700
_KEY_MODE = 0o600
_PUBLIC_MODE = 0o644
_OTHERS = 0o077
_PRIVATE = b"PRIVATE KEY-----"


def write(
    hierarchy: Hierarchy, folder: Path, *, layout: Layout = "key"
) -> tuple[Path, ...]:
    """Write certificates and keys below `folder`.

    Always root.pem, root.key, intermediate.pem, intermediate.key and roots.pem (the
    trust anchors); for the issuing CA, by layout:

    * `key`: issuing.pem, issuing.key, chain.pem (issuing CA, then intermediate); no
      issuing.key where the key was made elsewhere, which the other layouts cannot have;
    * `tls`: tls/tls.crt, tls/tls.key, tls/ca.crt, as cert-manager writes them;
    * `cacerts`: cacerts/ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem, as
      Istio reads them.

    Args:
        hierarchy: The hierarchy.
        folder: Made with mode 0700 if absent.
        layout: See above.

    Returns:
        The files, in the order in which they were written. Keys have mode 0600.

    Raises:
        ConfigError: One of the files is there already, the folder is open to others,
            something cannot be written, or the layout wants a key that is elsewhere.
            Nothing is left behind.
    """
    files = _files(hierarchy, layout)
    taken = [name for name in files if os.path.lexists(folder / name)]
    if taken:
        raise _bad(
            f"{folder}: expected none of these files: {', '.join(taken)}; "
            "choose a new folder"
        )
    try:
        for path in sorted({(folder / name).parent for name in files}):
            _require_private(path)
        create_all(folder, files, _mode_of)
    except OSError as error:
        raise _bad(
            f"{error.filename or folder}: cannot be written: {error.strerror}"
        ) from error
    return tuple(folder / name for name in files)


def _files(hierarchy: Hierarchy, layout: Layout) -> dict[str, bytes]:
    if hierarchy.issuing.key is None and layout != "key":
        raise _bad(
            f"layout: expected key (found {layout}): the other layouts hold the "
            "issuing CA's private key, which is not here"
        )
    named = dict(_common(hierarchy)) | dict(_LAYOUTS[layout](hierarchy))
    return {
        name: content if isinstance(content, bytes) else key_pem(content)
        for name, content in named.items()
        if content is not None
    }


def _require_private(path: Path) -> None:
    mode = path.stat().st_mode & 0o7777 if path.exists() else _FOLDER_MODE
    if mode & _OTHERS:
        raise _bad(
            f"{path}: expected a folder that only its owner can enter, mode 0700 "
            f"(found {mode:04o})"
        )


def _mode_of(content: bytes) -> int:
    return _KEY_MODE if _PRIVATE in content else _PUBLIC_MODE


def _common(hierarchy: Hierarchy) -> Iterator[tuple[str, _Content | None]]:
    yield "root.pem", pem_of(hierarchy.root.certificate)
    yield "root.key", hierarchy.root.key
    yield "intermediate.pem", pem_of(hierarchy.intermediate.certificate)
    yield "intermediate.key", hierarchy.intermediate.key
    yield "roots.pem", pem_of(hierarchy.root.certificate)


def _as_key(hierarchy: Hierarchy) -> Iterator[tuple[str, _Content | None]]:
    yield "issuing.pem", pem_of(hierarchy.issuing.certificate)
    yield "issuing.key", hierarchy.issuing.key
    yield "chain.pem", _exported(hierarchy).chain_pem


def _in_folder(
    folder: str, shape: Callable[[ExportedCA], Files]
) -> Callable[[Hierarchy], Iterator[tuple[str, _Content | None]]]:
    def files(hierarchy: Hierarchy) -> Iterator[tuple[str, _Content | None]]:
        for name, content in shape(_exported(hierarchy)).items():
            yield f"{folder}/{name}", content

    return files


_LAYOUTS = {
    "key": _as_key,
    "tls": _in_folder("tls", tls),
    "cacerts": _in_folder("cacerts", cacerts),
}


def _exported(hierarchy: Hierarchy) -> ExportedCA:
    return ExportedCA(
        name="issuing",
        chain=(hierarchy.issuing.certificate, hierarchy.intermediate.certificate),
        anchor=hierarchy.root.certificate,
        key=hierarchy.issuing.key,
    )


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.files")
