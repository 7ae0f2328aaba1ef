"""Trust anchors that follow others: what is refused, accepted and remembered."""

import hashlib
import logging
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from bridge.config import BridgeConfig, parse
from bridge.errors import ConfigError
from bridge.snapshot.continuity import FILE, remember, require_continuity
from tests.support.harness.configuration import text
from tests.support.parts.pki import NOW, bundle, new_key, new_root

DAY = timedelta(days=1)
KEY = new_key()
OLD = new_root("old", key=KEY).certificate
RENEWED = new_root("old", key=KEY, not_before=NOW - 2 * DAY).certificate
RENAMED = new_root("older", key=KEY).certificate
REKEYED = new_root("old").certificate
NEW = new_root("new").certificate
ENDED_KEY = new_key()
ENDED = new_root("ended", key=ENDED_KEY, not_before=NOW - DAY, not_after=NOW)
REVIVED = new_root("ended", key=ENDED_KEY)


def config(folder: Path, **changed: object) -> BridgeConfig:
    return parse(text(**changed), folder / "bridge.yaml")


ended, revived = ENDED.certificate, REVIVED.certificate


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([OLD], [OLD]),
        ([OLD], [OLD, NEW]),
        ([OLD], [NEW, OLD]),
        ([OLD, NEW], [NEW]),
        ([OLD], [RENEWED]),
        ([ended], [revived]),
        ([ended], [revived, NEW]),
        ([], [NEW]),
    ],
    ids=[
        *("the same", "one is added", "another order", "one is removed", "renewed"),
        *("the expired one renewed", "and one added", "the first ones"),
    ],
)
def test_anchors_that_share_one_with_the_last_follow_them(
    tmp_path: Path, before: list[x509.Certificate], after: list[x509.Certificate]
) -> None:
    if before:
        remember(config(tmp_path), bundle(*before))
    require_continuity(config(tmp_path), bundle(*after), NOW)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([OLD], [NEW]),
        ([OLD], [REKEYED]),
        ([OLD], [RENAMED]),
        ([ended, OLD], [ended, NEW]),
        ([ended, OLD], [revived, NEW]),
        ([ended], [NEW]),
    ],
    ids=[
        *("others", "another key", "another name", "only an expired one is shared"),
        *("only a renewal of an expired one is shared", "others than an expired one"),
    ],
)
def test_anchors_that_share_none_are_refused_until_they_are_named(
    tmp_path: Path, before: list[x509.Certificate], after: list[x509.Certificate]
) -> None:
    remember(config(tmp_path), bundle(*before))
    content = bundle(*after)
    with pytest.raises(ConfigError, match="found others only") as refusal:
        require_continuity(config(tmp_path), content, NOW)
    told = str(refusal.value)
    assert told.startswith(f"trust_anchors: {tmp_path}/roots.pem: expected one of")
    assert "Every connection would fail between" in told
    digest = hashlib.sha256(content).hexdigest()
    assert told.endswith(f'accept_new_anchors: "{digest}"')
    for wrong in (hashlib.sha256(bundle(*before)).hexdigest(), "0" * 64):
        with pytest.raises(ConfigError, match="found others only"):
            require_continuity(config(tmp_path, accept_new_anchors=wrong), content, NOW)
    require_continuity(config(tmp_path, accept_new_anchors=digest), content, NOW)


def test_what_was_in_service_last_counts_and_what_came_before_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for anchors in ([OLD], [OLD, NEW], [NEW]):
        remember(config(tmp_path), bundle(*anchors))
    require_continuity(config(tmp_path), bundle(NEW), NOW)
    with pytest.raises(ConfigError, match="found others only"):
        require_continuity(config(tmp_path), bundle(OLD), NOW)
    assert [record.getMessage() for record in caplog.records] == [
        "trust anchors added: CN=new",
        "trust anchors removed: CN=old",
    ]


@pytest.mark.parametrize("content", [b"", b"no certificate"])
def test_a_start_that_cannot_compare_is_refused_until_the_bundle_is_named(
    tmp_path: Path, content: bytes
) -> None:
    first = config(tmp_path)
    first.ledger.state.mkdir(parents=True)
    (first.ledger.state / FILE).write_bytes(content)
    with pytest.raises(ConfigError, match="or remove it to start without the compar"):
        require_continuity(first, bundle(NEW), NOW)
    digest = hashlib.sha256(bundle(NEW)).hexdigest().upper()
    accepting = config(tmp_path, accept_new_anchors=digest)
    require_continuity(accepting, bundle(NEW), NOW)
    remember(accepting, bundle(NEW))
    require_continuity(first, bundle(NEW), NOW)


def test_anchors_that_cannot_be_kept_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "journal").write_text("")
    remember(config(tmp_path), bundle(NEW))
    assert "trust-anchors.pem: cannot be written" in caplog.text
