"""Conformance tests for plugin authors.

A plugin's test module writes one class and one fixture:

    class TestMyCA(IssuingCAConformance):
        @pytest.fixture
        def issuing_ca(self) -> IssuingCA:
            return MyCA({...}, PluginContext(name="test", base=Path()))

pytest finds the tests by inheritance. Each test gets a CA of its own and closes it, so
the fixture must not. Override `names` if the backend allows only certain names.
"""

# A conformance test is made of `assert`.
# ruff: noqa: S101

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from secrets import randbits

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.errors import BackendError
from bridge.spi import (
    Description,
    IssuedChain,
    IssuingCA,
    LeafRequest,
    Prepared,
    Watcher,
)
from bridge.x509.algorithm import algorithm_of, issuer_key
from bridge.x509.der import splice

__all__ = ["IssuingCAConformance", "leaf_request"]

_ASSURANCES = frozenset({"file", "hsm", "service"})
_TIMEOUT_SECONDS = 10.0
_THREADS = 8
_ISSUES_PER_THREAD = 10
_CHEAP_CALLS = 1000
_CHEAP_SECONDS = 1.0
_CLOSE_SECONDS = 5.0


def leaf_request(
    names: tuple[x509.GeneralName, ...],
    *,
    now: datetime | None = None,
    ttl: timedelta = timedelta(hours=1),
) -> LeafRequest:
    """Build a request as the core does: new P-256 key, new serial, whole seconds.

    Args:
        names: The subject alternative names, in order.
        now: The machine's time by default; notBefore is two minutes earlier.
        ttl: From `now` to notAfter.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    empty_csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    return LeafRequest(
        public_key=key.public_key(),
        spki=key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        ),
        csr=empty_csr.sign(key, hashes.SHA256()).public_bytes(Encoding.DER),
        names=names,
        serial=randbits(126) | (1 << 126),
        not_before=moment - timedelta(minutes=2),
        not_after=moment + ttl,
    )


class IssuingCAConformance:
    """The tests that every issuing CA must pass. Subclass it; see the module."""

    names: tuple[x509.GeneralName, ...] = (
        x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/cart"),
    )
    """Subject alternative names that the CA under test may issue."""

    @pytest.fixture
    def issuing_ca(self) -> IssuingCA:
        """Build the CA under test. The subclass implements this fixture."""
        raise NotImplementedError("write the fixture issuing_ca")

    @pytest.fixture
    def ca(self, issuing_ca: IssuingCA) -> Iterator[IssuingCA]:
        """Hand out the CA under test, and close it afterwards."""
        yield issuing_ca
        issuing_ca.close()

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
            _require_issued_by(lower, upper)

    def test_prepared_is_what_was_asked_for(self, ca: IssuingCA) -> None:
        """The prepared certificate is the requested one, and the digest is its own."""
        request = leaf_request(self.names)
        prepared = ca.prepare(request)
        assert prepared.request == request, "another request was prepared"
        if ca.describe().chooses_serial:
            unknown = (prepared.tbs, prepared.tbs_sha256)
            assert unknown == (b"", ""), "the backend builds the TBS, and shows one"
            return
        digest = hashlib.sha256(prepared.tbs).hexdigest()
        assert prepared.tbs_sha256 == digest, "the digest is not that of the TBS"
        _require_as_asked(_unsigned(prepared, ca.describe()), request)

    def test_issued_is_what_was_prepared(self, ca: IssuingCA) -> None:
        """The prepared bytes are signed, by the described issuing CA's key."""
        prepared = ca.prepare(leaf_request(self.names))
        issued = ca.issue(prepared, timeout=_TIMEOUT_SECONDS)
        _require_issued(issued, prepared, ca.describe())

    def test_prepared_may_be_issued_again(self, ca: IssuingCA) -> None:
        """A retry signs the same TBSCertificate again."""
        prepared = ca.prepare(leaf_request(self.names))
        for _ in range(2):
            issued = ca.issue(prepared, timeout=_TIMEOUT_SECONDS)
            _require_issued(issued, prepared, ca.describe())

    def test_issues_from_several_threads(self, ca: IssuingCA) -> None:
        """Calls run at once and do not mix their requests."""

        def issue_some(_: int) -> list[tuple[Prepared, IssuedChain]]:
            made = []
            for _ in range(_ISSUES_PER_THREAD):
                prepared = ca.prepare(leaf_request(self.names))
                made.append((prepared, ca.issue(prepared, timeout=_TIMEOUT_SECONDS)))
            return made

        with ThreadPoolExecutor(_THREADS) as pool:
            made = [
                pair for some in pool.map(issue_some, range(_THREADS)) for pair in some
            ]
        for prepared, issued in made:
            _require_issued(issued, prepared, ca.describe())
        serials = {
            x509.load_der_x509_certificate(issued.leaf).serial_number
            for _, issued in made
        }
        assert len(serials) == len(made), "a serial was used twice"

    def test_check_passes_on_a_live_backend(self, ca: IssuingCA) -> None:
        """`check` returns, also when it is called again."""
        for _ in range(2):
            ca.check(timeout=_TIMEOUT_SECONDS)

    @pytest.mark.parametrize("timeout", [0.0, -1.0])
    def test_signs_nothing_without_time(self, ca: IssuingCA, timeout: float) -> None:
        """`issue` raises a `BackendError` when no time is left."""
        prepared = ca.prepare(leaf_request(self.names))
        with pytest.raises(BackendError, match=r"."):
            ca.issue(prepared, timeout=timeout)

    def test_close_ends_what_it_started(self, issuing_ca: IssuingCA) -> None:
        """`close` ends every thread, and a later call raises a `BackendError`."""
        before = set(threading.enumerate())
        prepared = issuing_ca.prepare(leaf_request(self.names))
        issuing_ca.issue(prepared, timeout=_TIMEOUT_SECONDS)
        if isinstance(issuing_ca, Watcher):
            issuing_ca.watch(lambda: None)
        started = time.monotonic()
        issuing_ca.close()
        spent = time.monotonic() - started
        assert spent < _CLOSE_SECONDS, "closing takes long"
        assert set(threading.enumerate()) <= before, "a thread outlives close"
        with pytest.raises(BackendError, match=r"."):
            issuing_ca.issue(prepared, timeout=_TIMEOUT_SECONDS)


def _unsigned(prepared: Prepared, description: Description) -> x509.Certificate:
    # A TBSCertificate alone cannot be read; one with an empty signature can.
    algorithm = algorithm_of(issuer_key(description.certificate))
    return x509.load_der_x509_certificate(splice(prepared.tbs, algorithm.der, b""))


def _require_issued(
    issued: IssuedChain, prepared: Prepared, description: Description
) -> None:
    leaf = x509.load_der_x509_certificate(issued.leaf)
    issuing = description.certificate
    _require_issued_by(leaf, issuing)
    if prepared.tbs:
        same = leaf.tbs_certificate_bytes == prepared.tbs
        assert same, "another TBSCertificate was signed"
    _require_as_asked(
        leaf, prepared.request, serial_is_ours=not description.chooses_serial
    )
    chain = [issuing, *description.intermediates]
    shown = [x509.load_der_x509_certificate(one) for one in issued.intermediates]
    assert shown == chain, "the chain is not the described one, issuing CA first"


def _require_issued_by(lower: x509.Certificate, upper: x509.Certificate) -> None:
    try:
        lower.verify_directly_issued_by(upper)
    except (ValueError, TypeError, InvalidSignature):
        issued = False
    else:
        issued = True
    assert issued, f"{lower.subject} is not issued by {upper.subject}"


def _require_as_asked(
    leaf: x509.Certificate, request: LeafRequest, *, serial_is_ours: bool = True
) -> None:
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    validity = (leaf.not_valid_before_utc, leaf.not_valid_after_utc)
    asked = (request.not_before, request.not_after)
    assert validity == asked, "the validity is not the one asked for"
    assert tuple(names.value) == request.names, "the names are not those asked for"
    spki = leaf.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    assert spki == request.spki, "the key is not the one asked for"
    if serial_is_ours:
        same = leaf.serial_number == request.serial
        assert same, "the serial is not the one asked for"
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    assert not basic.value.ca, "the leaf is a CA"
