"""Keys of a ceremony: which plugin is asked for what, and where a secret comes from."""

import os
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.errors import BridgeError, ConfigError
from bridge.hierarchy.keys import (
    SIGN_SECONDS,
    _options,
    algorithm_name,
    opened,
    secret_from,
)
from bridge.hierarchy.schema import (
    KeyBehindCSR,
    KeyInFile,
    KeyInToken,
    KeyInTransit,
    KeyLocation,
)
from bridge.x509.algorithm import (
    CAPublicKey,
    KeyAlgorithm,
    algorithm_of,
    new_key,
    require_signature,
)
from tests.support.parts.pki import key_pem, write_private
from tests.support.parts.pki import new_key as other_key

URI = "pkcs11:token=offline;serial=01;object=root;id=%0a%0b"


def unasked(_: str) -> str:
    raise AssertionError("no secret is needed")


def in_file(path: Path, algorithm: KeyAlgorithm = "p256") -> KeyInFile:
    return KeyInFile.model_construct(backend="file", path=path, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["p256", "p384", "p521", "rsa2048", "ed25519"])
def test_a_key_is_named_as_the_file_names_it(algorithm: KeyAlgorithm) -> None:
    key = new_key(algorithm).public_key()
    assert isinstance(key, CAPublicKey)
    assert algorithm_name(key) == algorithm


def test_the_plugin_of_a_token_is_given_what_the_uri_names() -> None:
    token = KeyInToken.model_construct(
        backend="pkcs11", uri=URI, module=Path("/vendor.so"), algorithm="p256"
    )
    assert _options("root", token, None) == {
        "module": Path("/vendor.so"),
        "token_label": "offline",
        "token_serial": "01",
        "key_label": "root",
        "key_id": "0a0b",
    }
    assert _options("root", token, Path("/other.so"))["module"] == Path("/other.so")


def test_the_plugin_of_transit_is_given_the_version() -> None:
    transit = KeyInTransit.model_construct(
        backend="vault-transit",
        address="https://vault",
        mount="transit",
        name="eu",
        version=3,
        algorithm="p256",
    )
    assert _options("eu", transit, None) == {
        "address": "https://vault",
        "mount": "transit",
        "name": "eu",
        "version": 3,
    }


@pytest.mark.parametrize(
    ("location", "says"),
    [
        (
            KeyInToken.model_construct(
                backend="pkcs11", uri=URI, module=None, algorithm="p256"
            ),
            "root: expected the PKCS#11 module .*--module, or as cas.root.key.module",
        ),
        (
            KeyBehindCSR.model_construct(
                backend="csr", path=Path("eu.csr"), algorithm="p256"
            ),
            "root: its key stays where the CSR eu.csr was made, and signs nothing here",
        ),
    ],
)
def test_a_key_that_cannot_be_opened_here_tells_why(
    location: KeyLocation, says: str
) -> None:
    with (
        pytest.raises(ConfigError, match=says),
        opened("root", location, unasked),
    ):
        pass


def test_a_key_is_made_in_a_file_and_never_overwritten(tmp_path: Path) -> None:
    location = in_file(tmp_path / "keys/root.key")
    with opened("root", location, unasked, make=True) as made:
        first = made.public_key()
    content = location.path.read_bytes()
    assert stat.S_IMODE(location.path.stat().st_mode) == 0o600
    assert [*location.path.parent.iterdir()] == [location.path]
    with opened("root", location, unasked, make=True) as again:
        assert again.public_key() == first
        algorithm = algorithm_of(first)
        signature = again.sign(b"data", algorithm, timeout=SIGN_SECONDS)
    require_signature(first, algorithm, signature, b"data")
    assert location.path.read_bytes() == content


def test_an_encrypted_key_is_opened_with_its_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    key = other_key()
    write_private(path, key_pem(key, b"secret"))
    with opened("root", in_file(path), lambda _: "secret") as signer:
        assert signer.public_key() == key.public_key()
    with (
        pytest.raises(BridgeError, match=r"root\.key: cannot be decrypted"),
        opened("root", in_file(path), lambda _: "another"),
    ):
        pass


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (Path.absolute, "cannot be read: No such file"),
        (lambda path: write_private(path, b"no key"), "expected one private key"),
        (
            lambda path: write_private(path, key_pem(other_key()), 0o644),
            "expected a file that only its owner can read",
        ),
        (
            lambda path: write_private(path, key_pem(other_key("p384"))),
            "root: the key is not the planned one: expected p256 .*found p384",
        ),
    ],
    ids=["absent", "no key", "open to others", "another kind"],
)
def test_a_key_file_that_cannot_be_used_is_told(
    tmp_path: Path, prepare: Callable[[Path], object], says: str
) -> None:
    path = tmp_path / "root.key"
    prepare(path)
    with (
        pytest.raises(ConfigError, match=says),
        opened("root", in_file(path), unasked),
    ):
        pass


def piped(data: bytes) -> int:
    """Return the reading end of a pipe that has these bytes, and ends."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def test_each_secret_is_a_line_of_the_descriptor() -> None:
    file = piped(b"first\r\nsecond\n")
    try:
        for name, expected in (("eu", "first"), ("root", "second")):
            secret = secret_from(name, file_descriptor=file, prompt=None)
            assert secret("the PIN") == expected
        with pytest.raises(ConfigError, match="us: the PIN is needed"):
            secret_from("us", file_descriptor=file, prompt=None)("the PIN")
    finally:
        os.close(file)


def test_a_descriptor_that_has_no_secret_is_told_without_it() -> None:
    file = piped(b"1234\xff\n")
    try:
        with pytest.raises(ConfigError, match="expected lines of UTF-8") as caught:
            secret_from("eu", file_descriptor=file, prompt=None)("the PIN")
        assert "1234" not in "".join(traceback.format_exception(caught.value))
    finally:
        os.close(file)
    with pytest.raises(ConfigError, match=rf"eu: --pin-fd {file}: cannot be read: Bad"):
        secret_from("eu", file_descriptor=file, prompt=None)("the PIN")


def test_a_secret_comes_from_the_descriptor_then_the_environment_then_a_person(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MESHCA_PIN", "everybody's")
    monkeypatch.setenv("MESHCA_PIN_EU_1", "eu-1's")
    path = tmp_path / "pins"
    path.write_text("on a descriptor\n")
    file = os.open(path, os.O_RDONLY)
    try:
        found = secret_from("eu-1", file_descriptor=file, prompt=None)
        assert found("the PIN") == "on a descriptor"
    finally:
        os.close(file)
    by_name = secret_from("eu-1", file_descriptor=None, prompt=None)
    assert by_name("the PIN") == "eu-1's"
    assert secret_from("us", file_descriptor=None, prompt=None)("") == "everybody's"
    monkeypatch.delenv("MESHCA_PIN")
    asked = secret_from("us", file_descriptor=None, prompt=lambda what: f"told {what}")
    assert asked("the PIN") == "told the PIN"
    nobody = secret_from("us", file_descriptor=None, prompt=None)
    with pytest.raises(
        ConfigError, match=r"us: the PIN is needed: .* MESHCA_PIN_US .*--pin-fd"
    ):
        nobody("the PIN")
