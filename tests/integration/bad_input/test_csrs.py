"""Bad CSRs over the wire: status, message, and row of each.

The vectors are read by the tests of `bridge.x509.csr`; here one of each rule has to
come through the whole bridge.
"""

import uuid
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.clients.istio_raw import Wire, bearer, request, token
from tests.support.harness.core import csr as new_csr

pytestmark = pytest.mark.xdist_group("bad-input-csrs")

_VECTORS = Path(__file__).parents[2] / "vectors/csr"
_NAMES = "bad-names-"
"""Sound CSRs, with names that nobody should ask for."""

BAD = [
    ("pem-nul", "csr.pem"),
    ("der-cut", "csr.der"),
    ("key-rsa-1024", "csr.rsa-size"),
    ("key-rsa-exponent-3", "csr.rsa-exponent"),
    ("key-rsa-close-primes", "csr.rsa-close-primes"),
    ("key-rsa-small-factor", "csr.rsa-small-factor"),
    ("key-rsa-roca", "csr.rsa-roca"),
    ("key-ed25519", "csr.key-type"),
    ("key-p224", "csr.curve"),
    ("key-p256-off-curve", "csr.key-encoding"),
    ("signature-other-key", "csr.possession"),
    ("signature-sha1-rsa", "csr.signature-algorithm"),
]
SOUND = sorted(path.stem for path in _VECTORS.glob(f"{_NAMES}*.pem"))


def read(name: str) -> str:
    return (_VECTORS / f"{name}.pem").read_bytes().decode()


@pytest.mark.parametrize(("name", "rule"), BAD)
def test_a_bad_csr_is_refused_and_on_record(wire: Wire, name: str, rule: str) -> None:
    account = f"csr-{uuid.uuid4()}"  # its row is found by it
    csr = read(f"bad-{name}")
    answer = wire.ask(bearer(token(account=account, pod=None)), csr=csr)
    assert answer.code == "INVALID_ARGUMENT"
    assert answer.text.startswith(f"{rule}: ")
    row = wire.new_outcome()
    assert (row["kind"], row["status"]) == ("refused", "INVALID_ARGUMENT")
    assert row["rule"] == rule
    assert row["caller"] == f"spiffe://corp.example/ns/shop/sa/{account}"
    assert row["attempt"] == row["serial"] == ""  # nothing was about to be signed


@pytest.mark.parametrize("name", SOUND)
def test_names_in_a_csr_count_for_nothing(wire: Wire, name: str) -> None:
    answer = wire.ask(csr=read(name))
    assert answer.uris == ["spiffe://corp.example/ns/shop/sa/web"]
    assert not answer.leaf.subject.rdns
    names = answer.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert len(list(names.value)) == 1
    assert wire.new_outcome()["kind"] == "issued"


@pytest.mark.parametrize("kibibytes", [65, 1024, 9 * 1024])
def test_a_csr_above_64_kib_is_the_transports_to_refuse(
    wire: Wire, kibibytes: int
) -> None:
    answer = wire.ask(csr=new_csr() + " " * kibibytes * 1024)
    assert answer.code == "RESOURCE_EXHAUSTED"
    assert answer.text.startswith("SERVER: Received message larger than max")
    wire.require_no_outcome()


def test_a_message_of_60_kib_is_ours_to_refuse(wire: Wire) -> None:
    # So the largest CSR that we take (16 KiB, and a third more as PEM) arrives, too.
    answer = wire.ask(csr=new_csr() + " " * 58 * 1024)
    assert answer.code == "INVALID_ARGUMENT"
    assert answer.text == "csr.size: the CSR has more than 16384 bytes"
    assert wire.new_outcome()["rule"] == "csr.size"


def test_the_same_csr_again_gets_a_certificate_of_its_own(wire: Wire) -> None:
    message = request(read("good-rsa-2048-istio-agent"))
    first, second = (wire.send(message, bearer(token())) for _ in range(2))
    assert first.leaf.serial_number != second.leaf.serial_number
    assert first.leaf.public_bytes(Encoding.DER) != second.leaf.public_bytes(
        Encoding.DER
    )
    assert wire.forget() <= 2
