"""Trust anchors that follow others: refused if the two bundles share none.

A workload gets the new anchors when it renews its certificate. Until then it has the
old ones. Anchors that share none with those last in service would break every
connection between the two for the lifetime of a certificate.
"""

import hashlib
import logging
from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.config import BridgeConfig
from bridge.errors import ConfigError
from bridge.snapshot.trust_bundle import TrustBundle, is_valid, parse_bundle
from bridge.system.files import replace
from bridge.x509.certificate import UNREADABLE, name_text, subject_of

FILE = "trust-anchors.pem"
"""The anchors last in service on this host, in `LedgerConfig.state`."""
_RULE = "config.trust-anchors"
_log = logging.getLogger(__name__)


def require_continuity(config: BridgeConfig, content: bytes, now: datetime) -> None:
    """Refuse trust anchors that share none with those last in service on this host.

    Two anchors are the same to a verifier if subject and key are. An anchor that is not
    valid does not count, unless the old ones are all invalid.

    Args:
        config: Names the file, may accept its content, and says where those last in
            service are kept.
        content: Of the file.
        now: Aware, in UTC.

    Raises:
        ConfigError: They share none, and `accept_new_anchors` does not name the new
            ones; or either bundle cannot be read.
    """
    where = f"trust_anchors: {config.trust_anchors}"
    new = parse_bundle(content, where)
    digest = hashlib.sha256(content).hexdigest()
    if config.accept_new_anchors == digest or (old := _last(config)) is None:
        return
    before = [one for one in old.anchors if is_valid(one, now)] or old.anchors
    after = [one for one in new.anchors if is_valid(one, now)]
    if _identities(before) & _identities(after):
        return
    raise ConfigError(
        f"{where}: expected one of the trust anchors last in service at least "
        f"({_names(before)}), found others only ({_names(new.anchors)}). Every "
        "connection would fail between a workload that has the new ones and one that "
        "still has the old ones. Put the new ones beside the old ones, and remove the "
        "old ones when every workload has both. To replace them at once nevertheless, "
        f'write accept_new_anchors: "{digest}"',
        rule=_RULE,
    )


def remember(config: BridgeConfig, content: bytes) -> None:
    """Keep the trust anchors that are in service now, and log what has changed.

    Args:
        config: Says where they are kept: beside the journals.
        content: Of the file of trust anchors.
    """
    path = config.ledger.state / FILE
    try:
        old = _last(config)
    except ConfigError:
        old = None  # they were accepted by name
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace(path, content)
    except OSError as error:
        _log.error(
            "%s: cannot be written (%s): after a restart the bridge does not know "
            "which trust anchors were in service",
            path,
            error.strerror,
        )
    if old is not None:
        new = parse_bundle(content, str(path))
        _log_difference("added", new.anchors, old.anchors)
        _log_difference("removed", old.anchors, new.anchors)


def _log_difference(
    what: str, these: Iterable[x509.Certificate], others: Iterable[x509.Certificate]
) -> None:
    if more := [one for one in these if one not in {*others}]:
        _log.warning("trust anchors %s: %s", what, _names(more))


def _last(config: BridgeConfig) -> TrustBundle | None:
    path = config.ledger.state / FILE
    try:
        return parse_bundle(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ConfigError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"{path}: expected the trust anchors last in service, which a start "
            f"compares with trust_anchors ({reason}): restore the file, or remove it "
            "to start without the comparison",
            rule=_RULE,
        ) from error


def _identities(anchors: Iterable[x509.Certificate]) -> set[tuple[bytes, bytes]]:
    return {(subject_of(one), _key_of(one)) for one in anchors}


def _key_of(anchor: x509.Certificate) -> bytes:
    try:
        key = anchor.public_key()
    except UNREADABLE:
        return anchor.public_bytes(Encoding.DER)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _names(anchors: Iterable[x509.Certificate]) -> str:
    return "; ".join(str(name_text(one, "subject")) for one in anchors)
