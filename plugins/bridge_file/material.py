"""Loads a consistent set of files: key, certificate and intermediates."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from bridge.sdk import (
    CAPrivateKey,
    digest_of_contents,
    is_self_signed,
    parse_blocks,
    parse_certificates,
    read_public,
    read_secret,
    require_path,
    secret_line,
    stamp_of,
    subject_text,
)
from bridge.spi import ConfigError
from bridge_file.options import FileSet
from bridge_file.private_key import parse_key

_ATTEMPTS = 5
_PAUSE_SECONDS = 0.1

Chain = tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class Material:
    """The key and the certificates of an issuing CA of files."""

    key: CAPrivateKey
    certificate: x509.Certificate
    others: Chain
    """All other certificates of the files, each once; the bridge finds the path."""
    digest: str
    """SHA-256 over the files that were read."""


class _HalfwayError(ConfigError):
    """The files do not belong together, perhaps because they are being replaced."""


def load(files: FileSet, *, pause: Callable[[float], None] = time.sleep) -> Material:
    """Read a set of files that belong together.

    Files are replaced one after the other, or all at once by a symbolic link. A set
    that was read in the middle of a replacement is read again, a few times.

    Args:
        files: Where they are.
        pause: Waits for the given seconds between two attempts.

    Raises:
        ConfigError: A file cannot be used, or they still do not belong together.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return _load_once(files)
        except _HalfwayError:
            pause(_PAUSE_SECONDS)
    return _load_once(files)


def _load_once(files: FileSet) -> Material:
    before = stamp_of(files.paths)
    contents = _contents(files)
    if stamp_of(files.paths) != before:
        raise _HalfwayError(
            f"{files.key.parent}: the files keep changing while they are read: "
            "expected a set that stays",
            rule="file.unstable",
        )
    passphrase = None
    if files.passphrase is not None:
        source = files.passphrase
        passphrase = secret_line(contents[source], source, "a passphrase")
    key = parse_key(contents[files.key], files.key, passphrase, files.passphrase)
    own = _parsed(files, files.certificates, contents)
    chain = _parsed(files, files.chain, contents)
    anchors = _parsed(files, files.anchors, contents)
    # Roots are there for peers: Istio's tools/certs repeats the root at the end of
    # cert-chain.pem. cert-manager puts the topmost certificate that it knows into
    # ca.crt, which may be an intermediate.
    roots = {one for one in anchors if is_self_signed(one)}
    between = (one for one in (*chain, *anchors) if one not in roots)
    given = tuple(dict.fromkeys((*own, *between)))
    issuing = next((one for one in given if one.public_key() == key.public_key()), None)
    if issuing is None:
        raise _HalfwayError(
            f"{files.key}: expected the key of a certificate in {files.certificates} "
            f"(the first is {subject_text(own[0])}); found another key",
            rule="file.mismatch",
        )
    others = tuple(one for one in given if one != issuing)
    if files.chain is not None:
        _require_path(files, issuing, others, anchors)
    return Material(key, issuing, others, digest_of_contents(contents))


def _contents(files: FileSet) -> Mapping[Path, bytes]:
    contents: dict[Path, bytes] = {}
    problems: list[ConfigError] = []
    for path in files.paths:
        if path in files.optional and not path.exists():
            continue
        try:
            contents[path] = _content(files, path)
        except ConfigError as error:
            problems.append(error)
    if problems:
        # All of them in one message, so that an operator can correct them at once.
        text = "\n".join(str(error) for error in problems)
        raise ConfigError(text, rule=problems[0].rule)
    return contents


def _content(files: FileSet, path: Path) -> bytes:
    if path in (files.key, files.passphrase):
        return read_secret(
            path,
            allow_group_read=files.allow_group_read,
            group_hint=", or set allow_group_read: true if it is a Secret's fsGroup",
        )
    return read_public(path)


def _parsed(files: FileSet, path: Path | None, contents: Mapping[Path, bytes]) -> Chain:
    content = contents.get(path, b"") if path else b""
    # cert-manager writes an empty ca.crt where it knows no CA.
    if path is None or (path in files.optional and not content.strip()):
        return ()
    if path != files.anchors:
        return parse_certificates(content, str(path))
    # One root that cannot be read does not refuse the others: `trust_anchors` tells it.
    found: list[x509.Certificate] = []
    for block in parse_blocks(content, str(path)):
        with suppress(ConfigError):
            found.append(block.certificate())
    return tuple(found)


def _require_path(
    files: FileSet, issuing: x509.Certificate, others: Chain, anchors: Chain
) -> None:
    # root-cert.pem tells whether the files of a folder belong together.
    try:
        require_path(issuing, others, anchors, source=str(files.key.parent))
    except ConfigError as error:
        raise _HalfwayError(str(error), rule="file.chain") from error
