"""Which certificates of a folder make the chain, wherever people put them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from tests.support.harness.file_shapes import open_shape, write_shape
from tests.support.parts.pki import Authority, bundle, new_chain, new_root

Spoil = Callable[[Path, Authority], object]
pytestmark = pytest.mark.usefixtures("no_pause")


def test_a_root_at_the_end_of_a_tls_secret_is_left_out_aloud(
    tmp_path: Path, ca: Authority
) -> None:
    write_shape(tmp_path, "tls", ca)
    (tmp_path / "tls.crt").write_bytes(bundle(*ca.chain, ca.root))
    warnings: list[str] = []
    opened = open_shape(tmp_path, "tls", warn=warnings.append)
    assert opened.describe().intermediates == ca.chain[1:]
    assert "the self-signed root at its end (CN=root" in warnings[0]
    opened.close()


def split(tls: int) -> Spoil:
    # The first `tls` certificates of the chain in tls.crt, all others in ca.crt.
    def write(folder: Path, ca: Authority) -> None:
        (folder / "tls.crt").write_bytes(bundle(*ca.chain[:tls]))
        (folder / "ca.crt").write_bytes(bundle(ca.root, *reversed(ca.chain[tls:])))

    return write


@pytest.mark.parametrize(
    "arrange",
    [
        split(1),
        split(2),
        split(3),
        lambda folder, _: (folder / "ca.crt").unlink(),
        lambda folder, ca: (folder / "ca.crt").write_bytes(bundle(ca.chain[-1])),
        lambda folder, _: (folder / "ca.crt").write_bytes(bundle(*new_chain().chain)),
    ],
    ids=[
        "two intermediates in ca.crt",
        "one intermediate in ca.crt",
        "root alone in ca.crt",
        "no ca.crt",
        "the top intermediate in both",
        "strangers in ca.crt",
    ],
)
def test_intermediates_of_a_tls_secret_are_found_where_issuers_put_them(
    tmp_path: Path, arrange: Spoil
) -> None:
    root = new_root()
    ca = root.issue_ca("upper").issue_ca("lower").issue_ca("issuing")
    write_shape(tmp_path, "tls", ca)
    arrange(tmp_path, ca)
    opened = open_shape(tmp_path, "tls")
    assert opened.describe().intermediates == ca.chain[1:]
    opened.close()


@pytest.mark.parametrize(
    "cert_chain",
    [
        lambda ca: bundle(*ca.chain),
        lambda ca: bundle(*ca.chain, ca.root),
        lambda ca: bundle(*ca.chain[1:]),
        lambda ca: bundle(*ca.chain[1:], ca.root),
    ],
    ids=["issuing CA", "issuing CA and root", "neither", "root"],
)
def test_cert_chain_may_repeat_the_issuing_ca_and_the_root(
    tmp_path: Path, ca: Authority, cert_chain: Callable[[Authority], bytes]
) -> None:
    write_shape(tmp_path, "cacerts", ca)
    (tmp_path / "cert-chain.pem").write_bytes(cert_chain(ca))
    opened = open_shape(tmp_path, "cacerts")
    assert opened.describe().intermediates == ca.chain[1:]
    opened.close()


def test_an_issuing_ca_right_under_the_root_has_no_intermediates(
    tmp_path: Path,
) -> None:
    ca = new_root().issue_ca("issuing")
    write_shape(tmp_path, "cacerts", ca)
    (tmp_path / "cert-chain.pem").write_bytes(bundle(ca.root))
    opened = open_shape(tmp_path, "cacerts")
    assert opened.describe().intermediates == ()
    opened.close()


def test_an_intermediate_that_is_the_anchor_is_no_part_of_the_chain(
    tmp_path: Path, ca: Authority
) -> None:
    write_shape(tmp_path, "cacerts", ca)
    (tmp_path / "cert-chain.pem").write_bytes(bundle(*ca.chain))
    (tmp_path / "root-cert.pem").write_bytes(bundle(ca.chain[-1]))
    opened = open_shape(tmp_path, "cacerts")
    assert opened.describe().intermediates == ()
    opened.close()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (
            lambda folder, ca: (folder / "ca-cert.pem").write_bytes(bundle(*ca.chain)),
            r"ca-cert\.pem: expected the issuing CA's certificate alone, found 2",
        ),
        (
            lambda folder, ca: (folder / "cert-chain.pem").write_bytes(
                bundle(*ca.chain, new_root("other").certificate)
            ),
            r"cert-chain\.pem: .*CN=intermediate .* is not issued by CN=other",
        ),
        (
            lambda folder, _: (folder / "cert-chain.pem").write_bytes(
                bundle(*new_chain().chain)
            ),
            r"cert-chain\.pem: .*CN=issuing .* is not issued by CN=issuing",
        ),
        (
            lambda folder, _: (folder / "root-cert.pem").write_bytes(
                bundle(new_root("other").certificate)
            ),
            r"root-cert\.pem: expected the issuer of CN=intermediate",
        ),
        (
            lambda folder, _: (folder / "root-cert.pem").unlink(),
            r"root-cert\.pem: cannot be read",
        ),
        (
            lambda folder, _: (folder / "cert-chain.pem").unlink(),
            r"cert-chain\.pem: cannot be read",
        ),
    ],
)
def test_a_cacerts_folder_that_does_not_link_is_refused(
    tmp_path: Path, ca: Authority, spoil: Spoil, complaint: str
) -> None:
    write_shape(tmp_path, "cacerts", ca)
    spoil(tmp_path, ca)
    with pytest.raises(ConfigError, match=complaint):
        open_shape(tmp_path, "cacerts")
