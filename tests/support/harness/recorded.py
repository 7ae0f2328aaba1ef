"""Holds what clients have, and what a backend says it signed, against the ledger."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography import x509

from tests.support.clients.callers import Callers
from tests.support.harness.journals import journaled
from tests.support.harness.workers import Supervised, await_true

_MAY_EXIST = {"issued", "unknown"}
"""The outcomes of an attempt whose certificate may exist."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that a backend made, by its own log."""

    attempt: str
    """The ID of the attempt."""
    serial: str = ""
    """In lower-case hex; empty where the backend does not know it."""


def require_all_on_record(bridge: Supervised, callers: Callers) -> None:
    """Hold the ledger against itself, and each certificate against the ledger.

    Args:
        bridge: May have stopped.
        callers: Have stopped asking.

    Raises:
        AssertionError: They do not agree.
    """
    rows = _by_kind(bridge)
    intended = {row["attempt"] for row in rows["intent"]}
    known = {row["tbs_sha256"] for row in rows["intent"] if row["tbs_sha256"]}
    issued = {
        row["certificate_sha256"]
        for row in rows["issued"]
        if row["attempt"] in intended
    }
    missing = [
        leaf
        for leaf in callers.leaves()
        if sha256(leaf).hexdigest() not in issued and _tbs_digest(leaf) not in known
    ]
    assert not missing, f"{len(missing)} certificates have no intent"
    serials = Counter(row["serial"] for row in rows["issued"] if row["serial"])
    repeated = [serial for serial, count in serials.items() if count > 1]
    assert not repeated, f"serial numbers given out twice: {repeated}"
    await_true(lambda: _is_verified(bridge))
    bridge.require_sound_ledger()


def require_signed_on_record(bridge: Supervised, signed: Iterable[Signed]) -> None:
    """Require an intent and an outcome that fits for each signature of a backend.

    Args:
        bridge: Has stopped, or nobody asks it.
        signed: By the backend's log.

    Raises:
        AssertionError: A certificate may exist that the ledger does not know.
    """
    rows = _by_kind(bridge)
    attempts = {row["attempt"] for row in rows["intent"]}
    endings = {
        row["attempt"]: row
        for kind in ("issued", "unknown", "failed", "refused")
        for row in rows[kind]
        if row["attempt"]
    }
    for one in signed:
        assert one.attempt in attempts, f"nobody intended {one}"
        ending = endings[one.attempt]
        assert ending["kind"] in _MAY_EXIST, f"{one} was signed, and the row: {ending}"
        if one.serial and ending["kind"] == "issued":
            assert ending["serial"] == one.serial


def _by_kind(bridge: Supervised) -> Mapping[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in journaled(bridge.folder / "journal"):
        found[row["kind"]].append(row)
    return found


def _tbs_digest(leaf: bytes) -> str:
    certificate = x509.load_der_x509_certificate(leaf)
    return sha256(certificate.tbs_certificate_bytes).hexdigest()


def _is_verified(bridge: Supervised) -> bool:
    # An outcome may follow the answer; `require_sound_ledger` says what is wrong.
    checked = bridge.run("ledger", "verify")
    return not checked.returncode and " 0 attempts without" in checked.stdout
