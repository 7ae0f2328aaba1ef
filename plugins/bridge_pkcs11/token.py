"""The token and its key: found, logged in to, and proven. In the signer process.

The login is the process's, not a session's. One session, the anchor, is opened for it
and does nothing else; sessions for signing are opened without the PIN, so closing one
of them logs nobody out.
"""

import hashlib
import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import (
    Attribute,
    Object,
    ObjectClass,
    Session,
    SignMixin,
    Token,
    TokenFlag,
)
from pkcs11.exceptions import (
    AttributeTypeInvalid,
    NoSuchKey,
    NoSuchToken,
    PKCS11Error,
)

from bridge.sdk import (
    CAPublicKey,
    algorithm_of,
    read_secret,
    require_signature,
    secret_line,
)
from bridge.spi import (
    BackendBrokenError,
    BackendCredentialError,
    ConfigError,
    Latch,
)
from bridge_pkcs11.cryptoki import (
    PIN_REFUSED,
    CryptokiError,
    Module,
    load_module,
    words,
)
from bridge_pkcs11.mechanism import KeyMechanism, mechanism_of
from bridge_pkcs11.protocol import NOT_OPENED, SignerOrder

_CHALLENGE_BYTES = 64
_TURN_SECONDS = 2.0
"""How long a login waits for that of another process."""
_FEW_TRIES = TokenFlag.USER_PIN_COUNT_LOW | TokenFlag.USER_PIN_FINAL_TRY
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class KeySession:
    """A session, and the key as this session knows it."""

    session: Session
    key: SignMixin
    mechanism: KeyMechanism
    generation: int = 0
    """Counts the logins: handles of an earlier one are dead."""
    used: float = 0.0
    """When it was used last."""

    def sign(self, data: bytes) -> bytes:
        """Sign, and return the signature as it stands in a certificate."""
        mechanism = self.mechanism
        raw = self.key.sign(mechanism.signed_data(data), mechanism=mechanism.mechanism)
        return mechanism.signature(raw)


class TimeLimit:
    """Ends this process where a part of its start takes too long.

    A call that hangs lets other threads run, such as the timer's.

    Args:
        seconds: The limit, from each `resume` on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: threading.Timer | None = None
        self._is_over = False

    def resume(self) -> None:
        """Begin the time anew, unless `close` was called."""
        self.pause()
        if not self._is_over:
            self._timer = threading.Timer(self._seconds, os._exit, [NOT_OPENED])
            self._timer.daemon = True
            self._timer.start()

    def pause(self) -> None:
        """Stop the time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Stop the time for good: the token is open."""
        self._is_over = True
        self.pause()


class HSMToken:
    """The token that holds an issuing CA's key.

    Args:
        order: Which token and which key, and where the PIN is.
        limit: Runs while the module is called in `start`.
    """

    def __init__(self, order: SignerOrder, limit: TimeLimit) -> None:
        self._order = order
        self._limit = limit
        self._pin_sha256 = b""
        self._latch = Latch(
            Path(order.latch) if order.latch else None, issuing_ca=order.name
        )
        self._public_key = _public_key(bytes.fromhex(order.spki))
        self._module: Module
        self._token: Token
        self._mechanism: KeyMechanism
        self._anchor: Session | None = None

    def start(self) -> str:
        """Load the module, log in, and choose how to sign.

        Returns:
            What the operator should know, or nothing.

        Raises:
            BackendError: The module, the token or the PIN cannot be used.
            PKCS11Error: A call failed.
        """
        self._module = load_module(self._order.module)
        with self._module.guard:
            self._token = find_token(
                self._module, self._order.token_label, self._order.token_serial
            )
            self._require_unattended()
            slot = self._token.slot
            self._mechanism = mechanism_of(self._public_key, slot.get_mechanisms())
            warning = self._limit_of_sessions()
        self.log_in()
        return warning

    def log_in(self) -> None:
        """Open a new anchor, and log in where nobody is.

        Raises:
            BackendCredentialError: The PIN was refused, or may not be tried.
            BackendBrokenError: The file of the PIN cannot be used.
            PKCS11Error: A call failed.
        """
        with self._module.guard:
            anchor = self._token.open()
            try:
                if not self._module.is_logged_in(handle_of(anchor)):
                    self._log_in(handle_of(anchor))
            except BaseException:
                close_quietly(anchor)
                raise
            # The new one is open: closing the last session would log out.
            before, self._anchor = self._anchor, anchor
            if before is not None:
                close_quietly(before)

    def open_session(self) -> KeySession:
        """Open a session for signing, find the key in it, and prove it.

        The key signs a random challenge, which must verify with the certificate.

        Raises:
            BackendBrokenError: The key is not the certificate's, or not fit for it.
            PKCS11Error: A call failed, or there is no such key.
        """
        with self._module.guard:
            session = self._token.open()
            try:
                opened = KeySession(session, self._key(session), self._mechanism)
                self._prove(opened)
            except BaseException:
                close_quietly(session)
                raise
            return opened

    def sign(self, opened: KeySession, data: bytes) -> bytes:
        """Sign `data`; an ECDSA signature is in DER."""
        with self._module.guard:
            return opened.sign(data)

    def look(self, opened: KeySession) -> None:
        """Look for the key, which is still the only one, and at the login."""
        with self._module.guard:
            self._key(opened.session)
            if self._anchor is None or not self._module.is_logged_in(
                handle_of(self._anchor)
            ):
                raise CryptokiError(_NOT_LOGGED_IN)

    def discard(self, opened: KeySession) -> None:
        """Close a session that may be dead."""
        with self._module.guard:
            close_quietly(opened.session)

    def finish(self) -> None:
        """Log out and finalise the module. No thread may be in a call."""
        if self._anchor is not None:
            close_quietly(self._anchor)
        self._module.finish()

    def _require_unattended(self) -> None:
        if self._token.flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
            raise BackendBrokenError(
                "the token asks for its PIN by itself",
                rule="pkcs11.login",
                detail=f"token {self._token.label!r} has a protected authentication "
                "path (a PIN pad or a key card): expected a token that takes the PIN "
                "from pin_file, since nobody is there when the bridge logs in",
            )

    def _limit_of_sessions(self) -> str:
        most = self._module.most_sessions(self._token.slot.slot_id)
        own = self._order.sessions + 1
        if most is None or own * self._order.processes <= most:
            return ""
        if own > most:
            raise BackendBrokenError(
                "the token allows fewer sessions than configured",
                rule="pkcs11.sessions",
                detail=f"sessions: expected at most {most - 1}: token "
                f"{self._token.label!r} allows {most} sessions, and one is for the "
                "login",
            )
        return (
            f"sessions: {self._order.processes} signer processes (two per worker, for "
            f"reloads) may open {own * self._order.processes} sessions, and token "
            f"{self._token.label!r} allows {most}: lower sessions or workers"
        )

    def _log_in(self, session: int) -> None:
        flags = self._module.token_state(self._token.slot.slot_id).flags
        path = self._order.pin_file
        if path is None:
            if flags & TokenFlag.LOGIN_REQUIRED:
                raise BackendBrokenError(
                    "the token wants a login",
                    rule="pkcs11.login",
                    detail=f"pin_file: expected the file of the user PIN of token "
                    f"{self._token.label!r} (found nothing)",
                )
            return
        pin = read_pin(Path(path), allow_group_read=self._order.allow_group_read)
        digest = hashlib.sha256(pin).digest()
        if self._pin_sha256 not in {b"", digest}:
            # A caller's deadline could end the first login with another PIN, which
            # would count as refused. A new process gives it the time of a start.
            raise CryptokiError(_NOT_LOGGED_IN)
        scope = f"pkcs11:{self._token.label}:{serial_of(self._token)}"
        if flags & TokenFlag.USER_PIN_LOCKED:
            raise self._refused("the token says that its user PIN is locked")
        self._require_tries(flags, scope, pin)
        # The wait for other processes is none for the module.
        self._limit.pause()
        attempt = self._latch.attempt(scope, pin, wait_seconds=_TURN_SECONDS)
        with suppress(_NotTriedError), attempt:
            self._limit.resume()
            self._try(session, pin)
        self._limit.resume()
        self._pin_sha256 = digest

    def _require_tries(self, flags: int, scope: str, pin: bytes) -> None:
        # Where this host entered the wrong PIN itself, another one in the file is what
        # an operator has corrected, and it has one login.
        is_last = bool(flags & TokenFlag.USER_PIN_FINAL_TRY)
        if not flags & _FEW_TRIES or self._latch.is_proven(scope, pin):
            return
        if is_last or not self._latch.knows_refusal(scope):
            raise self._refused(
                "the token says that its user PIN was entered wrongly before, and the "
                "PIN in the file has not succeeded here yet: it is not tried"
            )

    def _try(self, session: int, pin: bytes) -> None:
        try:
            was_tried = self._module.log_in(session, pin)
        except CryptokiError as error:
            if error.code not in PIN_REFUSED:
                raise
            raise self._refused(words(error)) from error
        if not was_tried:
            raise _NotTriedError

    def _refused(self, reason: str) -> BackendCredentialError:
        return BackendCredentialError(
            "the login to the token is refused",
            rule="pkcs11.pin",
            detail=f"{self._order.pin_file}: token {self._token.label!r} "
            f"({serial_of(self._token)}): {reason}. The bridge does not log in with "
            "this PIN again. Correct the file; where the PIN is right, reset the "
            "token's counter with a login by the vendor's tool, and run meshca ledger "
            "latch clear",
        )

    def _key(self, session: Session) -> SignMixin:
        wanted = {
            Attribute.CLASS: ObjectClass.PRIVATE_KEY,
            Attribute.KEY_TYPE: self._mechanism.key_type,
            **self._named(),
        }
        # To the end: a search that is left open makes the next one fail.
        found = [*session.get_objects(wanted)]
        if not found:
            others = [*session.get_objects(self._named())]
            told = ", ".join(_described(one) for one in others) or "none"
            raise NoSuchKey(
                f"{self._searched()}: no private key of type "
                f"{self._mechanism.key_type.name}, as the certificate has; objects "
                f"with this label and ID: {told}"
            )
        if len(found) > 1:
            raise BackendBrokenError(
                "several keys have the label and ID",
                rule="pkcs11.key",
                detail=f"{self._searched()}: expected one private key, found "
                f"{len(found)}; give key_label and key_id, and remove what is not used",
            )
        key = found[0]
        self._require_fit(key)
        if not isinstance(key, SignMixin):
            raise TypeError("the library made no key that signs of one")
        return key

    def _prove(self, opened: KeySession) -> None:
        # A key of the same label may have taken the place of the one before.
        challenge = os.urandom(_CHALLENGE_BYTES)
        algorithm = algorithm_of(self._public_key)
        signature = opened.sign(challenge)
        try:
            require_signature(self._public_key, algorithm, signature, challenge)
        except InvalidSignature:
            raise BackendBrokenError(
                "the key in the token is not that of the issuing CA's certificate",
                rule="issuer.key-mismatch",
                detail=f"{self._searched()}: its signature does not verify with the "
                "public key of the issuing CA's certificate in chain; give the "
                "certificate of this key, or label and ID of the certificate's key",
            ) from None

    def _named(self) -> dict[Attribute, object]:
        label, identifier = self._order.key_label, self._order.key_id
        return {
            **({} if label is None else {Attribute.LABEL: label}),
            **({} if identifier is None else {Attribute.ID: bytes.fromhex(identifier)}),
        }

    def _searched(self) -> str:
        order = self._order
        parts = (("key_label", order.key_label), ("key_id", order.key_id))
        told = " and ".join(f"{name} {value!r}" for name, value in parts if value)
        return f"{told} in token {order.token_label!r}"

    def _require_fit(self, key: Object) -> None:
        if wrong := unfit(key):
            raise BackendBrokenError(
                "the key in the token is not fit for an issuing CA",
                rule="pkcs11.key",
                detail=f"{self._searched()}: {', '.join(wrong)}: expected a key made "
                "in the token that is sensitive, cannot be extracted, may sign, and "
                "wants no PIN for each signature",
            )


_NOT_LOGGED_IN = 0x101


class _NotTriedError(Exception):
    # Somebody was logged in, so the token did not look at the PIN.
    pass


def find_token(module: Module, label: str, serial: str | None) -> Token:
    """Return the one token of a label, and of a serial number where one is given.

    Raises:
        BackendBrokenError: Several tokens have the label.
        PKCS11Error: A call failed, or there is no such token.
    """
    tokens = []
    for slot in module.get_slots(token_present=True):
        try:
            tokens.append(slot.get_token())
        except PKCS11Error as error:
            # Another slot's token may be broken; ours is told as absent.
            _log.debug("slot %d: %s", slot.slot_id, words(error))
    found = [
        token
        for token in tokens
        if token.label == label and (serial is None or serial_of(token) == serial)
    ]
    if len(found) == 1:
        return found[0]
    told = ", ".join(f"{one.label!r} ({serial_of(one)})" for one in tokens if one.label)
    if found:
        raise BackendBrokenError(
            "several tokens have the label",
            rule="pkcs11.token",
            detail=f"token_label {label!r}: expected one token, found {len(found)}: "
            f"{told}; choose one with token_serial",
        )
    wanted = f"token_label {label!r}"
    if serial is not None:
        wanted += f" with token_serial {serial!r}"
    raise NoSuchToken(
        f"{wanted}: no such token in {module.so}; found {told or 'none'}; is the HSM "
        "reachable, and the module's own configuration right?"
    )


def read_pin(path: Path, *, allow_group_read: bool) -> bytes:
    """Read a PIN. One newline at the end of the file is not part of it.

    Raises:
        BackendBrokenError: The file is absent, empty, or open to others.
    """
    try:
        content = read_secret(
            path,
            allow_group_read=allow_group_read,
            group_hint=", or set allow_group_read: true if it is a Secret's fsGroup",
        )
        pin = secret_line(content, path, "the token's user PIN on one line")
        _require_text(pin, path)
    except ConfigError as error:
        raise BackendBrokenError(
            "the PIN cannot be read", rule="pkcs11.pin-file", detail=str(error)
        ) from error
    return pin


def _require_text(pin: bytes, path: Path) -> None:
    # A second line or a mark of an editor costs one of the few tries of the token.
    with suppress(UnicodeDecodeError):
        if pin.decode().isprintable():
            return
    raise ConfigError(
        f"{path}: expected the token's user PIN on one line, in UTF-8 (found another "
        "line, a control character, or the byte order mark of an editor)"
    )


def handle_of(session: Session) -> int:
    """Return a session's handle, for calls that the library does not make."""
    # The library's stubs leave it out.
    return int(session.handle)  # type: ignore[attr-defined]


def unfit(key: Object) -> list[str]:
    """Return what of a private key's attributes forbids that it is an issuing CA's."""
    return [
        f"{name} is {str(not wanted).lower()}"
        for name, attribute, wanted in (
            ("CKA_SENSITIVE", Attribute.SENSITIVE, True),
            ("CKA_EXTRACTABLE", Attribute.EXTRACTABLE, False),
            ("CKA_SIGN", Attribute.SIGN, True),
            ("CKA_ALWAYS_AUTHENTICATE", Attribute.ALWAYS_AUTHENTICATE, False),
        )
        if _flag(key, attribute, wanted) != wanted
    ]


def close_quietly(session: Session) -> None:
    """Close a session that may be dead already."""
    try:
        session.close()
    except PKCS11Error as error:
        _log.debug("a session is not closed: %s", words(error))


def _flag(key: Object, attribute: Attribute, wanted: bool) -> bool:  # noqa: FBT001 - internal
    try:
        return bool(key[attribute])
    except AttributeTypeInvalid:
        # CKA_ALWAYS_AUTHENTICATE came with PKCS #11 2.20; the others are old.
        return wanted if attribute is Attribute.ALWAYS_AUTHENTICATE else not wanted


def _described(one: object) -> str:
    kind = getattr(one, "object_class", None)
    key_type = getattr(one, "key_type", None)
    parts = [part for part in (kind, key_type) if part is not None]
    names = [str(getattr(part, "name", part)) for part in parts]
    return " ".join(names) or "an object"


def serial_of(token: Token) -> str:
    """Return the serial number of a token, as text."""
    return bytes(token.serial).rstrip(b"\0 ").decode("ascii", "replace")


def _public_key(spki: bytes) -> CAPublicKey:
    key = load_der_public_key(spki)
    if not isinstance(key, CAPublicKey):
        raise TypeError("the serving process has refused such a key")
    return key
