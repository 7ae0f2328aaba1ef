import copy
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import ConfigError
from bridge.x509.algorithm import algorithm_of, require_signature, signature_of
from bridge.x509.der import content, elements
from bridge.x509.tbs import csr_of, recorder_of
from tests.support.harness.fake_ca import sign
from tests.support.parts.pki import KEY_KINDS, new_chain, shared_key


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_a_recorder_looks_like_the_key(kind: str) -> None:
    public_key = shared_key(kind).public_key()
    recorder = recorder_of(public_key)
    assert recorder.public_key() == public_key
    sizes = [getattr(one, "key_size", None) for one in (recorder, public_key)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("kind", ["p256", "rsa2048", "ed25519"])
@pytest.mark.parametrize(
    "use",
    [
        lambda key: key.private_bytes(),
        lambda key: getattr(key, "private_numbers", key.private_bytes)(),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_a_recorder_has_no_private_half(kind: str, use: Callable[[Any], Any]) -> None:
    recorder = recorder_of(shared_key(kind).public_key())
    with pytest.raises(TypeError, match="no private half"):
        use(recorder)


def test_there_is_no_recorder_for_another_kind_of_key() -> None:
    other = ed448.Ed448PrivateKey.generate().public_key()
    with pytest.raises(TypeError, match="no recorder for Ed448PublicKey"):
        recorder_of(other)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("p256", "ecdsa-sha256"),
        ("p384", "ecdsa-sha384"),
        ("p521", "ecdsa-sha512"),
        ("rsa2048", "rsa-sha256"),
        ("rsa3072", "rsa-sha256"),
        ("rsa4096", "rsa-sha256"),
        ("ed25519", "ed25519"),
    ],
)
def test_each_key_signs_in_one_way(kind: str, name: str) -> None:
    key = shared_key(kind)
    algorithm = algorithm_of(key.public_key())
    assert algorithm.name == name
    signature = sign(key, b"data")
    require_signature(key.public_key(), algorithm, signature, b"data")
    with pytest.raises(InvalidSignature, match=r"^$"):
        require_signature(key.public_key(), algorithm, signature, b"other")


def test_another_kind_of_key_verifies_nothing() -> None:
    algorithm = algorithm_of(shared_key("p256").public_key())
    other: Any = ed448.Ed448PrivateKey.generate().public_key()
    with pytest.raises(TypeError, match="no way to verify with Ed448PublicKey"):
        require_signature(other, algorithm, b"", b"")


@pytest.mark.parametrize(
    ("kind", "of"),
    [("ed25519", "p256"), ("p256", "ed25519"), ("rsa2048", "ed25519")],
)
def test_a_key_signs_and_verifies_in_no_other_way(kind: str, of: str) -> None:
    key, algorithm = shared_key(kind), algorithm_of(shared_key(of).public_key())
    with pytest.raises(TypeError, match="no way to sign with"):
        signature_of(key, algorithm, b"data")
    with pytest.raises(TypeError, match="no way to verify with"):
        require_signature(key.public_key(), algorithm, b"", b"data")


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_the_identifier_of_the_algorithm_is_the_one_that_others_write(
    kind: str,
) -> None:
    certificate = new_chain(kind).issue_leaf(x509.DNSName("a.example"))
    *_, identifier, _ = elements(content(certificate.public_bytes(Encoding.DER)))
    assert algorithm_of(shared_key(kind).public_key()).der == identifier


@pytest.mark.parametrize(
    "key",
    [
        ed448.Ed448PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 1024),  # noqa: S505 - refused is what it is for
    ],
    ids=["ed448", "secp256k1", "rsa1024"],
)
def test_another_kind_of_ca_key_signs_nothing(key: Any) -> None:
    with pytest.raises(ConfigError, match=r"a CA key is RSA .* or Ed25519") as refusal:
        algorithm_of(key.public_key())
    assert refusal.value.rule == "issuer.key"


def test_a_csr_that_another_key_has_signed_is_not_handed_out() -> None:
    ours, other = shared_key("p256"), ec.generate_private_key(ec.SECP256R1())
    algorithm = algorithm_of(ours.public_key())
    made = csr_of(
        ours.public_key(),
        x509.Name([]),
        lambda data: signature_of(ours, algorithm, data),
    )
    assert made.public_key() == ours.public_key()
    with pytest.raises(ValueError, match="the CSR was signed by another key"):
        csr_of(
            ours.public_key(),
            x509.Name([]),
            lambda data: signature_of(other, algorithm, data),
        )
