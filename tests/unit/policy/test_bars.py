"""What an operator barred gets nothing more, whatever becomes of the file."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from bridge.errors import BarredError, ConfigError, LedgerError
from bridge.identity.caller import Caller
from bridge.policy.bars import BarKind, Bars, new_entry, scope_of
from bridge.policy.certificate_renewal import key_sha256
from bridge.resilience.latch_file import LatchFile
from bridge.spiffe import SpiffeID
from tests.support.parts.pki import new_root

WEB = "spiffe://corp.example/ns/shop/sa/web"
CALLER = Caller(
    spiffe_id=SpiffeID.parse(WEB),
    cluster="Kubernetes",
    credential="token",
    verified_by="jwks",
    namespace="shop",
    service_account="web",
)
SPKI = b"key"
DIGEST = hashlib.sha256(SPKI).hexdigest()
LEAF = new_root().issue_leaf(x509.UniformResourceIdentifier(WEB))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "bars.json"


def bar(path: Path, kind: BarKind, value: str) -> str:
    with LatchFile(path).change() as content:
        entry = new_entry(kind, value, reason="stolen", at=1.0)
        content.put(entry)
    return entry.id


def shown(bars: Bars) -> None:
    bars.require(CALLER, SPKI)
    bars.require_certificate(LEAF)


@pytest.mark.parametrize(
    ("kind", "value", "rule"),
    [
        (BarKind.IDENTITY, WEB, "bar.identity"),
        (BarKind.SERVICE_ACCOUNT, "shop/web", "bar.service-account"),
        (BarKind.KEY, DIGEST.upper(), "bar.key"),
        (BarKind.KEY, key_sha256(LEAF), "bar.key"),
        (BarKind.SERIAL, f"00{LEAF.serial_number:X}", "bar.certificate"),
        (BarKind.CERTIFICATE, LEAF.fingerprint(SHA256()).hex(":"), "bar.certificate"),
    ],
    ids=["identity", "account", "key-capitals", "key", "serial", "certificate"],
)
def test_each_kind_is_refused_until_it_is_removed(
    path: Path, kind: BarKind, value: str, rule: str
) -> None:
    bars = Bars(path)
    shown(bars)
    name = bar(path, kind, value)
    bars.look()
    with pytest.raises(BarredError, match="is barred") as caught:
        shown(bars)
    assert caught.value.rule == rule
    assert "stolen" in caught.value.detail
    with LatchFile(path).change() as content:
        assert content.clear(name, by="ada", reason="found")
    bars.look()
    shown(bars)
    notes = LatchFile(path).read().notes
    assert [(one.by, one.reason) for one in notes] == [("", ""), ("ada", "found")]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (BarKind.IDENTITY, f"{WEB}2"),
        (BarKind.SERVICE_ACCOUNT, "shop2/web"),
        (BarKind.KEY, "0" * 64),
        (BarKind.SERIAL, "1"),
        (BarKind.CERTIFICATE, DIGEST),
    ],
)
def test_others_are_not_refused(path: Path, kind: BarKind, value: str) -> None:
    bar(path, kind, value)
    shown(Bars(path))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (BarKind.IDENTITY, "corp.example/ns/shop/sa/web"),
        (BarKind.IDENTITY, ""),
        (BarKind.SERVICE_ACCOUNT, "web"),
        (BarKind.SERVICE_ACCOUNT, "shop/"),
        (BarKind.SERVICE_ACCOUNT, "*/web"),
        (BarKind.KEY, "ab"),
        (BarKind.SERIAL, ""),
        (BarKind.SERIAL, "xyz"),
        (BarKind.SERIAL, "1" * 41),
        (BarKind.CERTIFICATE, "g" * 64),
    ],
)
def test_a_value_of_no_kind_is_refused(kind: BarKind, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind}: expected"):
        scope_of(kind, value)


def nonsense(path: Path) -> None:
    path.write_text("{}")


def removed(path: Path) -> None:
    path.unlink()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [nonsense, removed, fifo])
def test_what_was_read_last_stays_barred(
    path: Path, change: Callable[[Path], None]
) -> None:
    bar(path, BarKind.IDENTITY, WEB)
    bars = Bars(path)
    change(path)
    bars.look()
    assert bars.trouble()
    with pytest.raises(BarredError, match="is barred"):
        shown(bars)
    path.unlink(missing_ok=True)
    bar(path, BarKind.KEY, "0" * 64)
    bars.look()
    assert not bars.trouble()
    # A file that was made again takes no bar back.
    with pytest.raises(BarredError, match="is barred"):
        shown(bars)


def test_a_bar_holds_in_a_file_of_the_same_inode_time_and_size(path: Path) -> None:
    name = bar(path, BarKind.IDENTITY, f"{WEB[:-1]}x")
    bars, before = Bars(path), path.stat()
    text = path.read_text().replace(f"{WEB[:-1]}x", WEB).replace(name, "0" * 32)
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_size,
    )
    bars.look()
    with pytest.raises(BarredError, match="is barred"):
        shown(bars)


def test_a_bar_that_could_not_be_read_holds_once_it_can(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    bars = Bars(path)
    bar(path, BarKind.IDENTITY, WEB)
    with monkeypatch.context() as lack:
        lack.setattr(Path, "read_bytes", refuse)
        bars.look()
        assert "Too many open files" in bars.trouble()
    bars.look()
    assert not bars.trouble()
    with pytest.raises(BarredError, match="is barred"):
        shown(bars)


def test_bars_of_two_hosts_hold_on_both_and_are_removed_by_either(
    tmp_path: Path, path: Path
) -> None:
    other = tmp_path / "other" / "bars.json"
    bar(path, BarKind.IDENTITY, WEB)
    here, there = Bars(path), Bars(other)
    entries = LatchFile(path).read().entries
    with LatchFile(other).change() as content:  # as the feeder does, by the archive
        content.merge(entries.values(), ())
    there.look()
    with pytest.raises(BarredError, match="is barred"):
        shown(there)
    with LatchFile(path).change() as content:
        content.merge((), entries)
    here.look()
    shown(here)


@pytest.mark.parametrize("change", [nonsense, fifo])
def test_a_start_without_knowing_what_is_barred_is_refused(
    path: Path, change: Callable[[Path], None]
) -> None:
    bar(path, BarKind.IDENTITY, WEB)
    change(path)
    with pytest.raises(LedgerError, match="cannot be used"):
        Bars(path)


def test_without_a_file_nothing_is_barred(path: Path) -> None:
    bars = Bars(path)
    bars.look()
    assert not bars.trouble()
    shown(bars)
