import copy
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from bridge.x509.algorithm import algorithm_of, require_signature
from bridge.x509.remote_key import recorder_of
from tests.support.fake_ca import sign
from tests.support.pki import KEY_KINDS, shared_key


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_a_recorder_looks_like_the_key(kind: str) -> None:
    public_key = shared_key(kind).public_key()
    recorder = recorder_of(public_key)
    assert recorder.public_key() == public_key
    assert recorder.key_size == public_key.key_size  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["p256", "rsa2048"])
@pytest.mark.parametrize(
    "use",
    [
        lambda key: key.private_bytes(),
        lambda key: key.private_numbers(),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_a_recorder_has_no_private_half(kind: str, use: Callable[[Any], Any]) -> None:
    recorder = recorder_of(shared_key(kind).public_key())
    with pytest.raises(TypeError, match="no private half"):
        use(recorder)


def test_there_is_no_recorder_for_another_kind_of_key() -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    with pytest.raises(TypeError, match="no recorder for Ed25519PublicKey"):
        recorder_of(other)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("p256", "ecdsa-sha256"),
        ("p384", "ecdsa-sha384"),
        ("rsa2048", "rsa-sha256"),
        ("rsa3072", "rsa-sha256"),
        ("rsa4096", "rsa-sha256"),
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
    other: Any = ed25519.Ed25519PrivateKey.generate().public_key()
    with pytest.raises(TypeError, match="no way to verify with Ed25519PublicKey"):
        require_signature(other, algorithm, b"", b"")
