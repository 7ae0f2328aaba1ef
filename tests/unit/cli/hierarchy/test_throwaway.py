"""`meshca hierarchy throwaway`, as a person sees it."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from bridge.cli.hierarchy import app
from bridge.errors import ConfigError
from bridge.x509.pem import parse_certificates

VECTORS = Path(__file__).parents[3] / "vectors/csr"
DOMAIN = ("--trust-domain", "corp.example")


def throwaway(folder: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(
        app, ["throwaway", str(folder), *arguments], catch_exceptions=False
    )
    return result.exit_code, result.stdout, result.stderr


def test_it_shows_what_it_wrote_and_what_a_compromised_key_could_do(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "pki"
    status, out, err = throwaway(
        folder, *DOMAIN, "--region", "kr", "--layout", "cacerts"
    )
    assert status == 0
    assert "    CN=Throwaway issuing CA kr " in out
    assert "If the issuing key were compromised" in out
    for plane in ("sidecar", "ambient", "linkerd"):
        assert f"\n  {plane}: " in out
    written = [line.strip() for line in out.partition("\nWritten:\n")[2].splitlines()]
    assert sorted(written) == sorted(
        str(path) for path in folder.rglob("*") if path.is_file()
    )
    assert "These keys are throwaway" in err


@pytest.mark.parametrize(
    ("planes", "is_noted"),
    [((), False), (("sidecar",), False), (("sidecar", "ambient"), True)],
)
def test_a_rustls_peer_costs_the_uri_constraint(
    tmp_path: Path, planes: Sequence[str], *, is_noted: bool
) -> None:
    options = [part for plane in planes for part in ("--data-plane", plane)]
    _, out, _ = throwaway(tmp_path / "pki", *DOMAIN, *options)
    assert ("note: URI names are not constrained" in out) is is_noted


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    throwaway(folder, *DOMAIN)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"expected none of these files: root\.pem"):
        throwaway(folder, *DOMAIN)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "trust-domain"),
        (("--trust-domain", "Corp"), "--trust-domain: a trust domain has 1 to 253"),
        ((*DOMAIN, "--key", "rsa1024"), "rsa1024"),
        ((*DOMAIN, "--data-plane", "cilium"), "cilium"),
        ((*DOMAIN, "--layout", "jks"), "jks"),
    ],
)
def test_a_bad_argument_is_status_2(
    tmp_path: Path, arguments: Sequence[str], complaint: str
) -> None:
    status, out, err = throwaway(tmp_path / "pki", *arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert not (tmp_path / "pki").exists()


def test_the_issuing_ca_gets_the_key_of_a_csr(tmp_path: Path) -> None:
    folder, csr = tmp_path / "pki", VECTORS / "good-p384-istio-agent.pem"
    status, out, _ = throwaway(folder, *DOMAIN, "--issuing-csr", str(csr))
    assert status == 0
    assert "issuing.pem" in out
    assert "issuing.key" not in out
    assert not (folder / "issuing.key").exists()
    issuing, _ = parse_certificates((folder / "chain.pem").read_bytes(), "chain")
    assert issuing.public_key() == x509.load_pem_x509_csr(csr.read_bytes()).public_key()


def test_nothing_is_written_for_a_bad_csr(tmp_path: Path) -> None:
    csr = VECTORS / "bad-signature-other-key.pem"
    with pytest.raises(ConfigError, match="signature is not that of its key"):
        throwaway(tmp_path / "pki", *DOMAIN, "--issuing-csr", str(csr))
    assert not (tmp_path / "pki").exists()


@pytest.mark.interop
@pytest.mark.parametrize("key", ["p256", "p384", "p521", "rsa2048", "ed25519"])
def test_openssl_accepts_the_chain(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "pki"
    throwaway(folder, *DOMAIN, "--key", key)
    assert len(parse_certificates((folder / "chain.pem").read_bytes(), "chain")) == 2
    files = ("-CAfile", "roots.pem", "-untrusted", "intermediate.pem", "issuing.pem")
    subprocess.run(
        ["openssl", "verify", "-x509_strict", *files], cwd=folder, check=True
    )
