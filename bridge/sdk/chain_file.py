"""Read the file `chain` of an issuing CA's section, and watch the files of a CA."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cryptography import x509

from bridge.errors import BackendError, BackendUnavailableError, ConfigError
from bridge.sdk.options import option_error, placed
from bridge.spi import Description, PluginContext
from bridge.system.file_watch import FileWatch
from bridge.system.files import digest_of, read_public
from bridge.x509.algorithm import CA_KEYS, CAPublicKey
from bridge.x509.certificate import extensions_of, name_text, value_in
from bridge.x509.path import signature_fault
from bridge.x509.pem import parse_certificates

Holds = Callable[[CAPublicKey], bool]
"""Tells whether the backend has the private half of a key. Raises a `BackendError`
where the backend cannot be asked."""


def read_chain(
    context: PluginContext, *, holds: Holds | None = None
) -> tuple[x509.Certificate, ...]:
    """Read the file `chain` of an issuing CA's section.

    The bridge finds the path to a trust anchor among the certificates. Their order in
    the file tells only which one is the issuing CA, where nothing else does.

    Args:
        context: Names the file.
        holds: Is asked only where several certificates of the file, with different
            keys, could be the issuing CA's: CA certificates that have issued no other
            CA of the file.

    Returns:
        The issuing CA, then all other certificates of the file, each once, in the
        order of the file.

    Raises:
        ConfigError: There is no such file, it cannot be read or holds anything else,
            or it is not clear which certificate is the issuing CA. The message names
            key, file and expectation.
    """
    if context.chain is None:
        raise option_error(
            context,
            "chain",
            "expected a file that holds the issuing CA's certificate and its "
            "intermediates (found nothing)",
        )
    path = context.base / context.chain
    try:
        chain = tuple(dict.fromkeys(parse_certificates(read_public(path), str(path))))
        issuing = _issuing_ca(chain, path, context, holds)
    except ConfigError as error:
        raise placed(error, {path: f"issuing_cas.{context.name}.chain"}) from error
    return (issuing, *(one for one in chain if one != issuing))


def read_description(
    context: PluginContext,
    *,
    assurance: str,
    labels: Mapping[str, str] = {},
    holds: Holds | None = None,
) -> Description:
    """Read the file `chain` of an issuing CA whose key signs bytes.

    Args:
        context: See `read_chain`.
        assurance: See `Description`, as is `labels`.
        labels: For logs and metrics; no secrets.
        holds: See `read_chain`.

    Raises:
        ConfigError: See `read_chain`; or the key of the certificate is of a kind that
            the bridge does not sign with.
    """
    issuing, *others = read_chain(context, holds=holds)
    if not isinstance(issuing.public_key(), CAPublicKey):
        file = context.base / (context.chain or "")
        raise ConfigError(
            f"issuing_cas.{context.name}.chain: {file}: expected an issuing CA whose "
            f"key is {CA_KEYS}",
            rule="issuer.key",
        )
    return Description(
        certificate=issuing,
        intermediates=tuple(others),
        assurance=assurance,
        labels=labels,
    )


def _issuing_ca(
    chain: Sequence[x509.Certificate],
    source: Path,
    context: PluginContext,
    holds: Holds | None,
) -> x509.Certificate:
    candidates = _candidates(chain)
    first, *others = candidates
    if others and holds is not None:
        return _held([first, *others], holds, context, source)
    alike = [one for one in others if candidates[one] == candidates[first]]
    if alike:
        names = " and ".join(subject_text(one) for one in (first, *alike))
        raise ConfigError(
            f"{source}: expected the issuing CA's certificate first, as several have "
            f"issued none of the others ({names})",
            rule="file.chain",
        )
    return first


def _candidates(chain: Sequence[x509.Certificate]) -> dict[x509.Certificate, int]:
    # The certificates that may be the issuing CA's, one of each key, the likeliest
    # first: at 0 stands the file's first one, at 1 what is below it.
    cas = [one for one in chain if _is_ca(one)] or [*chain]
    # The issuing CA is at the lower end of a chain: it has issued none of the others.
    ends = [one for one in cas if not _issued(one, cas)] or cas
    # No root is one, and none whose key signs nothing, if there is anything else.
    ends = [one for one in ends if not is_self_signed(one)] or ends
    ends = [one for one in ends if isinstance(one.public_key(), CAPublicKey)] or ends
    below = {chain[0]}
    while new := {one for upper in below for one in _issued(upper, cas)} - below:
        below |= new
    ranks = {one: 2 - (one in below) - (one == chain[0]) for one in ends}
    found: dict[x509.Certificate, int] = {}
    for one in sorted(ends, key=ranks.__getitem__):
        # One key may have two certificates, such as those of two roots.
        if all(one.public_key() != other.public_key() for other in found):
            found[one] = ranks[one]
    return found


def _held(
    candidates: Sequence[x509.Certificate],
    holds: Holds,
    context: PluginContext,
    source: Path,
) -> x509.Certificate:
    try:
        for one in candidates:
            key = one.public_key()
            if isinstance(key, CAPublicKey) and holds(key):
                return one
        why = "the backend has the key of none of them"
    except BackendError as error:
        why = f"the backend, which could tell, cannot be asked: {error}"
    first = subject_text(candidates[0])
    others = " and ".join(subject_text(one) for one in candidates[1:])
    context.warn(
        f"issuing_cas.{context.name}.chain: {source}: takes ({first}) for the issuing "
        f"CA, which ({others}) could be as well, and {why}; put the issuing CA's "
        "certificate first, or take the others out of the file"
    )
    return candidates[0]


def _is_ca(certificate: x509.Certificate) -> bool:
    found = value_in(extensions_of(certificate), x509.BasicConstraints)
    return found is not None and found.ca


def _issued(
    upper: x509.Certificate, chain: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    return [one for one in chain if one != upper and is_issued_by(one, upper)]


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Return whether a certificate is issued by its own key and name."""
    return is_issued_by(certificate, certificate)


def is_issued_by(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    """Return whether `upper` has the name and the key that issued `lower`."""
    return signature_fault(lower, upper) is None


def subject_text(certificate: x509.Certificate) -> str:
    """Return a certificate's subject for people."""
    text = name_text(certificate, "subject")
    return "an empty subject" if text == "no name" else str(text)


class WatchedFiles:
    """The files that an issuing CA was made of: reports when their content changes.

    Args:
        paths: The files.
        digest: `digest_of` their content, taken before they were read.
    """

    def __init__(self, paths: Sequence[Path], digest: str) -> None:
        self._paths = tuple(paths)
        self._digest = digest
        self._watch: FileWatch | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def watch(self, changed: Callable[[], None]) -> None:
        """See `Watcher.watch`; `changed` may close the issuing CA.

        Raises:
            RuntimeError: The files are watched already, or the CA is closed.
            BackendUnavailableError: The system gives no more threads.
        """
        with self._lock:
            if self._watch is not None or self._is_closed:
                raise RuntimeError("the files are watched already, or closed")
            self._watch = FileWatch(self._paths, self._digest, changed)
            try:
                self._watch.start()
            except RuntimeError as error:
                raise BackendUnavailableError(
                    "its files cannot be watched: the system gives no more threads"
                ) from error

    def close(self) -> None:
        """End the watch; may be called before it begins, and by `changed`."""
        with self._lock:
            watch, self._is_closed = self._watch, True
        if watch is not None:
            watch.close()


def read_watched_description(
    context: PluginContext,
    *,
    assurance: str,
    labels: Mapping[str, str] = {},
    beside: Sequence[Path] = (),
    holds: Holds | None = None,
) -> tuple[Description, WatchedFiles]:
    """Read the file `chain` as `read_description` does, and have it watched.

    Args:
        context: See `read_description`.
        assurance: See `read_description`.
        labels: See `read_description`.
        beside: Other files that the issuing CA is made of, and that are read later.
        holds: See `read_chain`.

    Raises:
        ConfigError: See `read_description`.
    """
    paths = (context.base / (context.chain or ""), *beside)
    # A file that changes while it is read has another digest afterwards.
    digest = digest_of(paths)
    description = read_description(
        context, assurance=assurance, labels=labels, holds=holds
    )
    return description, WatchedFiles(paths, digest)
