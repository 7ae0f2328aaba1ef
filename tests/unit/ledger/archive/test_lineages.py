"""The look-up of a client certificate in a real archive."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import LedgerError, ReviewError
from bridge.ledger.archive import lineages
from bridge.ledger.archive.archive import Archive
from bridge.ledger.lineage import ShownCertificate
from bridge.policy.certificate_renewal import key_sha256
from tests.support.harness.core import CALLER, World, leaf_of

SECONDS = 10.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def shown(leaf: x509.Certificate) -> ShownCertificate:
    der = leaf.public_bytes(Encoding.DER)
    return ShownCertificate(
        serial=leaf.serial_number,
        certificate_sha256=hashlib.sha256(der).hexdigest(),
        key_sha256=key_sha256(leaf),
        caller=CALLER,
    )


@pytest.mark.parametrize("builds_tbs", [True, False], ids=["ours", "the backend's"])
def test_a_certificate_is_known_whoever_chose_its_serial(
    world: World, *, builds_tbs: bool
) -> None:
    for ca in world.cas.values():
        ca.builds_tbs = not builds_tbs
    leaf = leaf_of(world.issue().leaf_pem)
    world.await_fed()
    found = world.lineages.proven_at(shown(leaf), SECONDS)
    assert found == int(world.clock().timestamp())


def test_a_certificate_of_another_ledger_is_not_known(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with World(tmp_path / "other", authorities=world.authorities) as other:
        leaf = leaf_of(other.issue().leaf_pem)
    world.issue()
    world.await_fed()
    assert world.lineages.proven_at(shown(leaf), SECONDS) is None


def test_an_archive_that_was_replaced_is_read_anew(
    world: World, tmp_path: Path
) -> None:
    leaf = leaf_of(world.issue().leaf_pem)
    world.await_fed()
    assert world.lineages.proven_at(shown(leaf), SECONDS)
    path = tmp_path / "archive.db"
    for file in tmp_path.glob("archive.db*"):
        file.rename(tmp_path / f"old-{file.name}")
    Archive.open(f"sqlite:///{path}").close()
    assert world.lineages.proven_at(shown(leaf), SECONDS) in {
        None,  # until the feeder has fed the new one
        int(world.clock().timestamp()),
    }


@pytest.mark.parametrize("what", ["absent", "damaged", "a folder", "no database"])
def test_an_archive_that_cannot_be_asked_says_nothing(
    world: World, tmp_path: Path, what: str
) -> None:
    leaf = leaf_of(world.issue().leaf_pem)
    path = tmp_path / "other.db"
    match what:
        case "damaged":
            path.write_bytes(b"no archive at all" * 100)
        case "a folder":
            path.mkdir()
        case "no database":
            path.touch()
    found = lineages.Lineages(f"sqlite:///{path}")
    with pytest.raises(ReviewError, match="cannot be told now") as caught:
        found.proven_at(shown(leaf), SECONDS)
    found.close()
    assert caught.value.rule == "renewal.lookup"


def test_an_archive_that_does_not_answer_holds_no_call(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = leaf_of(world.issue().leaf_pem)
    answered, asked = threading.Event(), threading.Event()

    def open_late(*_: object, **__: object) -> Archive:
        asked.set()
        assert answered.wait(SECONDS)
        raise LedgerError("too late")

    monkeypatch.setattr(lineages, "Archive", SimpleNamespace(open=open_late))
    found = lineages.Lineages("sqlite:///none.db", seconds=0.05, waiting=1)
    first = ThreadPoolExecutor(1).submit(found.proven_at, shown(leaf), SECONDS)
    assert asked.wait(SECONDS)
    try:
        with pytest.raises(ReviewError, match="cannot be told now") as caught:
            first.result(SECONDS)
        assert "did not answer in time" in caught.value.detail
    finally:
        answered.set()
        found.close()


def test_few_calls_wait_for_a_look_up(world: World) -> None:
    leaf = leaf_of(world.issue().leaf_pem)
    found = lineages.Lineages(world.config.ledger.archive, waiting=0)
    with pytest.raises(ReviewError, match="cannot be told now") as caught:
        found.proven_at(shown(leaf), SECONDS)
    found.close()
    assert "too many look-ups wait" in caught.value.detail


def test_a_look_up_after_the_end_is_no_crash(world: World) -> None:
    leaf = leaf_of(world.issue().leaf_pem)
    world.lineages.close()
    with pytest.raises(ReviewError, match="cannot be told now"):
        world.lineages.proven_at(shown(leaf), SECONDS)
