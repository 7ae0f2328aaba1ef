import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bridge.errors import BackendUnavailableError
from bridge.snapshot import prober
from bridge.snapshot import store as module
from bridge.snapshot.model import Issuer, Snapshot
from bridge.snapshot.store import Snapshots
from bridge.spi import IssuingCA
from tests.support.harness.core import World, two_authorities
from tests.support.harness.workers import await_true
from tests.support.parts.pki import NOW, new_key, new_root, revoking


def is_closed(ca: IssuingCA) -> bool:
    try:
        ca.check(timeout=1)
    except BackendUnavailableError as error:
        return "closed" in str(error)
    return False


class Watched:
    """The real file backend under a `Snapshots`; probes go the recorded way."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.closed: list[object] = []
        self.probed: list[Issuer] = []
        self.error: BaseException | None = None
        monkeypatch.setattr(module, "_PROBE_AGAIN_SECONDS", 0.05)
        monkeypatch.setattr(prober, "AGAIN_SECONDS", 0.05)
        self.snapshots = Snapshots(
            *(world.assembly, world.snapshot, world.metrics, world.guards),
            linger_seconds=0.05,
        )

    def probe(self, issuer: Issuer, snapshot: Snapshot, seconds: float) -> None:
        self.probed.append(issuer)
        if self.error is not None:
            raise self.error
        self.world.own.probe(issuer, snapshot, timeout=seconds)

    def renew(self, name: str = "a") -> bytes:
        """Write a new issuing CA's files; return its certificate."""
        above = self.world.authorities[name].above
        new = above[0].issue_ca("renewed", path_length=0)
        self.world.authorities[name] = type(new)(new.certificate, new.key, above)
        self.world.write_authority(name, self.world.authorities[name])
        return new.certificate.public_bytes(Encoding.DER)

    def certificate(self, name: str = "a") -> bytes:
        issuer = self.snapshots.current().issuers[name]
        return issuer.description.certificate.public_bytes(Encoding.DER)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    with World(tmp_path, fake=False) as world:
        made = Watched(world, monkeypatch)
        yield made
        made.snapshots.close()


def test_nothing_is_ready_before_it_has_signed(watched: Watched) -> None:
    assert not watched.snapshots.prober.ready()
    assert {*watched.snapshots.problems()} == {"a", "b"}
    watched.snapshots.start(watched.probe)
    assert watched.snapshots.prober.ready()
    assert watched.snapshots.problems() == {}
    assert sorted(issuer.name for issuer in watched.probed) == ["a", "b"]
    rows = watched.world.ended()
    assert [row["purpose"] for row in rows] == ["probe"] * 4


def test_none_that_signs_is_not_ready(watched: Watched) -> None:
    watched.error = BackendUnavailableError("down")
    watched.snapshots.start(watched.probe)
    assert not watched.snapshots.prober.ready()
    assert watched.snapshots.problems()["a"] == "has not signed yet: down"
    watched.error = None
    await_true(watched.snapshots.prober.ready)


def test_a_changed_file_is_proven_and_swapped_in(watched: Watched) -> None:
    watched.snapshots.start(watched.probe)
    before = watched.snapshots.current()
    new = watched.renew()
    await_true(lambda: watched.snapshots.current().generation == 2)
    after = watched.snapshots.current()
    assert watched.certificate() == new
    assert watched.probed[-1] is after.issuers["a"]
    assert after.issuers["b"] is before.issuers["b"]
    assert before.issuers["a"] is not after.issuers["a"]
    assert before.generation == 1
    # What was swapped out is closed after its time, once.
    old = before.issuers["a"].ca
    await_true(lambda: is_closed(old))
    # And the new one is watched in its turn.
    newer = watched.renew()
    await_true(lambda: watched.certificate() == newer)
    assert watched.snapshots.current().generation == 3


@pytest.mark.parametrize("thread", ["file-watch", "probe-a"])
def test_without_more_threads_a_change_is_refused_whole_and_tried_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == thread:
            raise RuntimeError("can't start new thread")
        start(self)

    watched.snapshots.start(watched.probe)
    before = watched.snapshots.current()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    new = watched.renew()
    await_true(watched.snapshots.problems)
    told = watched.snapshots.problems()["a"]
    assert told.startswith("a change is refused, the old issuing CA serves: ")
    assert told.endswith(": the system gives no more threads")
    assert watched.snapshots.current() is before
    assert not is_closed(before.issuers["a"].ca)
    assert watched.snapshots.prober.ready()
    monkeypatch.undo()
    monkeypatch.setattr(module, "_PROBE_AGAIN_SECONDS", 0.05)
    await_true(lambda: watched.certificate() == new)
    assert watched.snapshots.problems() == {}
    await_true(lambda: is_closed(before.issuers["a"].ca))


def replace_root(folder: Path, root: bytes) -> None:
    (folder / "roots.pem").write_bytes(root)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(
            replace_root,
            "leads to the trust anchors that .*roots.pem",
            id="both",
        ),
        pytest.param(
            lambda *_: None, "is none of the trust anchors", id="the CA alone"
        ),
        pytest.param(
            lambda folder, _: replace_root(folder, b"no certificate"),
            "is none of the trust anchors",
            id="a file of anchors that cannot be read",
        ),
        pytest.param(
            lambda folder, _: replace_root(folder, new_root("third").pem),
            "is none of the trust anchors",
            id="anchors of neither",
        ),
    ],
)
def test_a_ca_that_changes_with_its_root_names_the_real_reason(
    watched: Watched, change: Callable[[Path, bytes], None], says: str
) -> None:
    watched.snapshots.start(watched.probe)
    before = watched.certificate()
    root = new_root("second")
    change(watched.world.folder, root.pem)
    above = root.issue_ca("second region", path_length=1)
    new = above.issue_ca("second issuing", path_length=0)
    watched.world.write_authority("a", new)
    await_true(lambda: re.search(says, watched.snapshots.problems().get("a", "")))
    assert watched.certificate() == before


def test_a_change_that_does_not_fit_leaves_the_old_one(watched: Watched) -> None:
    watched.snapshots.start(watched.probe)
    key = watched.world.folder / "a.key"
    good = key.read_bytes()
    key.write_bytes(two_authorities()["a"].key_pem())
    await_true(watched.snapshots.problems)
    assert watched.snapshots.problems()["a"].startswith("a change is refused, the old")
    assert watched.snapshots.current().generation == 1
    assert watched.snapshots.prober.ready()
    watched.snapshots.current().issuers["a"].ca.check(timeout=1)
    key.write_bytes(good)
    await_true(lambda: not watched.snapshots.problems())
    assert watched.snapshots.current().generation == 1


def test_a_refused_change_is_accepted_once_it_is_valid(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The message says `run chmod 600`, and that changes neither time nor content.
    monkeypatch.setattr(module, "_REFUSED_AGAIN_SECONDS", 0.05)
    key = watched.world.folder / "a.key"
    key.chmod(0o640)
    watched.snapshots.start(watched.probe)
    new = watched.renew()
    key.chmod(0o640)
    await_true(lambda: "found 0640" in watched.snapshots.problems().get("a", ""))
    assert watched.snapshots.current().generation == 1
    key.chmod(0o600)
    await_true(lambda: watched.certificate() == new)
    assert watched.snapshots.problems() == {}
    told = [line for line in caplog.messages if "found 0640" in line]
    assert len(told) == 1


def test_a_change_to_another_root_is_refused(watched: Watched) -> None:
    watched.snapshots.start(watched.probe)
    watched.world.write_authority("a", new_root("other").issue_ca("x", key=new_key()))
    await_true(watched.snapshots.problems)
    assert watched.snapshots.current().generation == 1


def test_a_change_to_a_chain_that_linkerds_proxies_cannot_verify_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {"fronts": {"linkerd": {"listen": "127.0.0.1:0"}}}
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    constraints = x509.NameConstraints([x509.DirectoryName(subject)], None)
    with World(tmp_path, overrides=overrides, fake=False) as world:
        watched = Watched(world, monkeypatch)
        watched.snapshots.start(watched.probe)
        above = world.authorities["a"].above[0]
        world.write_authority("a", above.issue_ca("x", constraints=constraints))
        await_true(watched.snapshots.problems)
        told = watched.snapshots.problems()["a"]
        assert told.startswith(
            "a change is refused, the old issuing CA serves: issuing_cas.a"
        )
        assert "has a directory name constraint, under which linkerd2-proxy" in told
        assert watched.snapshots.current().generation == 1
        watched.snapshots.close()


def test_a_change_whose_probe_fails_waits_until_it_signs(watched: Watched) -> None:
    watched.snapshots.start(watched.probe)
    watched.error = BackendUnavailableError("down")
    new = watched.renew()
    await_true(watched.snapshots.problems)
    assert watched.certificate() != new
    assert watched.snapshots.current().generation == 1
    watched.error = None
    await_true(lambda: watched.certificate() == new)
    assert watched.snapshots.problems() == {}


def test_a_bug_of_a_plugin_does_not_end_the_watch(watched: Watched) -> None:
    watched.snapshots.start(watched.probe)
    watched.error = ZeroDivisionError("bug")
    watched.renew()
    await_true(lambda: "ZeroDivisionError" in watched.snapshots.problems().get("a", ""))
    watched.error = None
    new = watched.renew()
    await_true(lambda: watched.certificate() == new)


def test_the_same_again_is_no_new_generation(watched: Watched) -> None:
    watched.snapshots.start(watched.probe)
    looked: list[str] = []
    build = watched.world.assembly.issuer

    class Counting:
        def issuer(self, name: str, anchors: object) -> Issuer:
            looked.append(name)
            return build(name, anchors)  # type: ignore[arg-type]

    watched.snapshots._assembly = Counting()  # type: ignore[assignment]
    watched.snapshots._changes.put("a")
    await_true(lambda: looked)
    watched.snapshots.stop()
    assert watched.snapshots.current().generation == 1


def test_closing_closes_everything_once(tmp_path: Path) -> None:
    with World(tmp_path) as world:
        snapshots = Snapshots(
            *(world.assembly, world.snapshot, world.metrics, world.guards),
            linger_seconds=60,
        )
        snapshots.start(lambda *_: None)
        old = world.snapshot.issuers["a"]
        fresh = replace(old, ca=type(world.cas["a"])(world.authorities["a"]))
        snapshots._swap(fresh)
        snapshots.close()
        assert [ca.closed for ca in world.cas.values()] == [1, 1]
        assert fresh.ca.closed == 1  # type: ignore[attr-defined]
        assert not [t for t in threading.enumerate() if t.name == "snapshots"]
        snapshots.stop()


def test_the_metrics_show_the_new_chain(watched: Watched) -> None:
    watched.snapshots.start(watched.probe)

    def serials() -> set[str]:
        return {
            sample.labels["serial"]
            for family in watched.world.metrics.registry.collect()
            for sample in family.samples
            if sample.labels.get("tier") == "issuing"
        }

    before = serials()
    assert len(before) == 2
    watched.renew()
    await_true(lambda: watched.snapshots.current().generation == 2)
    await_true(lambda: len(serials() - before) == 1)


@pytest.fixture
def with_crls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """A bridge with one list, of the CA above both issuing CAs; it revokes none."""
    authorities = two_authorities()
    (tmp_path / "region.crl").write_bytes(revoking(authorities["a"].above[0]))
    overrides = {"crls": ["region.crl"]}
    with World(
        tmp_path, fake=False, authorities=authorities, overrides=overrides
    ) as world:
        made = Watched(world, monkeypatch)
        yield made
        made.snapshots.close()


def put_list(watched: Watched, *names: str, number: int = 2) -> None:
    authorities = watched.world.authorities
    revoked = [authorities[name] for name in names]
    data = revoking(authorities["a"].above[0], *revoked, number=number)
    (watched.world.folder / "region.crl").write_bytes(data)


def updates_of(watched: Watched) -> set[tuple[str, str]]:
    return {
        (sample.labels["issuer"], sample.labels["number"])
        for family in watched.world.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "meshca_crl_next_update_timestamp_seconds"
    }


def revoked_of(watched: Watched) -> list[str]:
    issuers = watched.snapshots.current().issuers.values()
    return [one.name for one in issuers if one.revoked]


def test_a_revocation_takes_effect_when_the_file_changes(with_crls: Watched) -> None:
    with_crls.snapshots.start(with_crls.probe)
    assert revoked_of(with_crls) == []
    put_list(with_crls, "a")
    await_true(lambda: revoked_of(with_crls) == ["a"])
    await_true(lambda: updates_of(with_crls) == {("CN=region", "2")})
    (told,) = with_crls.snapshots.crl_warnings(NOW)
    assert told.startswith("a: the certificate (CN=issuing a, ")
    put_list(with_crls, "a", "b", number=3)
    await_true(lambda: revoked_of(with_crls) == ["a", "b"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"no list", "expected revocation lists", id="unreadable"),
        pytest.param(None, "cannot be read: No such file", id="absent"),
        pytest.param(b"", "expected revocation lists", id="empty"),
    ],
)
def test_a_list_that_is_none_leaves_the_old_one_in_force(
    with_crls: Watched, content: bytes | None, says: str
) -> None:
    put_list(with_crls, "a")
    with_crls.snapshots.start(with_crls.probe)
    await_true(lambda: revoked_of(with_crls) == ["a"])
    path = with_crls.world.folder / "region.crl"
    path.unlink() if content is None else path.write_bytes(content)
    await_true(lambda: says in with_crls.snapshots.crl_warnings(NOW)[0])
    assert revoked_of(with_crls) == ["a"]
    assert with_crls.snapshots.crl_warnings(NOW)[0].startswith("a change is refused")
    put_list(with_crls, "a", number=3)
    await_true(lambda: len(with_crls.snapshots.crl_warnings(NOW)) == 1)


def test_an_older_list_does_not_take_a_revocation_back(with_crls: Watched) -> None:
    put_list(with_crls, "a")
    with_crls.snapshots.start(with_crls.probe)
    await_true(lambda: revoked_of(with_crls) == ["a"])
    put_list(with_crls, number=1)
    await_true(lambda: "number 2 or above" in with_crls.snapshots.crl_warnings(NOW)[0])
    assert revoked_of(with_crls) == ["a"]


def test_a_certificate_in_place_of_a_revoked_one_is_used(with_crls: Watched) -> None:
    put_list(with_crls, "a")
    with_crls.snapshots.start(with_crls.probe)
    await_true(lambda: revoked_of(with_crls) == ["a"])
    new = with_crls.renew()
    await_true(lambda: with_crls.certificate() == new)
    assert revoked_of(with_crls) == []
