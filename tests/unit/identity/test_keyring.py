"""Keys: cached, refreshed in the background, and dropped when they are too old."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge.errors import AuthenticationError, ReviewError
from bridge.identity import keyring as keyring_module
from bridge.identity.jwks import VerificationKey, parse_jwks
from bridge.identity.key_sources import KeyFile, KeySource, URLSource
from bridge.identity.keyring import KeyOwners, Keyring
from tests.support.harness.clock import SetClock
from tests.support.parts.keyserver import KeyServer
from tests.support.parts.tokens import OMIT, TokenIssuer

START = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
MAX_AGE = timedelta(hours=24)
FLOOR = timedelta(seconds=10)
A, B, C = (TokenIssuer(algorithm="ES256", kid=kid) for kid in "abc")


@pytest.fixture
def clock() -> SetClock:
    return SetClock(START)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with KeyServer(tmp_path) as running:
        show(running, A)
        yield running


@pytest.fixture
def remote(server: KeyServer, clock: SetClock) -> Iterator[Keyring]:
    keyring = make(URLSource(server.jwks_url, (), ca_file=server.ca_file), clock)
    keyring.adopt(keyring.read(), clock())
    yield keyring
    server.gate.set()
    keyring.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    A.write_jwks(path)
    return path


@pytest.fixture
def local(path: Path, clock: SetClock) -> Keyring:
    keyring = make(KeyFile(path), clock)
    keyring.adopt(keyring.read(), clock())
    return keyring


def make(
    source: KeySource, clock: SetClock, owners: KeyOwners | None = None
) -> Keyring:
    owners = owners or KeyOwners(["one"])
    return Keyring(source, owners, "one", max_age=MAX_AGE, floor=FLOOR, clock=clock)


def document(*issuers: TokenIssuer) -> dict[str, object]:
    return {"keys": [issuer.jwk() for issuer in issuers]}


def show(server: KeyServer, *issuers: TokenIssuer) -> None:
    server.show(document(*issuers))


def told(keyring: Keyring) -> threading.Event:
    """Return an event that is set whenever the keyring takes keys over."""
    event, adopt = threading.Event(), keyring.adopt

    def adopt_and_tell(
        keys: Sequence[VerificationKey], confirmed: datetime
    ) -> Mapping[str, str]:
        foreign = adopt(keys, confirmed)
        event.set()
        return foreign

    keyring.adopt = adopt_and_tell  # type: ignore[method-assign]
    return event


def refuse(keyring: Keyring, kid: str | None, now: datetime) -> None:
    with pytest.raises(AuthenticationError, match="not one of its cluster"):
        keyring.keys(kid, now)


def kids(keyring: Keyring, kid: str | None, now: datetime) -> list[str | None]:
    return [key.kid for key in keyring.keys(kid, now)]


def unavailable(keyring: Keyring, kid: str, now: datetime) -> str:
    with pytest.raises(ReviewError, match="keys of this cluster") as caught:
        keyring.keys(kid, now)
    assert caught.value.rule == "cluster.keys"
    return str(caught.value)


def test_a_known_key_needs_no_fetch(
    server: KeyServer, remote: Keyring, clock: SetClock
) -> None:
    clock.forward(hours=23)
    assert kids(remote, "a", clock()) == ["a"]
    assert len(server.requests) == 1


def test_an_unknown_key_id_fetches_the_new_keys(
    server: KeyServer, remote: Keyring, clock: SetClock
) -> None:
    show(server, B)
    clock.forward(seconds=11)
    assert kids(remote, "b", clock()) == ["b"]
    refuse(remote, "a", clock())  # what is no longer shown is no longer believed
    assert len(server.requests) == 2


def test_unknown_key_ids_fetch_no_more_often_than_the_floor(
    server: KeyServer, remote: Keyring, clock: SetClock
) -> None:
    for number in range(50):
        refuse(remote, f"x{number}", clock())
    assert len(server.requests) == 1
    clock.forward(seconds=11)
    for number in range(50):
        refuse(remote, f"y{number}", clock())
    assert len(server.requests) == 2


def test_a_clock_set_back_does_not_stop_the_refresh(
    server: KeyServer, remote: Keyring, clock: SetClock
) -> None:
    clock.forward(days=-2)
    show(server, A, B)
    assert kids(remote, "b", clock()) == ["b"]


def test_a_slow_fetch_holds_up_few_and_not_for_long(
    server: KeyServer, remote: Keyring, clock: SetClock
) -> None:
    server.gate.clear()
    server.asked.acquire(timeout=20)  # the first reading
    clock.forward(seconds=11)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(unavailable, remote, "b", clock()) for _ in range(8)]
        assert kids(remote, "a", clock()) == ["a"]  # known keys wait for nobody
        said = {one.result(timeout=20) for one in asked}
    assert said == {"the keys of this cluster are being fetched"}
    assert len(server.requests) == 2
    show(server, B)
    server.gate.set()


def test_two_may_wait_for_a_fetch_and_the_third_is_answered_at_once(
    server: KeyServer,
    remote: Keyring,
    clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keyring_module, "_WAIT_SECONDS", 30.0)
    server.gate.clear()
    clock.forward(seconds=11)
    with ThreadPoolExecutor(2) as pool:
        first = [pool.submit(kids, remote, "b", clock()) for _ in range(2)]
        with remote._changed:
            while remote._waiting < 2:  # nobody is told of a new waiter
                remote._changed.wait(0.01)
        unavailable(remote, "b", clock())
        show(server, B)
        server.gate.set()
        assert [one.result(timeout=20) for one in first] == [["b"], ["b"]]


def test_keys_that_cannot_be_confirmed_are_used_until_their_max_age(
    server: KeyServer, remote: Keyring, clock: SetClock
) -> None:
    server.answers.clear()
    clock.forward(hours=23)
    refuse(remote, "b", clock())
    assert kids(remote, "a", clock()) == ["a"]
    (problem,) = remote.problems(clock())
    assert "23.0 hours ago" in problem
    assert "HTTP status 404" in problem
    clock.forward(hours=1, seconds=1)
    assert unavailable(remote, "a", clock()) == ("the keys of this cluster are too old")
    clock.forward(seconds=11)
    show(server, A)
    assert kids(remote, "a", clock()) == ["a"]
    assert remote.problems(clock()) == []


def test_keys_that_were_never_fetched_are_not_told_to_be_too_old(
    server: KeyServer, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers.clear()
    keyring = make(URLSource(server.jwks_url, (), ca_file=server.ca_file), clock)
    caplog.set_level("INFO")
    for _ in range(2):
        keyring.refresh(always=True)  # too soon, after it, for another fetch
    said = {unavailable(keyring, kid, clock()) for kid in "ab"}
    assert said == {"the keys of this cluster could not be fetched"}
    assert not keyring.has_keys(clock())
    show(server, A)
    keyring.refresh(always=True)
    assert kids(keyring, "a", clock()) == ["a"]
    assert keyring.has_keys(clock())
    failure = f"{server.jwks_url}: HTTP status 404"
    assert [
        one.getMessage() for one in caplog.records if one.name.endswith("ring")
    ] == [
        f"token keys cannot be read: {failure}",
        f"token keys are read again, after: {failure}",
    ]


@pytest.mark.parametrize("junk", [{}, {"keys": []}, {"keys": [{"kty": "oct"}]}])
def test_a_key_set_that_spoils_leaves_the_old_keys(
    server: KeyServer, remote: Keyring, clock: SetClock, junk: object
) -> None:
    server.show(junk)
    clock.forward(seconds=11)
    refuse(remote, "b", clock())
    assert kids(remote, "a", clock()) == ["a"]
    assert len(remote.problems(clock())) == 1


def test_the_background_refresh_needs_no_request(
    server: KeyServer, clock: SetClock
) -> None:
    keyring = make(URLSource(server.jwks_url, (), ca_file=server.ca_file), clock)
    assert keyring.problems(clock()) == ["has no keys yet: not fetched so far"]
    arrived = told(keyring)
    keyring.start()
    try:
        assert arrived.wait(20)
    finally:
        keyring.close()
    assert keyring.has("a")
    assert [one.name for one in threading.enumerate()].count("cluster-keys") == 0


def test_a_changed_file_is_read_when_a_key_is_unknown(
    path: Path, local: Keyring, clock: SetClock
) -> None:
    B.write_jwks(path)
    assert kids(local, "b", clock()) == ["b"]
    refuse(local, "a", clock())


def test_a_started_keyring_notices_a_removed_key_in_its_file(
    path: Path, clock: SetClock
) -> None:
    keyring = make(KeyFile(path), clock)
    seen = told(keyring)
    keyring.start()
    try:
        assert seen.wait(20)
        seen.clear()
        B.write_jwks(path)
        clock.forward(seconds=2)
        assert seen.wait(20)
    finally:
        keyring.close()
    assert keyring.has("b")
    assert not keyring.has("a")


def test_a_file_that_is_gone_leaves_the_keys_until_they_are_too_old(
    path: Path, local: Keyring, clock: SetClock
) -> None:
    path.unlink()
    clock.forward(hours=24)
    refuse(local, "b", clock())
    assert kids(local, "a", clock()) == ["a"]
    assert "cannot be read" in local.problems(clock())[0]
    clock.forward(seconds=1)
    unavailable(local, "a", clock())
    A.write_jwks(path)
    assert kids(local, "a", clock()) == ["a"]


def test_an_unchanged_file_is_confirmed_by_reading_it_again(
    local: Keyring, clock: SetClock
) -> None:
    for _ in range(30):
        clock.forward(hours=1)
        local.refresh()
    assert kids(local, "a", clock()) == ["a"]


# The IDs of a set's keys; a token's ID; the IDs of the keys that it is tried with.
ALIKE: list[tuple[list[str | None], str | None, list[str | None]]] = [
    ([None], None, [None]),
    ([None], "x", [None]),
    ([""], "x", [None]),
    (["a", None], "a", ["a"]),
    (["a", None], "x", [None]),
    (["a", None, ""], "x", [None, None]),
    (["a", "a"], "a", ["a", "a"]),
    (["a", "b"], "x", []),
    (["a", "b"], None, []),
]


@pytest.mark.parametrize(("of_set", "of_token", "tried"), ALIKE)
def test_a_key_without_an_id_is_tried_where_no_other_has_the_tokens(
    path: Path,
    clock: SetClock,
    of_set: list[str | None],
    of_token: str | None,
    tried: list[str | None],
) -> None:
    entries = [
        one.jwk(kid=OMIT if kid is None else kid)
        for one, kid in zip((A, B, C), of_set, strict=False)
    ]
    path.write_text(json.dumps({"keys": entries}))
    keyring = make(KeyFile(path), clock)
    keyring.adopt(keyring.read(), clock())
    if tried:
        assert kids(keyring, of_token, clock()) == tried
        return
    refuse(keyring, of_token, clock())


def test_a_doubted_key_is_fetched_soon_and_no_sooner_than_the_floor(
    server: KeyServer, remote: Keyring, clock: SetClock
) -> None:
    arrived = told(remote)
    server.show({"keys": [B.jwk(kid="a")]})  # a new key under the old ID
    remote.doubt()
    assert kids(remote, "a", clock()) == ["a"]
    assert len(server.requests) == 1
    clock.forward(seconds=11)
    remote.doubt()
    assert arrived.wait(20)
    (key,) = remote.keys("a", clock())
    assert key.sha256 == parse_jwks(json.dumps(document(B)).encode())[0].sha256
    assert len(server.requests) == 2


def test_a_key_that_becomes_another_clusters_is_not_taken_over(
    path: Path, clock: SetClock
) -> None:
    owners = KeyOwners(["two", "one"])
    keyring = make(KeyFile(path), clock, owners)
    keyring.adopt(keyring.read(), clock())
    owners.claim("two", make(KeyFile(path), clock).read())  # A is the first's
    path.write_text(json.dumps(document(A, B)))
    other = TokenIssuer(algorithm="ES256", kid="b", key=B.key)
    other.write_jwks(path.with_name("two.json"))
    owners.claim("two", make(KeyFile(path.with_name("two.json")), clock).read())
    refuse(keyring, "b", clock())
    assert kids(keyring, "a", clock()) == ["a"]
    assert keyring.problems(clock()) == ["the key 'b' is not used: it is also two's"]
    other.write_jwks(path)
    refuse(keyring, "b", clock())
    assert not keyring.has_keys(clock())  # none of its own is left


def test_a_key_that_its_cluster_dropped_can_be_claimed(
    path: Path, clock: SetClock
) -> None:
    owners, keys = KeyOwners(["one", "two"]), make(KeyFile(path), clock).read()
    assert owners.claim("one", keys) == {}
    assert owners.claim("two", keys) == {keys[0].sha256: "one"}
    assert owners.claim("one", ()) == {}
    assert owners.claim("two", keys) == {}


def test_the_first_cluster_has_its_key_though_a_later_one_claimed_it_before(
    path: Path, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    owners = KeyOwners(["home", "one"])
    keyring = make(KeyFile(path), clock, owners)
    keyring.adopt(keyring.read(), clock())
    assert kids(keyring, "a", clock()) == ["a"]
    assert owners.refused() == {"one": 0}
    keys = keyring.read()
    assert owners.claim("home", keys) == {}
    refuse(keyring, "a", clock())
    assert not keyring.has("a")
    assert not keyring.has_keys(clock())
    assert keyring.problems(clock()) == ["the key 'a' is not used: it is also home's"]
    assert owners.refused() == {"home": 0, "one": 1}
    for _ in range(2):  # told once
        owners.claim("home", keys)
    told = "cluster one: the key with SHA-256 "
    assert [told in line for line in caplog.messages] == [True]
