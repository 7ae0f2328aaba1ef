"""Bad CSRs over the wire: status, message, and row of each.

The rules themselves are held by tests of the CSR's reader; here each has to come
through the whole bridge in order.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.x509.pem import parse_one
from tests.support.clients.istio_raw import Wire, bearer, request, token
from tests.support.harness.core import csr as new_csr

pytestmark = pytest.mark.xdist_group("bad-input-csrs")

_VECTORS = Path(__file__).parents[2] / "vectors/csr"
_NAMES = "bad-names-"
"""Sound CSRs, with names that nobody should ask for."""

# Which rule refuses the vectors whose names start like this; the first that fits.
RULES = [
    ("pem", "csr.pem"),
    ("der", "csr.der"),
    ("key-rsa-512", "csr.rsa-size"),
    ("key-rsa-1024", "csr.rsa-size"),
    ("key-rsa-20", "csr.rsa-size"),
    ("key-rsa-8192", "csr.rsa-size"),
    ("key-rsa-exponent-3", "csr.rsa-exponent"),
    ("key-rsa-close-primes", "csr.rsa-close-primes"),
    ("key-rsa-small-factor", "csr.rsa-small-factor"),
    ("key-rsa-roca", "csr.rsa-roca"),
    ("key-rsa-pss-key", "csr.key-type"),
    ("key-rsa", "csr.key-encoding"),
    ("key-ed25519", "csr.key-type"),
    ("key-dsa", "csr.key-type"),
    ("key-p224", "csr.curve"),
    ("key-p521", "csr.curve"),
    ("key-secp256k1", "csr.curve"),
    ("key-brainpool", "csr.curve"),
    ("key-p256-no-curve", "csr.der"),
    ("key-p256", "csr.key-encoding"),
    ("signature-unused-bit", "csr.der"),
    ("signature-renamed", "csr.possession"),
    ("signature-other", "csr.possession"),
    ("signature-rsa-changed", "csr.possession"),
    ("signature-rsa-short", "csr.possession"),
    ("signature-empty", "csr.possession"),
    ("signature-zero", "csr.possession"),
    ("signature", "csr.signature-algorithm"),
]
SOUND = sorted(path.stem for path in _VECTORS.glob(f"{_NAMES}*.pem"))
BAD = sorted({path.stem for path in _VECTORS.glob("bad-*.pem")} - {*SOUND})


def read(name: str) -> str:
    return (_VECTORS / f"{name}.pem").read_bytes().decode()


def rule_of(name: str) -> str:
    short = name.removeprefix("bad-")
    return next(rule for start, rule in RULES if short.startswith(start))


def twice() -> str:
    return new_csr() * 2


def certificate() -> str:
    return read("good-p256-ztunnel").replace("CERTIFICATE REQUEST", "CERTIFICATE")


def cut() -> str:
    return new_csr()[:-40]


def base64_only() -> str:
    return "".join(new_csr().splitlines()[1:-1])


def require_refused(wire: Wire, csr: str, rule: str) -> str:
    """Send it as a caller of its own, and look the caller's row up."""
    account = f"csr-{uuid.uuid4()}"
    answer = wire.ask(bearer(token(account=account, pod=None)), csr=csr)
    assert answer.code == "INVALID_ARGUMENT"
    assert answer.text.startswith(f"{rule}: ")
    row = wire.new_outcome()
    assert (row["kind"], row["status"]) == ("refused", "INVALID_ARGUMENT")
    assert row["rule"] == rule
    assert row["caller"] == f"spiffe://corp.example/ns/shop/sa/{account}"
    assert row["attempt"] == row["serial"] == ""  # nothing was about to be signed
    return answer.text


@pytest.mark.parametrize("name", BAD)
def test_a_bad_csr_is_refused_and_on_record(wire: Wire, name: str) -> None:
    require_refused(wire, read(name), rule_of(name))


def test_no_rule_is_without_a_vector() -> None:
    assert {rule_of(name) for name in BAD} == {rule for _, rule in RULES}


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: "", "csr.pem"),
        (lambda: " \n\t", "csr.pem"),
        (lambda: "\0", "csr.pem"),
        (lambda: "-----BEGIN CERTIFICATE REQUEST-----", "csr.pem"),
        (lambda: "no CSR", "csr.pem"),
        (lambda: "{}", "csr.pem"),
        (twice, "csr.pem"),
        (lambda: f"{new_csr()}junk", "csr.pem"),
        (lambda: f"junk{new_csr()}", "csr.pem"),
        (lambda: f"\ufeff{new_csr()}", "csr.pem"),
        (lambda: f"{new_csr()}\0", "csr.pem"),
        (certificate, "csr.pem"),
        (cut, "csr.pem"),
        (base64_only, "csr.pem"),
        (lambda: "A" * (16 * 1024 + 1), "csr.size"),
        (lambda: new_csr() + " " * 16 * 1024, "csr.size"),
    ],
)
def test_what_is_no_csr_in_pem_is_refused(
    wire: Wire, make: Callable[[], str], rule: str
) -> None:
    text = make()
    said = require_refused(wire, text, rule)
    assert not text.strip() or text not in said


@pytest.mark.parametrize("name", SOUND)
def test_names_in_a_csr_count_for_nothing(wire: Wire, name: str) -> None:
    answer = wire.ask(csr=read(name))
    assert answer.uris == ["spiffe://corp.example/ns/shop/sa/web"]
    assert not answer.leaf.subject.rdns
    names = answer.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert len(list(names.value)) == 1
    assert wire.new_outcome()["kind"] == "issued"


def test_der_in_a_text_field_is_no_message(wire: Wire) -> None:
    der = parse_one(read("good-p256-ztunnel"), "CERTIFICATE REQUEST")
    size = len(der)
    assert 0x80 <= size <= 0x3FFF  # two bytes of length
    message = b"\x0a" + bytes((size & 0x7F | 0x80, size >> 7)) + der
    answer = wire.send(message, bearer(token()))
    assert answer.code == "INVALID_ARGUMENT"
    assert answer.text == (
        "request.protobuf: the message is not an IstioCertificateRequest"
    )
    row = wire.new_outcome()
    assert (row["rule"], row["caller"]) == ("request.protobuf", "")


def test_der_as_if_it_were_text_is_no_pem(wire: Wire) -> None:
    der = parse_one(read("good-p256-ztunnel"), "CERTIFICATE REQUEST")
    require_refused(wire, der.decode("latin-1"), "csr.pem")


@pytest.mark.parametrize("mebibytes", [1, 4, 7])
def test_a_csr_of_mebibytes_is_not_even_read(wire: Wire, mebibytes: int) -> None:
    answer = wire.ask(csr=new_csr() + " " * mebibytes * 1024 * 1024)
    # Not RESOURCE_EXHAUSTED, which Istio's client sends again.
    assert answer.code == "INVALID_ARGUMENT"
    assert answer.text == "request.size: a request has at most 65536 bytes"
    row = wire.new_outcome()
    assert (row["rule"], row["status"]) == ("request.size", "INVALID_ARGUMENT")


def test_a_message_beyond_the_transport_limit_gets_an_answer(wire: Wire) -> None:
    answer = wire.ask(csr=" " * 9 * 1024 * 1024)
    assert answer.code in {"RESOURCE_EXHAUSTED", "CANCELLED", "INVALID_ARGUMENT"}
    wire.forget()
    wire.require_healthy()


def test_the_same_csr_again_gets_a_certificate_of_its_own(wire: Wire) -> None:
    message = request(read("good-rsa-2048-istio-agent"))
    first, second = (wire.send(message, bearer(token())) for _ in range(2))
    assert first.leaf.serial_number != second.leaf.serial_number
    assert first.leaf.public_bytes(Encoding.DER) != second.leaf.public_bytes(
        Encoding.DER
    )
    assert wire.forget() <= 2
