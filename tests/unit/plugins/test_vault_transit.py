"""How a key in Transit signs: what is asked for, and what is made of the answers."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import Certificate, UniformResourceIdentifier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.spi import (
    BackendBrokenError,
    BackendError,
    BackendUnavailableError,
    IssuedChain,
    PluginContext,
)
from bridge.testing.leaves import leaf_request, require_issued
from bridge_vault.transit import VaultTransitCA
from tests.support.harness.scripted_vault import ScriptedVault
from tests.support.parts.pki import (
    Key,
    bundle,
    new_chain,
    new_key,
    new_root,
    write_private,
)

KINDS = ("p256", "p384", "rsa2048", "ed25519")
NAMES = (UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/cart"),)
HASHES = {"sha2-256": hashes.SHA256(), "sha2-384": hashes.SHA384()}


def signature_by(key: Key, asked: Mapping[str, Any]) -> bytes:
    """Sign as Transit does what was asked for."""
    data = base64.b64decode(asked["input"])
    if isinstance(key, ed25519.Ed25519PrivateKey):
        assert "prehashed" not in asked or asked["prehashed"] is not True
        return key.sign(data)
    assert asked["prehashed"] is True
    algorithm = Prehashed(HASHES[asked["hash_algorithm"]])
    if isinstance(key, rsa.RSAPrivateKey):
        assert asked["signature_algorithm"] == "pkcs1v15"
        return key.sign(data, padding.PKCS1v15(), algorithm)
    assert asked["marshaling_algorithm"] == "asn1"
    return key.sign(data, ec.ECDSA(algorithm))


def public(key: Key) -> str:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.b64encode(raw).decode()
    return (
        key.public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


class Ground:
    """An issuing CA of the plugin in front of a scripted Transit."""

    def __init__(
        self,
        folder: Path,
        patch: pytest.MonkeyPatch,
        kind: str,
        before: tuple[Certificate, ...] = (),
    ) -> None:
        authority = new_chain(kind)
        self.authority, self.key = authority, authority.key
        self.told: list[str] = []
        self.vault = ScriptedVault(authority, transit=self.answer)
        self.vault.keys = {
            "type": kind,
            "supports_signing": True,
            "latest_version": 3,
            "min_encryption_version": 0,
            "keys": {"2": {"public_key": public(authority.key)}, "3": {}},
        }
        chain = [one.certificate for one in (authority, authority.above[0])]
        (folder / "chain.pem").write_bytes(bundle(*before, *chain))
        write_private(folder / "token", b"t\n")
        patch.setattr("bridge_vault.transit.SharedSession", self.vault)
        self.ca = VaultTransitCA(
            {
                "addresses": ["http://127.0.0.1:1"],
                "login": {"token": {"file": "token"}},
                "key": "k",
                "key_version": 2,
            },
            PluginContext(
                name="t",
                base=folder,
                chain=folder / "chain.pem",
                warn=self.told.append,
            ),
        )

    def answer(self, asked: Mapping[str, Any]) -> Any:
        """Answer as Transit does."""
        encoded = base64.b64encode(signature_by(self.key, asked)).decode()
        return {"data": {"signature": f"vault:v{asked['key_version']}:{encoded}"}}

    def issue(self) -> IssuedChain:
        """Issue as the core does, with its own comparison of the leaf."""
        prepared = self.ca.prepare(leaf_request(NAMES))
        issued = self.ca.issue(prepared, timeout=5)
        require_issued(issued, prepared, self.ca.describe())
        return issued


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Ground]:
    return lambda kind: Ground(tmp_path, monkeypatch, kind)


@pytest.fixture
def ground(make: Callable[[str], Ground]) -> Ground:
    return make("p256")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_key_is_asked_for_the_pinned_version(
    make: Callable[[str], Ground], kind: str
) -> None:
    ground = make(kind)
    ground.ca.check(timeout=5)
    ground.issue()
    (asked,) = ground.vault.signed
    assert asked["key_version"] == 2
    ((attempt, signs),) = ground.vault.attempts
    assert len(attempt) == 32
    assert signs


def test_a_stranger_in_front_is_not_taken_for_the_issuing_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = new_root("stranger").issue_ca("of a stranger").certificate
    ground = Ground(tmp_path, monkeypatch, "p256", (stranger,))
    assert ground.ca.describe().certificate == ground.authority.certificate
    ground.ca.check(timeout=5)
    ground.issue()


def test_a_digest_goes_to_transit_and_an_ed25519_key_gets_the_message(
    make: Callable[[str], Ground],
) -> None:
    sizes = {}
    for kind in ("p384", "ed25519"):
        ground = make(kind)
        prepared = ground.ca.prepare(leaf_request(NAMES))
        ground.ca.issue(prepared, timeout=5)
        sent = base64.b64decode(ground.vault.signed[0]["input"])
        sizes[kind] = sent == prepared.tbs
        assert sent in {prepared.tbs, hashlib.sha384(prepared.tbs).digest()}
    assert sizes == {"p384": False, "ed25519": True}


def test_the_labels_say_which_key_and_version(ground: Ground) -> None:
    assert ground.ca.describe().labels == {"key": "transit/k v2"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"keys": {}}, "version 2 is not there (the latest is 3)"),
        ({"keys": []}, "version 2 is not there (the latest is 3)"),
        ({"min_encryption_version": 3}, "min_encryption_version 3 keeps version 2"),
        ({"supports_signing": False}, "a key of type p256 does not sign"),
        ({"derived": True}, "a derived key signs with a key of its own"),
        (
            {"keys": {"2": {"public_key": public(new_key())}}},
            "version 2 is another key than that of the certificate",
        ),
        ({"keys": {"2": {"public_key": "-----"}}}, "version 2 is another key"),
        ({"keys": {"2": {"public_key": "é"}}}, "version 2 is another key"),
        ({"keys": {"2": {}}}, "version 2 is another key"),
    ],
)
def test_a_key_that_is_not_the_issuing_cas_fails_the_check(
    ground: Ground, changes: dict[str, Any], problem: str
) -> None:
    ground.vault.keys |= changes
    with pytest.raises(BackendBrokenError, match=r"is not the issuing CA's") as caught:
        ground.ca.check(timeout=5)
    assert caught.value.rule == "vault.key"
    assert caught.value.detail.startswith(f"transit/keys/k: {problem}")


@pytest.mark.parametrize(
    "name", ["exportable", "allow_plaintext_backup", "deletion_allowed"]
)
def test_a_key_that_may_leave_or_be_deleted_is_told_once(
    ground: Ground, name: str
) -> None:
    ground.vault.keys[name] = True
    ground.ca.check(timeout=5)
    ground.ca.check(timeout=5)
    (text,) = ground.told
    assert text.startswith(f"issuing_cas.t: transit/keys/k has {name}: ")


def test_rights_that_are_missing_are_named(ground: Ground) -> None:
    ground.vault.rights["transit/sign/k"] = ["deny"]
    with pytest.raises(BackendBrokenError, match=r"policies do not permit") as caught:
        ground.ca.check(timeout=5)
    assert caught.value.detail == "expected update on transit/sign/k"


def test_another_key_under_the_name_makes_no_leaf(ground: Ground) -> None:
    # Also without a check before.
    ground.key = new_key()
    with pytest.raises(BackendBrokenError, match=r"is not the issuing CA's") as caught:
        ground.issue()
    assert caught.value.rule == "vault.key"


def test_a_signature_by_another_version_makes_no_leaf(ground: Ground) -> None:
    right = ground.answer

    def rotated(asked: Mapping[str, Any]) -> Any:
        told = right(asked)["data"]["signature"]
        return {"data": {"signature": told.replace("vault:v2", "vault:v3")}}

    ground.vault.transit = rotated
    with pytest.raises(BackendBrokenError, match=r"no signature by version 2"):
        ground.issue()


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_nothing_is_asked_without_time(ground: Ground, timeout: float) -> None:
    with pytest.raises(BackendUnavailableError, match=r"no time"):
        ground.ca.check(timeout=timeout)
    assert not ground.vault.reads


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
SIGNATURES = JSON | st.builds("vault:v2:{}".format, st.text(max_size=20))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.fixed_dictionaries({}, optional={"data": JSON}), signature=SIGNATURES)
def test_whatever_is_answered_ends_with_a_leaf_or_a_backend_error(
    ground: Ground, answer: dict[str, Any], signature: object
) -> None:
    answers = iter([answer, {"data": {"signature": signature}}])
    ground.vault.transit = lambda _: next(answers)
    ground.vault.signed.clear()  # hypothesis writes all of it, should a test fail
    for _ in range(2):
        with pytest.raises(BackendError, match=r"."):
            ground.issue()


KEYS = ["keys", "min_encryption_version", "latest_version", "type", "derived"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.dictionaries(st.sampled_from(KEYS), JSON))
def test_whatever_is_read_passes_or_ends_with_a_backend_error(
    ground: Ground, key: dict[str, Any]
) -> None:
    before = dict(ground.vault.keys)
    ground.vault.keys |= key
    try:
        ground.ca.check(timeout=5)
    except BackendError:
        pass
    finally:
        ground.vault.keys = before
