import hashlib
import inspect
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge import errors, sdk, spi
from bridge.errors import BackendUnavailableError, ConfigError
from bridge.sdk import SigningCA
from bridge.spi import (
    CRLSigner,
    Description,
    IssuingCA,
    LeafRequest,
    PluginContext,
    SignatureAlgorithm,
    Watcher,
)
from bridge_file import FileCA
from tests.support.harness.fake_ca import LyingCA, sign
from tests.support.parts.pki import KEY_KINDS, NOW, Authority, Key, new_chain, new_key

KEY = new_key().public_key()
REQUEST = LeafRequest(
    attempt="0" * 32,
    public_key=KEY,
    spki=KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    csr=b"",
    names=(x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/web"),),
    serial=1 << 126,
    not_before=NOW,
    not_after=NOW + timedelta(hours=1),
)


class KeySigner:
    def __init__(self, key: Key) -> None:
        self.key = key
        self.signed: list[tuple[bytes, SignatureAlgorithm, float]] = []
        self.closed = 0
        self.checked: list[float] = []

    def public_key(self) -> Any:
        return self.key.public_key()

    def check(self, *, timeout: float) -> None:
        self.checked.append(timeout)

    def sign(
        self, tbs: bytes, algorithm: SignatureAlgorithm, *, timeout: float
    ) -> bytes:
        self.signed.append((tbs, algorithm, timeout))
        return sign(self.key, tbs)

    def close(self) -> None:
        self.closed += 1


def signing_ca(chain: Authority, key: Key | None = None) -> tuple[SigningCA, KeySigner]:
    signer = KeySigner(key or chain.key)
    certificate, *above = chain.chain
    description = Description(certificate=certificate, intermediates=tuple(above))
    return SigningCA(description, signer), signer


@pytest.mark.parametrize("module", [spi, sdk], ids=["spi", "sdk"])
def test_what_is_exported_is_there_and_sorted(module: Any) -> None:
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert len({*module.__all__}) == len(module.__all__)


def test_a_plugin_finds_every_error_it_may_raise() -> None:
    backend = {
        name
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.BackendError)
    }
    assert backend <= {*spi.__all__}


@pytest.mark.parametrize("protocol", [CRLSigner, Watcher])
def test_what_a_plugin_may_add_is_found_by_isinstance(protocol: type) -> None:
    class Bare:
        pass

    class Both:
        def sign_crl(self, tbs: bytes, *, timeout: float) -> bytes:
            return tbs

        def watch(self, changed: Callable[[], None]) -> None:
            changed()

    assert isinstance(Both(), protocol)
    assert not isinstance(Bare(), protocol)


def test_the_file_backend_watches_and_the_bare_key_does_not(tmp_path: Path) -> None:
    chain = new_chain()
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(chain.key_pem())
    (tmp_path / "chain").write_bytes(
        b"".join(one.public_bytes(Encoding.PEM) for one in chain.chain)
    )
    context = PluginContext(name="a", base=tmp_path, chain=tmp_path / "chain")
    made: IssuingCA = FileCA({"key": "key"}, context)
    assert isinstance(made, Watcher)
    made.close()
    assert not isinstance(signing_ca(chain)[0], Watcher)


def test_the_fake_ca_has_the_shape_of_the_contract() -> None:
    fake: IssuingCA = LyingCA(new_chain())
    assert fake.describe().assurance == "file"


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_a_key_makes_an_issuing_ca(kind: str) -> None:
    chain = new_chain(kind)
    ca, signer = signing_ca(chain)
    prepared = ca.prepare(REQUEST)
    assert signer.signed == []
    assert prepared.tbs_sha256 == hashlib.sha256(prepared.tbs).hexdigest()
    issued = ca.issue(prepared, timeout=1.5)
    leaf = x509.load_der_x509_certificate(issued.leaf)
    leaf.verify_directly_issued_by(chain.certificate)
    assert leaf.tbs_certificate_bytes == prepared.tbs
    assert issued.intermediates == tuple(
        one.public_bytes(Encoding.DER) for one in chain.chain
    )
    ((tbs, algorithm, timeout),) = signer.signed
    assert (tbs, timeout) == (prepared.tbs, 1.5)
    kinds = {"rsa": "rsa", "p": "ecdsa", "ed": "ed25519"}
    assert algorithm.name.partition("-")[0] == kinds[kind.rstrip("0123456789")]


def test_a_key_that_is_not_the_certificates_is_refused() -> None:
    chain = new_chain()
    with pytest.raises(ConfigError, match="the key is not that of the") as refusal:
        signing_ca(chain, new_key())
    assert refusal.value.rule == "issuer.key-mismatch"


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_without_time_the_key_is_not_used(timeout: float) -> None:
    ca, signer = signing_ca(new_chain())
    prepared = ca.prepare(REQUEST)
    with pytest.raises(BackendUnavailableError, match="no time is left"):
        ca.issue(prepared, timeout=timeout)
    with pytest.raises(BackendUnavailableError, match="no time is left"):
        ca.check(timeout=timeout)
    assert signer.signed == []


def test_closing_the_ca_closes_its_key_which_is_asked_nothing_more() -> None:
    ca, signer = signing_ca(new_chain())
    prepared = ca.prepare(REQUEST)
    ca.close()
    assert signer.closed == 1
    with pytest.raises(BackendUnavailableError, match="is closed"):
        ca.issue(prepared, timeout=1.5)
    with pytest.raises(BackendUnavailableError, match="is closed"):
        ca.check(timeout=1.5)
    assert (signer.signed, signer.checked) == ([], [])


def test_a_check_asks_the_signer_and_signs_nothing() -> None:
    # The certificate is known to the bridge; whether the key is there, to the signer.
    ca, signer = signing_ca(new_chain())
    ca.check(timeout=1.5)
    assert (signer.checked, signer.signed) == ([1.5], [])


def test_a_request_cannot_be_changed_after_it_was_decided() -> None:
    with pytest.raises(AttributeError, match=r"cannot assign|no setter"):
        REQUEST.serial = 1  # type: ignore[misc]
