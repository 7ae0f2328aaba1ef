"""The issuing CA of a PKCS#11 token, as the serving process has it.

The module is never loaded here, and the PIN never read: both are the signer process's.
"""

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Mapping
from functools import partial

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.sdk import (
    CAPublicKey,
    SignatureAlgorithm,
    WatchedSigningCA,
    issuer_key,
    read_watched_description,
    stamp_of,
)
from bridge.spi import (
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    BackendUnavailableError,
    PluginContext,
)
from bridge_pkcs11.options import PKCS11Options, options_of
from bridge_pkcs11.process import ProcessEndedError, SignerProcess
from bridge_pkcs11.protocol import Operation, SignerOrder

if importlib.util.find_spec("pkcs11") is None:
    raise ImportError("python-pkcs11 is not installed")

_COOL_DOWN_SECONDS = 1.0
"""Between the starts of two signer processes."""
_REFUSED_SECONDS = 30.0
"""After a refused PIN the token is looked at again, without a login: somebody may have
reset its counter."""
_log = logging.getLogger(__name__)


class PKCS11CA(WatchedSigningCA):
    """An issuing CA whose key is in a token. It reports changes of its chain.

    Args:
        options: See `bridge_pkcs11.options.PKCS11Options`.
        context: `chain` names the certificates.

    Raises:
        ConfigError: An option or a file cannot be used; the message says what was
            expected.
    """

    api_version = 2

    def __init__(
        self, options: Mapping[str, object], context: PluginContext, /
    ) -> None:
        parsed = options_of(options, context)
        key = parsed.key_label or parsed.key_id or ""
        description, files = read_watched_description(
            context,
            assurance="hsm",
            labels={"token": parsed.token_label, "key": key},
            holds=partial(_holds, parsed, context),
        )
        super().__init__(
            description,
            _ProcessSigner(issuer_key(description.certificate), parsed, context),
            files,
        )


class _ProcessSigner:
    # A `Signer`. It has at most one process, which it starts when it is first needed.
    def __init__(
        self, public_key: CAPublicKey, options: PKCS11Options, context: PluginContext
    ) -> None:
        self._public_key = public_key
        self._options = options
        self._context = context
        self._order = partial(_order, public_key, options, context)
        self._process: SignerProcess | None = None
        self._starting = threading.Lock()
        self._began = float("-inf")
        self._refused: tuple[BackendError, object, float] | None = None
        self._is_closed = False

    def public_key(self) -> CAPublicKey:
        return self._public_key

    def check(self, *, timeout: float) -> None:
        self._call(Operation.CHECK, b"", time.monotonic() + timeout)

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        return self._call(Operation.SIGN, tbs, time.monotonic() + timeout)

    def close(self) -> None:
        self._is_closed = True
        with self._starting:
            process, self._process = self._process, None
        if process is not None:
            process.close()

    def _call(self, operation: Operation, data: bytes, deadline: float) -> bytes:
        try:
            return self._running(deadline).ask(operation, data, deadline)
        except ProcessEndedError as ended:
            self._remember(ended.error)
            is_refused = isinstance(ended.error, BackendCredentialError)
            if self._is_closed or is_refused or not ended.may_repeat:
                raise ended.error from None
        # The last step of the way back is another process.
        try:
            return self._running(deadline).ask(operation, data, deadline)
        except ProcessEndedError as ended:
            self._remember(ended.error)
            raise ended.error from None

    def _running(self, deadline: float) -> SignerProcess:
        process = self._process
        if process is not None and process.is_usable:
            return process
        if not self._starting.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise _starting()
        try:
            return self._started(deadline)
        finally:
            self._starting.release()

    def _started(self, deadline: float) -> SignerProcess:
        if self._is_closed:
            raise BackendUnavailableError("the issuing CA is closed")
        process = self._process
        if process is not None and process.is_usable:
            return process  # another call has started it
        if process is not None:
            process.end(_late())
        self._require_new_credential()
        pause = self._began + _COOL_DOWN_SECONDS - time.monotonic()
        if pause > 0:
            if time.monotonic() + pause >= deadline:
                raise _starting()
            time.sleep(pause)
        self._began = time.monotonic()
        try:
            self._process = process = SignerProcess(
                self._order,
                self._options.sessions,
                self._options.start_timeout_seconds,
                self._context.warn,
            )
        except OSError as error:
            raise BackendUnavailableError(
                "the system gives no signer process",
                rule="pkcs11.process",
                detail=str(error),
            ) from error
        self._context.metrics.count("signer_processes")
        name = self._context.name
        _log.info("issuing CA %s: its signer is process %d", name, process.pid)
        return process

    def _remember(self, error: BackendError) -> None:
        if isinstance(error, BackendCredentialError):
            now = time.monotonic()
            self._refused = error, self._credential_stamp(), now

    def _require_new_credential(self) -> None:
        # Without another PIN, and without an operator at the latch, a process would be
        # started only to be told the same.
        if self._refused is not None:
            error, stamp, at = self._refused
            is_recent = time.monotonic() < at + _REFUSED_SECONDS
            if is_recent and stamp == self._credential_stamp():
                raise type(error)(str(error), rule=error.rule, detail=error.detail)
            self._refused = None

    def _credential_stamp(self) -> object:
        paths = (self._options.pin_file, self._context.latch.path)
        return stamp_of(path for path in paths if path is not None)


def _holds(options: PKCS11Options, context: PluginContext, key: CAPublicKey) -> bool:
    signer = _ProcessSigner(key, options, context)
    try:
        signer.check(timeout=options.start_timeout_seconds)
    except BackendBrokenError:
        return False  # of another key, or told when the issuing CA is checked
    finally:
        signer.close()
    return True


def _order(
    public_key: CAPublicKey,
    options: PKCS11Options,
    context: PluginContext,
    channels: tuple[int, ...],
) -> SignerOrder:
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    latch = context.latch.path
    level = logging.getLogger().getEffectiveLevel()
    return SignerOrder(
        name=context.name,
        module=str(options.module),
        token_label=options.token_label,
        token_serial=options.token_serial,
        key_label=options.key_label,
        key_id=options.key_id,
        pin_file=str(options.pin_file) if options.pin_file else None,
        allow_group_read=options.allow_group_read,
        spki=spki.hex(),
        sessions=options.sessions,
        processes=2 * context.workers,
        keep_alive_seconds=options.keep_alive_seconds,
        start_seconds=options.start_timeout_seconds,
        latch=os.fspath(latch) if latch else None,
        channels=channels,
        environment=options.environment,
        log_level=logging.getLevelName(level),
    )


def _starting() -> BackendUnavailableError:
    return BackendUnavailableError(
        "another signer process is being started", rule="pkcs11.start"
    )


def _late() -> BackendUnavailableError:
    return BackendUnavailableError(
        "the token was not opened in time",
        rule="pkcs11.start",
        detail="longer than start_timeout_seconds",
    )
