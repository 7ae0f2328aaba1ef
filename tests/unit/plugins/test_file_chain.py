"""Which certificates of a folder make the chain, wherever people put them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from bridge.errors import ConfigError
from bridge.x509.path import FoundChain, find_chain
from bridge.x509.pem import encode_certificate
from bridge_file import FileCA
from tests.support.harness.file_shapes import (
    CERTIFICATE_FILES,
    SHAPES,
    open_shape,
    write_shape,
)
from tests.support.parts.pki import NOW, Authority, bundle, new_chain, new_root

Spoil = Callable[[Path, Authority], object]
STRANGER = new_root().issue_ca("stranger")
pytestmark = pytest.mark.usefixtures("no_pause")


def served(opened: FileCA, *anchors: x509.Certificate) -> FoundChain:
    """Find the path as the core does, and close the issuing CA."""
    found = opened.describe()
    opened.close()
    return find_chain(
        found.certificate, found.intermediates, anchors, now=NOW, source="a"
    )


def path_of(found: FoundChain) -> tuple[x509.Certificate, ...]:
    return (found.chain.issuing, *found.chain.intermediates)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "arrange",
    [
        lambda ca: reversed(ca.chain),
        lambda ca: (*ca.chain, *ca.chain),
        lambda ca: (ca.root, *reversed(ca.chain)),
        lambda ca: (STRANGER.certificate, STRANGER.root, *ca.chain),
    ],
    ids=["reversed", "twice", "root first", "strangers first"],
)
def test_the_key_tells_which_certificate_is_the_issuing_cas(
    tmp_path: Path,
    ca: Authority,
    shape: str,
    arrange: Callable[[Authority], tuple[x509.Certificate, ...]],
) -> None:
    write_shape(tmp_path, shape, ca)
    (tmp_path / CERTIFICATE_FILES[shape]).write_bytes(bundle(*arrange(ca)))
    found = served(open_shape(tmp_path, shape), ca.root)
    assert path_of(found) == ca.chain
    assert {*found.left_out} == {*arrange(ca)} - {*ca.chain}


def split(tls: int) -> Spoil:
    # The first `tls` certificates of the chain in tls.crt, all others in ca.crt.
    def write(folder: Path, ca: Authority) -> None:
        (folder / "tls.crt").write_bytes(bundle(*ca.chain[:tls]))
        (folder / "ca.crt").write_bytes(bundle(ca.root, *reversed(ca.chain[tls:])))

    return write


@pytest.mark.parametrize(
    ("arrange", "left_out"),
    [
        (split(1), 0),
        (split(2), 0),
        (split(3), 0),
        (lambda folder, _: (folder / "ca.crt").unlink(), 0),
        (lambda folder, _: (folder / "ca.crt").write_bytes(b""), 0),
        (lambda folder, _: (folder / "ca.crt").write_bytes(b" \r\n"), 0),
        (lambda folder, ca: (folder / "ca.crt").write_bytes(bundle(ca.chain[-1])), 0),
        (
            lambda folder, _: (folder / "ca.crt").write_bytes(
                bundle(*new_chain().chain)
            ),
            2,
        ),
    ],
    ids=[
        "two intermediates in ca.crt",
        "one intermediate in ca.crt",
        "root alone in ca.crt",
        "no ca.crt",
        "an empty ca.crt",
        "a ca.crt of one empty line",
        "the top intermediate in both",
        "strangers in ca.crt",
    ],
)
def test_intermediates_of_a_tls_secret_are_found_where_issuers_put_them(
    tmp_path: Path, arrange: Spoil, left_out: int
) -> None:
    root = new_root()
    ca = root.issue_ca("upper").issue_ca("lower").issue_ca("issuing")
    write_shape(tmp_path, "tls", ca)
    arrange(tmp_path, ca)
    found = served(open_shape(tmp_path, "tls"), root.certificate)
    assert path_of(found) == ca.chain
    assert len(found.left_out) == left_out


@pytest.mark.parametrize(
    "cert_chain",
    [
        lambda ca: bundle(*ca.chain),
        lambda ca: bundle(*ca.chain, ca.root),
        lambda ca: bundle(*ca.chain[1:]),
        lambda ca: bundle(*ca.chain[1:], ca.root),
        lambda ca: bundle(ca.root, *reversed(ca.chain)),
    ],
    ids=["issuing CA", "issuing CA and root", "neither", "root", "reversed"],
)
def test_cert_chain_may_repeat_the_issuing_ca_and_the_root(
    tmp_path: Path, ca: Authority, cert_chain: Callable[[Authority], bytes]
) -> None:
    write_shape(tmp_path, "cacerts", ca)
    (tmp_path / "cert-chain.pem").write_bytes(cert_chain(ca))
    found = served(open_shape(tmp_path, "cacerts"), ca.root)
    assert path_of(found) == ca.chain
    assert found.left_out == ()


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\n", bundle(new_root().certificate)],
    ids=["absent", "empty", "an empty line", "a stranger"],
)
def test_an_issuing_ca_right_under_the_root_needs_no_cert_chain(
    tmp_path: Path, content: bytes | None
) -> None:
    ca = new_root().issue_ca("issuing")
    write_shape(tmp_path, "cacerts", ca)
    (tmp_path / "cert-chain.pem").unlink()
    if content is not None:
        (tmp_path / "cert-chain.pem").write_bytes(content)
    assert path_of(served(open_shape(tmp_path, "cacerts"), ca.root)) == ca.chain


@pytest.mark.parametrize("anchor", [1, 2], ids=["the intermediate", "its root"])
def test_root_cert_may_hold_an_intermediate(
    tmp_path: Path, ca: Authority, anchor: int
) -> None:
    write_shape(tmp_path, "cacerts", ca)
    (tmp_path / "cert-chain.pem").write_bytes(bundle(ca.certificate))
    (tmp_path / "root-cert.pem").write_bytes(bundle(ca.chain[-1]))
    trusted = (*ca.chain, ca.root)[anchor]
    found = served(open_shape(tmp_path, "cacerts"), trusted)
    assert path_of(found) == ca.chain[:anchor]
    assert found.chain.anchor == trusted


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (
            lambda folder, _: (folder / "cert-chain.pem").write_bytes(b""),
            (
                r"cacerts_folder: .*CN=issuing .* is issued by \(CN=intermediate .*"
                r"\), which is none .* add the certificate of this issuer \(CN=inter"
            ),
        ),
        (
            lambda folder, _: (folder / "cert-chain.pem").unlink(),
            r"CN=issuing .* is issued by \(CN=intermediate",
        ),
        (
            lambda folder, _: (folder / "cert-chain.pem").write_bytes(
                bundle(*new_chain().chain)
            ),
            r"CN=issuing .* is issued by \(CN=intermediate",
        ),
        (
            lambda folder, _: (folder / "root-cert.pem").write_bytes(
                bundle(new_root("other").certificate)
            ),
            r"\(CN=root .*\) is issued by itself, and is none of the trust anchors",
        ),
        (
            lambda folder, _: (folder / "root-cert.pem").unlink(),
            r"root-cert\.pem: cannot be read",
        ),
        (
            lambda folder, _: (folder / "root-cert.pem").write_bytes(b""),
            r"root-cert\.pem: expected one or more CERTIFICATE blocks",
        ),
        (
            lambda folder, _: (folder / "ca-cert.pem").write_bytes(b""),
            r"ca-cert\.pem: expected one or more CERTIFICATE blocks",
        ),
    ],
    ids=[
        "empty chain",
        "no chain",
        "strangers",
        "another root",
        *("no root", "empty root", "empty ca-cert"),
    ],
)
def test_a_cacerts_folder_with_a_gap_names_the_issuer_that_is_missing(
    tmp_path: Path, ca: Authority, spoil: Spoil, complaint: str
) -> None:
    write_shape(tmp_path, "cacerts", ca)
    spoil(tmp_path, ca)
    with pytest.raises(ConfigError, match=complaint):
        open_shape(tmp_path, "cacerts")


@pytest.mark.parametrize(
    ("shape", "name"), [("tls", "ca.crt"), ("cacerts", "root-cert.pem")]
)
def test_a_root_that_cannot_be_read_does_not_refuse_the_others(
    tmp_path: Path, ca: Authority, shape: str, name: str
) -> None:
    write_shape(tmp_path, shape, ca)
    (tmp_path / name).write_text(encode_certificate(b"0\0") + bundle(ca.root).decode())
    assert path_of(served(open_shape(tmp_path, shape), ca.root)) == ca.chain
