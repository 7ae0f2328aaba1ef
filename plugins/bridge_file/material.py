"""Loads a consistent set of files: key, certificate and intermediates."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from bridge.sdk import (
    CAPrivateKey,
    digest_of_contents,
    is_issued_by,
    is_self_signed,
    parse_certificates,
    read_public,
    read_secret,
    require_links,
    require_no_root,
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
    intermediates: Chain
    """From the issuing CA's issuer upwards; no self-signed root."""
    digest: str
    """SHA-256 over the files that were read."""
    warnings: tuple[str, ...] = ()


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
    chain, warnings = _chain(files, contents)
    if chain[0].public_key() != key.public_key():
        raise _HalfwayError(
            f"{files.key}: expected the key of the first certificate in "
            f"{files.certificates} ({subject_text(chain[0])}); found another key",
            rule="file.mismatch",
        )
    return Material(key, chain[0], chain[1:], digest_of_contents(contents), warnings)


def _contents(files: FileSet) -> Mapping[Path, bytes]:
    contents: dict[Path, bytes] = {}
    problems: list[ConfigError] = []
    for path in files.paths:
        is_optional = path == files.anchors and not files.anchors_are_required
        if is_optional and not path.exists():
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


def _chain(
    files: FileSet, contents: Mapping[Path, bytes]
) -> tuple[Chain, tuple[str, ...]]:
    own = parse_certificates(contents[files.certificates], str(files.certificates))
    anchors: Chain = ()
    if files.anchors is not None and files.anchors in contents:
        anchors = parse_certificates(contents[files.anchors], str(files.anchors))
    if files.chain is not None:
        more = parse_certificates(contents[files.chain], str(files.chain))
        return _cacerts_chain(files, own, more, anchors), ()
    _require_links(own, files.certificates)
    if len(own) > 1 and is_self_signed(own[-1]):
        return _without_root(files, own)
    if files.anchors is not None:
        return _climb(own, anchors), ()
    return own, ()


def _without_root(files: FileSet, own: Chain) -> tuple[Chain, tuple[str, ...]]:
    if files.anchors is None:
        require_no_root(own, files.certificates)
    warning = (
        f"{files.certificates}: the self-signed root at its end "
        f"({subject_text(own[-1])}) is left out of the chain; peers take roots from "
        "their trust anchors"
    )
    return own[:-1], (warning,)


def _climb(own: Chain, anchors: Chain) -> Chain:
    # cert-manager puts the topmost certificate that it knows into ca.crt. If its own
    # issuer is not a root, that is an intermediate, which peers need.
    chain = own
    for _ in anchors:
        found = [
            certificate
            for certificate in anchors
            if not is_self_signed(certificate) and is_issued_by(chain[-1], certificate)
        ]
        if not found:
            break
        chain = (*chain, found[0])
    return chain


def _cacerts_chain(files: FileSet, own: Chain, more: Chain, anchors: Chain) -> Chain:
    if len(own) != 1:
        raise ConfigError(
            f"{files.certificates}: expected the issuing CA's certificate alone, "
            f"found {len(own)} certificates",
            rule="file.chain",
        )
    # Istio documents both forms: tools/certs repeats the issuing CA at the start of
    # cert-chain.pem and puts the root at its end.
    rest = more[1:] if more[0] == own[0] else more
    chain = (*own, *rest)
    _require_links(chain, files.chain or files.certificates)
    if len(chain) > 1 and (is_self_signed(chain[-1]) or chain[-1] in anchors):
        top, chain = chain[-1], chain[:-1]
        if top in anchors:
            return chain
    if not any(
        chain[-1] == anchor or is_issued_by(chain[-1], anchor) for anchor in anchors
    ):
        raise _HalfwayError(
            f"{files.anchors}: expected the issuer of {subject_text(chain[-1])}, the "
            f"top of {files.chain}",
            rule="file.chain",
        )
    return chain


def _require_links(chain: Chain, source: Path) -> None:
    try:
        require_links(chain, source)
    except ConfigError as error:
        raise _HalfwayError(str(error), rule=error.rule) from error
