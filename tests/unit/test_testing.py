"""The conformance tests fail a CA that breaks the contract: each way by its test."""

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPublicKeyTypes,
)

from bridge.errors import BackendUnavailableError
from bridge.sdk import SigningCA, signature_of
from bridge.spi import (
    Description,
    IssuedChain,
    IssuingCA,
    LeafRequest,
    Prepared,
    SignatureAlgorithm,
)
from bridge.testing import IssuingCAConformance
from tests.support.parts.pki import Authority, new_chain, new_key

TIMEOUTS = {"test_signs_nothing_without_time": {"timeout": 0.0}}
FAILURES = (AssertionError, ValueError, BackendUnavailableError, pytest.fail.Exception)
WITH_FIXTURE = {"test_close_ends_what_it_started": "issuing_ca"}


class KeySigner:
    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self.key = key
        self.public = key.public_key()
        self.closed = False

    def public_key(self) -> CertificateIssuerPublicKeyTypes:
        return self.public

    def check(self, *, timeout: float) -> None:
        pass

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        if self.closed:
            raise BackendUnavailableError("closed")
        return signature_of(self.key, algorithm, tbs)

    def close(self) -> None:
        self.closed = True


class HonestCA:
    """Passes every test; each class below breaks one thing."""

    def __init__(self, authority: Authority) -> None:
        certificate, *above = authority.chain
        description = Description(certificate=certificate, intermediates=tuple(above))
        assert isinstance(authority.key, ec.EllipticCurvePrivateKey)
        self.signer = KeySigner(authority.key)
        self.inner = SigningCA(description, self.signer)

    def describe(self) -> Description:
        return self.inner.describe()

    def prepare(self, request: LeafRequest) -> Prepared:
        return self.inner.prepare(request)

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        return self.inner.issue(prepared, timeout=timeout)

    def check(self, *, timeout: float) -> None:
        self.inner.check(timeout=timeout)

    def close(self) -> None:
        self.inner.close()


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
        other = new_key()
        assert isinstance(other, ec.EllipticCurvePrivateKey)
        self.signer.key = other
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

    def __init__(self, authority: Authority) -> None:
        super().__init__(authority)
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


def run(name: str, ca: IssuingCA) -> None:
    argument = WITH_FIXTURE.get(name, "ca")
    test = getattr(IssuingCAConformance(), name)
    test(**{argument: ca}, **TIMEOUTS.get(name, {}))


@pytest.fixture
def authority() -> Authority:
    return new_chain()


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    for stop in Leaking.stops:
        stop.set()


@pytest.mark.parametrize(
    "name", [name for name in vars(IssuingCAConformance) if name.startswith("test_")]
)
def test_an_honest_ca_passes(authority: Authority, name: str) -> None:
    run(name, HonestCA(authority))


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
        (Swapping, "test_prepared_is_what_was_asked_for", "another request was"),
        (PreparingAnew, "test_issued_is_what_was_prepared", "another TBSCertificate"),
        (OtherKey, "test_issued_is_what_was_prepared", "is not issued by"),
        (WithoutItself, "test_issued_is_what_was_prepared", "chain is not the descr"),
        (OnlyOnce, "test_prepared_may_be_issued_again", "used up"),
        (SharedSlot, "test_issues_from_several_threads", "another TBSCertificate"),
        (Dead, "test_check_passes_on_a_live_backend", "dead"),
        (Timeless, "test_signs_nothing_without_time", "DID NOT RAISE"),
        (Raw, "test_signs_nothing_without_time", "must be positive"),
        (Undead, "test_close_ends_what_it_started", "DID NOT RAISE"),
        (Leaking, "test_close_ends_what_it_started", "thread outlives close"),
    ],
)
def test_a_liar_is_caught(
    authority: Authority, liar: type[HonestCA], name: str, complaint: str
) -> None:
    ca = liar(authority)
    with pytest.raises(FAILURES, match=complaint):
        run(name, ca)
