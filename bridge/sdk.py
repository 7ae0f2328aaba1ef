"""The SDK for plugin authors: what the plugins of this project share.

A plugin for a backend that holds a key (a file, a PKCS#11 token, Vault's Transit)
implements `Signer`, and `SigningCA` makes an issuing CA of it. `parse_options` checks
the options, `read_description` reads the certificates, `read_secret` reads secrets, and
`FileWatch` reports changes of files. `ChildProcess` runs what may hang or crash.
"""

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from bridge.errors import BackendUnavailableError, ConfigError
from bridge.spi import (
    Description,
    IssuedChain,
    LeafRequest,
    PluginContext,
    Prepared,
    Signer,
)
from bridge.system.background import BackgroundLoop
from bridge.system.child_process import ChildProcess, follow_parent, read_order
from bridge.system.file_watch import FileWatch
from bridge.system.files import (
    digest_of,
    digest_of_contents,
    mode_advice,
    read_public,
    read_secret,
    stamp_of,
)
from bridge.system.linux import harden
from bridge.system.logs import set_up as set_up_log
from bridge.x509.algorithm import (
    CA_KEYS,
    CURVES,
    RSA_BITS,
    CAPrivateKey,
    CAPublicKey,
    SignatureAlgorithm,
    algorithm_of,
    issuer_key,
    require_signature,
    signature_of,
)
from bridge.x509.der import splice
from bridge.x509.leaf_profile import LeafProfile
from bridge.x509.path import require_path
from bridge.x509.pem import parse_blocks, parse_certificates
from bridge.x509.tbs import csr_of

__all__ = [
    "CA_KEYS",
    "CURVES",
    "RSA_BITS",
    "BackgroundLoop",
    "CAPrivateKey",
    "CAPublicKey",
    "ChildProcess",
    "ConfiguredCA",
    "FileOption",
    "FileWatch",
    "PluginOptions",
    "SignatureAlgorithm",
    "SigningCA",
    "WatchedFiles",
    "WatchedSigningCA",
    "algorithm_of",
    "configured_cas",
    "csr_of",
    "digest_of",
    "digest_of_contents",
    "follow_parent",
    "harden",
    "is_issued_by",
    "is_self_signed",
    "issuer_key",
    "mode_advice",
    "option_error",
    "parse_blocks",
    "parse_certificates",
    "parse_options",
    "placed",
    "read_chain",
    "read_description",
    "read_order",
    "read_public",
    "read_secret",
    "require_path",
    "require_signature",
    "secret_line",
    "set_up_log",
    "signature_of",
    "stamp_of",
    "subject_text",
]

_SHOWN_CHARACTERS = 80


def _in_base(path: Path, info: ValidationInfo) -> Path:
    return Path(info.context or "") / path


FileOption = Annotated[Path, Field(strict=False), AfterValidator(_in_base)]
"""The type of an option that names a file or a folder. A relative path is relative to
the configuration file; the value of the field is the path that can be opened."""


class PluginOptions(BaseModel):
    """The options of a plugin, `issuing_cas.<name>.options`. Subclass it.

    An unknown option is an error, and no value is converted: `"yes"` is no boolean.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Options = TypeVar("Options", bound=PluginOptions)


def parse_options(
    model: type[Options], options: Mapping[str, object], context: PluginContext
) -> Options:
    """Check the options of a plugin.

    Args:
        model: The options that there are.
        options: As the factory was given them.
        context: Names the issuing CA, and the folder of the configuration file.

    Raises:
        ConfigError: The message has a line for each problem. The value of an unknown
            option is not shown, as it may be a secret.
    """
    try:
        return model.model_validate(dict(options), context=context.base)
    except ValidationError as error:
        problems = [_problem(model, context, item) for item in error.errors()]
        raise ConfigError("\n".join(problems), rule="plugin.options") from None


def option_error(context: PluginContext, key: str, message: str) -> ConfigError:
    """Build the error of an option.

    Args:
        context: Names the issuing CA.
        key: The key under `issuing_cas.<name>`, such as `options.token` or `chain`.
        message: What was expected, and what was found.
    """
    return ConfigError(
        f"issuing_cas.{context.name}.{key}: {message}", rule="plugin.options"
    )


def _problem(model: type[PluginOptions], context: PluginContext, item: Any) -> str:
    where = f"issuing_cas.{context.name}.options"
    option = ".".join([where, *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        known = ", ".join(model.model_fields)
        return f"{option}: unknown option; expected one of {known}"
    if item["type"] == "missing":
        return f"{option}: expected a value (found nothing)"
    shown = repr(item["input"])
    if len(shown) > _SHOWN_CHARACTERS:
        shown = f"{shown[:_SHOWN_CHARACTERS]}..."
    told = item["msg"].removeprefix("Value error, ")
    return f"{option}: {told} (found {shown})"


def placed(error: ConfigError, keys: Mapping[Path, str]) -> ConfigError:
    """Put the key of the configuration before each line that begins with a file.

    Args:
        error: Its lines may begin with a path, `<path>:` or `<path>/...`.
        keys: The configuration key of each file or folder.
    """
    lines = [_placed(line, keys) for line in str(error).splitlines()]
    return ConfigError("\n".join(lines), rule=error.rule, detail=error.detail)


def _placed(line: str, keys: Mapping[Path, str]) -> str:
    for path, key in keys.items():
        if line.startswith((f"{path}:", f"{path}/")):
            return f"{key}: {line}"
    return line


def secret_line(data: bytes, source: Path, what: str) -> bytes:
    r"""Return the secret of a file, without one `\n` or `\r\n` at its end.

    Args:
        data: The content of the file.
        source: The file, for the message.
        what: What it holds, with its article, such as `a PIN`.

    Raises:
        ConfigError: Nothing is left.
    """
    secret = data.removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise ConfigError(
            f"{source}: expected {what} (found an empty file)", rule="file.secret"
        )
    return secret


def read_chain(context: PluginContext) -> tuple[x509.Certificate, ...]:
    """Read the file `chain` of an issuing CA's section.

    The bridge finds the path to a trust anchor among the certificates. Their order in
    the file tells only which one is the issuing CA, where nothing else does.

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
        issuing = _issuing_ca(chain, path)
    except ConfigError as error:
        raise placed(error, {path: f"issuing_cas.{context.name}.chain"}) from error
    return (issuing, *(one for one in chain if one != issuing))


def read_description(
    context: PluginContext, *, assurance: str, labels: Mapping[str, str] = {}
) -> Description:
    """Read the file `chain` of an issuing CA whose key signs bytes.

    Args:
        context: See `read_chain`.
        assurance: See `Description`, as is `labels`.
        labels: For logs and metrics; no secrets.

    Raises:
        ConfigError: See `read_chain`; or the key of the certificate is of a kind that
            the bridge does not sign with.
    """
    issuing, *others = read_chain(context)
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


def _issuing_ca(chain: Sequence[x509.Certificate], source: Path) -> x509.Certificate:
    # The issuing CA is at the lower end of a chain: it has issued none of the others.
    ends = [one for one in chain if not _issued(one, chain)]
    if not ends or chain[0] in ends:
        return chain[0]
    below = {chain[0]}
    while new := {one for upper in below for one in _issued(upper, chain)} - below:
        below |= new
    candidates = [one for one in ends if one in below]
    first = candidates[0]
    # One key may have two certificates, such as those of two roots.
    if any(one.public_key() != first.public_key() for one in candidates):
        names = " and ".join(subject_text(one) for one in candidates)
        raise ConfigError(
            f"{source}: expected the issuing CA's certificate first, as several have "
            f"issued none of the others ({names})",
            rule="file.chain",
        )
    return first


def _issued(
    upper: x509.Certificate, chain: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    return [one for one in chain if one != upper and is_issued_by(one, upper)]


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Return whether a certificate is issued by its own key and name."""
    return is_issued_by(certificate, certificate)


def is_issued_by(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    """Return whether `upper` has the name and the key that issued `lower`."""
    try:
        lower.verify_directly_issued_by(upper)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def subject_text(certificate: x509.Certificate) -> str:
    """Return a certificate's subject for people."""
    return certificate.subject.rfc4514_string() or "an empty subject"


class SigningCA:
    """An `IssuingCA` whose key is a `Signer`, which no call reaches after `close`.

    Args:
        description: Certificate and intermediates, which do not change.
        signer: Holds the private half of `description.certificate`'s key.

    Raises:
        ConfigError: The signer has another key, or its key cannot sign certificates.
    """

    def __init__(self, description: Description, signer: Signer) -> None:
        if description.certificate.public_key() != signer.public_key():
            raise ConfigError(
                "the key is not that of the issuing CA's certificate",
                rule="issuer.key-mismatch",
            )
        self._description = description
        self._signer = signer
        self._is_closed = False
        self._profile = LeafProfile(description.certificate)
        self._intermediates = tuple(
            certificate.public_bytes(Encoding.DER)
            for certificate in (description.certificate, *description.intermediates)
        )

    def describe(self) -> Description:
        """See `IssuingCA.describe`."""
        return self._description

    def prepare(self, request: LeafRequest) -> Prepared:
        """See `IssuingCA.prepare`: the TBSCertificate is the bridge's own."""
        tbs = self._profile.tbs(
            request.public_key,
            request.names,
            request.serial,
            request.not_before,
            request.not_after,
        )
        return Prepared(
            request=request, tbs=tbs, tbs_sha256=hashlib.sha256(tbs).hexdigest()
        )

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        """See `IssuingCA.issue`."""
        self._require_use(timeout)
        algorithm = self._profile.algorithm
        signature = self._signer.sign(prepared.tbs, algorithm, timeout=timeout)
        leaf = splice(prepared.tbs, algorithm.der, signature)
        return IssuedChain(leaf, self._intermediates)

    def check(self, *, timeout: float) -> None:
        """See `IssuingCA.check`: the signer is asked."""
        self._require_use(timeout)
        self._signer.check(timeout=timeout)

    def close(self) -> None:
        """See `IssuingCA.close`."""
        self._is_closed = True
        self._signer.close()

    def _require_use(self, timeout: float) -> None:
        if self._is_closed:
            raise BackendUnavailableError("the issuing CA is closed")
        if timeout <= 0:
            raise BackendUnavailableError("no time is left to ask the issuing CA")


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
        """
        with self._lock:
            if self._watch is not None or self._is_closed:
                raise RuntimeError("the files are watched already, or closed")
            self._watch = FileWatch(self._paths, self._digest, changed)
            self._watch.start()

    def close(self) -> None:
        """End the watch; may be called before it begins, and by `changed`."""
        with self._lock:
            watch, self._is_closed = self._watch, True
        if watch is not None:
            watch.close()


class WatchedSigningCA(SigningCA):
    """A `SigningCA` and `Watcher` that is made of files.

    Args:
        description: See `SigningCA`.
        signer: See `SigningCA`.
        files: What its certificate and its options were read from.
    """

    def __init__(
        self, description: Description, signer: Signer, files: WatchedFiles
    ) -> None:
        super().__init__(description, signer)
        self._files = files

    def watch(self, changed: Callable[[], None]) -> None:
        """See `Watcher.watch`; `changed` may close this object.

        Raises:
            RuntimeError: The files are watched already, or closed.
        """
        self._files.watch(changed)

    def close(self) -> None:
        """See `IssuingCA.close`."""
        self._files.close()
        super().close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredCA:
    """An issuing CA of a configuration file, for a command of its plugin."""

    plugin: str
    """The name of the backend."""
    options: Mapping[str, object]
    """As they are written; the plugin checks them."""
    context: PluginContext
    uri_names: tuple[str, ...]
    """The URI SANs of its leaves: `*` stands for any characters."""
    dns_names: tuple[str, ...]
    """The DNS SANs of its leaves, of the listener's certificate among them."""
    backdate: timedelta
    """How far notBefore lies in the past."""
    max_ttl: timedelta
    """The longest lifetime that is asked for."""


def configured_cas(path: Path, plugins: Collection[str]) -> tuple[ConfiguredCA, ...]:
    """Return those issuing CAs of a configuration file that have one of the plugins.

    Args:
        path: The file. The files that it names need not be there.
        plugins: Names of backends.

    Raises:
        ConfigError: The file cannot be read or has errors.
    """
    # A plugin that serves is given its options, and does not need the reader.
    from bridge import config  # noqa: PLC0415

    found = config.read(path)
    uri_names, dns_names = _issued_names(found)
    longest = found.issuance.max_ttl
    istio = found.fronts.istio
    if istio is not None and istio.tls.ttl is not None:
        longest = max(longest, istio.tls.ttl)
    return tuple(
        ConfiguredCA(
            plugin=section.plugin,
            options=section.options,
            context=PluginContext(name=name, base=found.base, chain=section.chain),
            uri_names=uri_names,
            dns_names=dns_names,
            backdate=found.issuance.backdate,
            max_ttl=longest,
        )
        for name, section in found.issuing_cas.items()
        if section.plugin in plugins
    )


def _issued_names(config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    # The URI and the DNS names of workloads, probes and the listener.
    uris: dict[str, None] = {}
    hosts: dict[str, None] = {}
    istio, linkerd = config.fronts.istio, config.fronts.linkerd
    domains = [one.trust_domain or config.trust_domain for one in config.clusters]
    if istio is not None:
        uris |= {f"spiffe://{domain}/ns/*/sa/*": None for domain in domains}
        uris[f"spiffe://{config.trust_domain}/meshca/probe"] = None
        hosts |= dict.fromkeys(istio.tls.dns_names)
    if linkerd is not None:
        domain = config.linkerd_trust_domain()
        space = linkerd.control_plane_namespace
        hosts[f"*.serviceaccount.identity.{space}.{domain}"] = None
        if linkerd.spiffe_uri:
            uris[f"spiffe://{domain}/ns/*/sa/*"] = None
    return tuple(uris), tuple(hosts)
