"""The tests that need nothing but a plugin and its options."""

# A conformance test is made of `assert`.
# ruff: noqa: S101

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509

from bridge.spi import BackendError, IssuedChain, IssuingCA, Prepared, Watcher
from bridge.testing.backend import Backend
from bridge.testing.leaves import require_issued, require_requested
from bridge.x509.path import signature_fault

TIMEOUT_SECONDS = 10.0
"""What a call gets from a part that is well."""
CLOSE_SECONDS = 5.0
_ASSURANCES = frozenset({"file", "hsm", "service"})
_BUSY_THREADS = 8
_ISSUES = 64
"""In a test with several threads, at least."""
_CHEAP_CALLS = 1000
_CHEAP_SECONDS = 1.0
_BUILD_SECONDS = 1.0
_BUILDS = 3
_SETTLE_SECONDS = 1.0
_PERIOD_SECONDS = 0.02


class ContractTests:
    """What holds with a part that is well."""

    @pytest.fixture
    def backend(self) -> Backend:
        """Describe the backend under test. The subclass implements this fixture."""
        raise NotImplementedError("write the fixture `backend`")

    @pytest.fixture
    def ca(self, backend: Backend) -> Iterator[IssuingCA]:
        """Hand out a CA, and close it afterwards."""
        ca = backend.build()
        yield ca
        ca.close()

    def test_description_is_constant_and_cheap(self, ca: IssuingCA) -> None:
        """`describe` is called for each request and never changes."""
        first = ca.describe()
        started = time.monotonic()
        for _ in range(_CHEAP_CALLS):
            assert ca.describe() == first, "the description changes"
        spent = time.monotonic() - started
        assert spent < _CHEAP_SECONDS, "describing itself takes long"

    def test_description_is_a_chain_that_links(self, ca: IssuingCA) -> None:
        """The issuing CA is a CA, and each certificate is issued by the next."""
        description = ca.describe()
        constraints = description.certificate.extensions.get_extension_for_class(
            x509.BasicConstraints
        )
        assert constraints.value.ca, "the issuing CA is no CA"
        assert description.assurance in _ASSURANCES, "the assurance is none of ours"
        chain = (description.certificate, *description.intermediates)
        for lower, upper in pairwise(chain):
            fault = signature_fault(lower, upper)
            assert fault is None, f"{lower.subject} is not issued by {upper.subject}"

    def test_factory_is_quick(self, backend: Backend) -> None:
        """The factory returns within a second: it asks nothing of the backend."""
        spent = []
        for _ in range(_BUILDS):
            started = time.monotonic()
            ca = backend.build()
            spent.append(time.monotonic() - started)
            ca.close()
        # A busy machine may delay one; who waits for the part does so each time.
        assert min(spent) < _BUILD_SECONDS, "building the CA takes long"

    def test_prepared_is_what_was_asked_for(
        self, backend: Backend, ca: IssuingCA
    ) -> None:
        """The prepared certificate is the bridge's profile of the request."""
        prepared = backend.prepare(ca)
        if ca.describe().chooses_serial:
            unknown = (prepared.tbs, prepared.tbs_sha256)
            assert unknown == (b"", ""), "the backend builds the TBS, and shows one"
            return
        digest = hashlib.sha256(prepared.tbs).hexdigest()
        assert prepared.tbs_sha256 == digest, "the digest is not that of the TBS"
        require_requested(prepared, ca.describe())

    def test_issued_is_what_was_prepared(self, backend: Backend, ca: IssuingCA) -> None:
        """The leaf passes the core's own check of what was issued."""
        issue(ca, backend.prepare(ca))

    def test_prepared_may_be_issued_again(
        self, backend: Backend, ca: IssuingCA
    ) -> None:
        """A retry signs the same TBSCertificate again.

        Where the backend builds it, a retry would make another certificate. The core
        does not repeat such a request by itself.
        """
        prepared = backend.prepare(ca)
        for _ in range(1 if ca.describe().chooses_serial else 2):
            issue(ca, prepared)

    @pytest.mark.parametrize("threads", [1, 8, 32])
    def test_issues_from_several_threads(
        self, backend: Backend, ca: IssuingCA, threads: int
    ) -> None:
        """Calls run at once and do not mix their requests."""

        def issue_some(_: int) -> list[x509.Certificate]:
            each = _ISSUES // threads
            return [issue(ca, backend.prepare(ca)) for _ in range(each)]

        with ThreadPoolExecutor(threads) as pool:
            leaves = [
                leaf for some in pool.map(issue_some, range(threads)) for leaf in some
            ]
        serials = {leaf.serial_number for leaf in leaves}
        assert len(serials) == len(leaves), "a serial was used twice"

    def test_check_passes_on_a_live_backend(self, ca: IssuingCA) -> None:
        """`check` returns, also when it is called again."""
        for _ in range(2):
            ca.check(timeout=TIMEOUT_SECONDS)

    @pytest.mark.parametrize("timeout", [0.0, -1.0])
    def test_signs_nothing_without_time(
        self, backend: Backend, ca: IssuingCA, timeout: float
    ) -> None:
        """`issue` raises a `BackendError` when no time is left."""
        prepared = backend.prepare(ca)
        with pytest.raises(BackendError, match=r"."):
            ca.issue(prepared, timeout=timeout)

    def test_close_ends_what_it_started(self, backend: Backend) -> None:
        """`close` ends every thread and process, and closes every file and socket.

        A later call raises a `BackendError`.
        """
        self._use_and_close(backend)  # what a library keeps for good, it has then
        before = set(threading.enumerate())
        held = _children(), _files()
        issuing_ca, prepared = self._use_and_close(backend)
        # A part in this process, such as a test server, may be a moment behind.
        assert _soon(lambda: {*threading.enumerate()} <= before), (
            "a thread outlives close"
        )
        assert _soon(lambda: _children() <= held[0]), "a process outlives close"
        assert _soon(lambda: _files() <= held[1]), "a file or socket outlives close"
        with pytest.raises(BackendError, match=r"."):
            issuing_ca.issue(prepared, timeout=TIMEOUT_SECONDS)
        with pytest.raises(BackendError, match=r"."):
            issuing_ca.check(timeout=TIMEOUT_SECONDS)

    def test_close_while_busy_ends_each_call(self, backend: Backend) -> None:
        """A call under way ends with its leaf or with a `BackendError`."""
        ca = backend.build()
        description = ca.describe()
        issued = threading.Semaphore(0)

        def issue_until_closed(_: int) -> BackendError:
            while True:
                prepared = backend.prepare(ca)
                outcome = backend.attempt(ca, prepared, TIMEOUT_SECONDS)
                if isinstance(outcome, BackendError):
                    return outcome
                require_issued(outcome, prepared, description)
                issued.release()

        with ThreadPoolExecutor(_BUSY_THREADS) as pool:
            ends = pool.map(issue_until_closed, range(_BUSY_THREADS))
            for _ in range(_BUSY_THREADS):
                assert issued.acquire(timeout=TIMEOUT_SECONDS), "nothing is issued"
            started = time.monotonic()
            ca.close()
            list(ends)
        spent = time.monotonic() - started
        assert spent < CLOSE_SECONDS, "closing takes long"

    def test_a_successor_outlives_its_predecessor(self, backend: Backend) -> None:
        """Two objects of one CA issue beside each other, as during a reload."""
        old = backend.build()
        issue(old, backend.prepare(old))
        new = backend.build()
        try:
            issue(new, backend.prepare(new))
            issue(old, backend.prepare(old))
            old.close()
            issue(new, backend.prepare(new))
        finally:
            new.close()

    @staticmethod
    def _use_and_close(backend: Backend) -> tuple[IssuingCA, Prepared]:
        ca = backend.build()
        prepared = backend.prepare(ca)
        ca.issue(prepared, timeout=TIMEOUT_SECONDS)
        if isinstance(ca, Watcher):
            ca.watch(lambda: None)
        started = time.monotonic()
        ca.close()
        spent = time.monotonic() - started
        assert spent < CLOSE_SECONDS, "closing takes long"
        return ca, prepared


def issue(ca: IssuingCA, prepared: Prepared) -> x509.Certificate:
    """Issue a leaf, and verify it as the core does; return it."""
    issued: IssuedChain = ca.issue(prepared, timeout=TIMEOUT_SECONDS)
    return require_issued(issued, prepared, ca.describe())


def _soon(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _SETTLE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PERIOD_SECONDS)
    return True


def _children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended: its children are the process's
            found.update(task.read_text().split())
    return found


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a path each is not needed
