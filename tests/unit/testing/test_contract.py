"""The conformance tests fail a CA that breaks the contract: each way by its test."""

import dataclasses
import hashlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from cryptography import x509

from bridge.errors import BackendUnavailableError, MisissuedError
from bridge.spi import (
    Description,
    IssuedChain,
    LeafRequest,
    PluginContext,
    Prepared,
)
from bridge.testing import Backend
from bridge.testing.contract import ContractTests
from tests.support.harness.conforming import HonestCA, Kind, Part, backend_of, run
from tests.support.harness.fake_ca import Answer, LyingCA
from tests.support.parts.pki import new_chain, new_key

FAILURES = (
    AssertionError,
    ValueError,
    BackendUnavailableError,
    MisissuedError,
    pytest.fail.Exception,
)


class Fickle(HonestCA):
    calls = 0

    def describe(self) -> Description:
        self.calls += 1
        labels = {"calls": str(self.calls)}
        return dataclasses.replace(super().describe(), labels=labels)


class Unlinked(HonestCA):
    def describe(self) -> Description:
        strangers = new_chain().chain[1:]
        return dataclasses.replace(super().describe(), intermediates=strangers)


class Boastful(HonestCA):
    def describe(self) -> Description:
        return dataclasses.replace(super().describe(), assurance="military")


class Renaming(HonestCA):
    def prepare(self, request: LeafRequest) -> Prepared:
        other = dataclasses.replace(request, names=(x509.DNSName("other"),))
        return dataclasses.replace(super().prepare(other), request=request)


class Prolonging(HonestCA):
    def prepare(self, request: LeafRequest) -> Prepared:
        other = dataclasses.replace(request, not_before=request.not_after)
        return dataclasses.replace(super().prepare(other), request=request)


class Renumbering(HonestCA):
    def prepare(self, request: LeafRequest) -> Prepared:
        other = dataclasses.replace(request, serial=request.serial - 1)
        return dataclasses.replace(super().prepare(other), request=request)


class Rekeying(HonestCA):
    def prepare(self, request: LeafRequest) -> Prepared:
        other = dataclasses.replace(request, public_key=new_key().public_key())
        return dataclasses.replace(super().prepare(other), request=request)


class Swapping(HonestCA):
    def prepare(self, request: LeafRequest) -> Prepared:
        return super().prepare(dataclasses.replace(request, serial=7))


class WrongDigest(HonestCA):
    def prepare(self, request: LeafRequest) -> Prepared:
        digest = hashlib.sha256(b"").hexdigest()
        return dataclasses.replace(super().prepare(request), tbs_sha256=digest)


class PreparingAnew(HonestCA):
    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        request = dataclasses.replace(prepared.request, serial=7)
        return super().issue(self.prepare(request), timeout=timeout)


class OtherKey(HonestCA):
    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        with self.signer.part.other_key():
            return super().issue(prepared, timeout=timeout)


class WithoutItself(HonestCA):
    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        issued = super().issue(prepared, timeout=timeout)
        return dataclasses.replace(issued, intermediates=issued.intermediates[1:])


class OnlyOnce(HonestCA):
    used: frozenset[str] = frozenset()

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        if prepared.tbs_sha256 in self.used:
            raise BackendUnavailableError("used up")
        self.used |= {prepared.tbs_sha256}
        return super().issue(prepared, timeout=timeout)


class SharedSlot(HonestCA):
    """Keeps what it prepared in one place: threads mix their requests."""

    slot: Prepared | None = None

    def __init__(self, part: Part, context: PluginContext) -> None:
        super().__init__(part, context)
        self.barrier = threading.Barrier(2)

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        self.slot = prepared
        with suppress(threading.BrokenBarrierError):  # the last one has no partner
            self.barrier.wait(0.5)
        assert self.slot is not None
        return super().issue(self.slot, timeout=timeout)


class Dead(HonestCA):
    def check(self, *, timeout: float) -> None:
        raise BackendUnavailableError("dead")


class Timeless(HonestCA):
    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        return super().issue(prepared, timeout=60)


class Raw(HonestCA):
    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        if timeout <= 0:
            raise ValueError("timeout must be positive")
        return super().issue(prepared, timeout=timeout)


class Undead(HonestCA):
    def close(self) -> None:
        pass


class Leaking(HonestCA):
    stops: ClassVar[list[threading.Event]] = []

    def watch(self, changed: Callable[[], None]) -> None:
        stop = threading.Event()
        self.stops.append(stop)
        threading.Thread(target=stop.wait, daemon=True).start()


class Slow(HonestCA):
    def __init__(self, part: Part, context: PluginContext) -> None:
        super().__init__(part, context)
        time.sleep(1.1)


class Profiled(HonestCA):
    """Adds nothing that a field shows, and yet builds another profile."""

    def prepare(self, request: LeafRequest) -> Prepared:
        prepared = super().prepare(request)
        server_and_client = bytes.fromhex("06082b0601050507030106082b06010505070302")
        client_twice = bytes.fromhex("06082b0601050507030206082b06010505070302")
        tbs = prepared.tbs.replace(server_and_client, client_twice)
        digest = hashlib.sha256(tbs).hexdigest()
        return dataclasses.replace(prepared, tbs=tbs, tbs_sha256=digest)


class Spawning(HonestCA):
    spawned: ClassVar[list[subprocess.Popen[bytes]]] = []

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        self.spawned.append(subprocess.Popen(["sleep", "60"]))
        return super().issue(prepared, timeout=timeout)


class Connected(HonestCA):
    sockets: ClassVar[list[socket.socket]] = []

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        self.sockets.append(socket.socket())
        return super().issue(prepared, timeout=timeout)


class Unchecked(HonestCA):
    """Issues nothing once it is closed, and says that all is well."""

    def check(self, *, timeout: float) -> None:
        pass


class Brittle(HonestCA):
    """Breaks when it is closed while a call is under way."""

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        if self.signer.closed.is_set():
            raise ValueError("no signer")
        return super().issue(prepared, timeout=timeout)


class Exclusive(HonestCA):
    """Its signer is that of the last object that was built."""

    def __init__(self, part: Part, context: PluginContext) -> None:
        super().__init__(part, context)
        part.last.append(self.signer)

    def close(self) -> None:
        self.signer.part.last[-1].close()


@pytest.fixture
def part() -> Part:
    return Part(new_chain())


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    for stop in Leaking.stops:
        stop.set()
    for process in Spawning.spawned:
        process.kill()
        process.wait()
    for one in Connected.sockets:
        one.close()


@pytest.mark.parametrize(
    "name", [name for name in vars(ContractTests) if name.startswith("test_")]
)
def test_an_honest_ca_passes(
    part: Part, name: str, request: pytest.FixtureRequest
) -> None:
    run(name, backend_of(HonestCA, part), request)


class Building(HonestCA):
    """Builds the certificate: chooses serial and order, and dates it by its clock."""

    def __init__(self, part: Part, context: PluginContext) -> None:
        super().__init__(part, context)
        self.backend = LyingCA(part.authority, builds_tbs=True)

    def describe(self) -> Description:
        return self.backend.describe()

    def prepare(self, request: LeafRequest) -> Prepared:
        return self.backend.prepare(request)

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        self.signer.check(timeout=timeout)
        if timeout <= 0:
            raise BackendUnavailableError("no time is left")
        return self.backend.answer(prepared, self.as_built)

    def as_built(self, answer: Answer) -> None:
        answer.not_before = datetime.now(UTC).replace(microsecond=0) - BACKDATE
        answer.not_after += timedelta(seconds=2)
        answer.names.reverse()


class BuildingForOthers(Building):
    def as_built(self, answer: Answer) -> None:
        super().as_built(answer)
        answer.names = [x509.DNSName("other")]


class Revealing(Building):
    def prepare(self, request: LeafRequest) -> Prepared:
        return dataclasses.replace(super().prepare(request), tbs=b"0")


BACKDATE = timedelta(minutes=10)
TWO_NAMES = (
    x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/cart"),
    x509.DNSName("cart.shop"),
)


def built_by(kind: Kind, part: Part) -> Backend:
    return dataclasses.replace(
        backend_of(kind, part), backdate=BACKDATE, names=TWO_NAMES
    )


@pytest.mark.parametrize(
    "name", [name for name in vars(ContractTests) if name.startswith("test_")]
)
def test_a_ca_that_builds_the_certificate_passes(
    part: Part, name: str, request: pytest.FixtureRequest
) -> None:
    run(name, built_by(Building, part), request)


@pytest.mark.parametrize(
    ("liar", "name", "complaint"),
    [
        (BuildingForOthers, "test_issued_is_what_was_prepared", "names are not the"),
        (Revealing, "test_prepared_is_what_was_asked_for", "builds the TBS, and shows"),
    ],
)
def test_a_builder_is_held_to_the_request_too(
    part: Part,
    liar: Kind,
    name: str,
    complaint: str,
    request: pytest.FixtureRequest,
) -> None:
    with pytest.raises(FAILURES, match=complaint):
        run(name, built_by(liar, part), request)


@pytest.mark.parametrize(
    ("liar", "name", "complaint"),
    [
        (Fickle, "test_description_is_constant_and_cheap", "description changes"),
        (Unlinked, "test_description_is_a_chain_that_links", "is not issued by"),
        (Boastful, "test_description_is_a_chain_that_links", "assurance is none"),
        (Renaming, "test_prepared_is_what_was_asked_for", "the names are not"),
        (Prolonging, "test_prepared_is_what_was_asked_for", "the validity is not"),
        (Renumbering, "test_prepared_is_what_was_asked_for", "the serial is not"),
        (Rekeying, "test_prepared_is_what_was_asked_for", "the key is not"),
        (WrongDigest, "test_prepared_is_what_was_asked_for", "digest is not that"),
        (Profiled, "test_prepared_is_what_was_asked_for", "not that of the bridge's"),
        (Swapping, "test_prepared_is_what_was_asked_for", "another request was"),
        (PreparingAnew, "test_issued_is_what_was_prepared", "is not the prepared one"),
        (OtherKey, "test_issued_is_what_was_prepared", "did not sign it"),
        (WithoutItself, "test_issued_is_what_was_prepared", "chain is not that of"),
        (OnlyOnce, "test_prepared_may_be_issued_again", "used up"),
        (SharedSlot, "test_issues_from_several_threads", "is not the prepared one"),
        (Dead, "test_check_passes_on_a_live_backend", "dead"),
        (Timeless, "test_signs_nothing_without_time", "DID NOT RAISE"),
        (Raw, "test_signs_nothing_without_time", "must be positive"),
        (Undead, "test_close_ends_what_it_started", "DID NOT RAISE"),
        (Spawning, "test_close_ends_what_it_started", "process outlives close"),
        (Connected, "test_close_ends_what_it_started", "file or socket outlives"),
        (Unchecked, "test_close_ends_what_it_started", "DID NOT RAISE"),
        (Brittle, "test_close_while_busy_ends_each_call", "no signer"),
        (Exclusive, "test_a_successor_outlives_its_predecessor", "closed, or away"),
        (Slow, "test_factory_is_quick", "building the CA takes long"),
        (Leaking, "test_close_ends_what_it_started", "thread outlives close"),
    ],
)
def test_a_liar_is_caught(
    part: Part,
    liar: Kind,
    name: str,
    complaint: str,
    request: pytest.FixtureRequest,
) -> None:
    with pytest.raises(FAILURES, match=complaint):
        run(name, backend_of(liar, part), request)
