"""`docs/ceremony.md`: its blocks run as they stand, in one shell of a terminal.

A person is there: the clock is confirmed, and PINs are typed where they are asked for.
What differs from the reader's machine: the environment of the tests is installed
already, the ports are free ones, and etcd and the API server are those of the tests.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from bridge.hierarchy.transcript import read
from tests.support.harness.terminal import Terminal
from tests.support.harness.walk import BASH, installed, script_of
from tests.support.parts import install

PORTS = ("15012", "9990", "2379", "2380", "6443")
PRELUDE = """
set -eu
make() { test "$*" = softhsm; }
"""
ANSWERS = {
    r"Is that right\? \[y/N\]: $": "y",
    r"user PIN of token 'corp-offline': $": "271828",
    r"user PIN[^\n]*: $": "271828",
    r"SO PIN[^\n]*: $": "314159",
}
SECONDS = 600.0
CLUSTER = ("kubernetes", "etcd", "front-proxy")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home with a clone in it that has been installed."""
    install.softhsm()
    etcd, server = install.kube_apiserver_commands()
    with installed(tmp_path, {"etcd": etcd, "kube-apiserver": server}) as home:
        yield home


def walked(home: Path) -> str:
    """Run the blocks of the page; return what a person sees."""
    script = script_of("docs/ceremony.md", PRELUDE, PORTS)
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    environment = {"HOME": str(home), "PATH": path, "MESHCA_PIN": ""}
    terminal = Terminal([BASH, "-c", script], 160, home / "clone", environment)
    status = terminal.answer(ANSWERS, SECONDS)
    logs = (one.read_text("utf-8") for one in home.rglob("*log"))
    assert status == 0, terminal.said[-4000:] + "\n".join(one[-4000:] for one in logs)
    return terminal.said


def test_the_walk_of_the_page_ends_with_a_mesh_and_a_control_plane(home: Path) -> None:
    said = walked(home)
    assert "Traceback" not in said
    assert "nothing in the way" in said
    assert "Rehearsed: 7 certificates" in said
    online, offline = (home / "meshca-ceremony" / one for one in ("online", "offline"))

    # What each machine has: the same words, no key that is not its own.
    for name in ("hierarchy.yaml", "csr/eu-prod.csr"):
        (digest,) = {*re.findall(rf"^{name}: ([0-9a-f]{{64}})$", said, re.MULTILINE)}
        assert said.count(f"{name}: {digest}") == 2
    assert not [
        *offline.rglob("*.key"),
        *(home / "meshca-ceremony/stick").rglob("*key"),
    ]

    # The record.
    record = read(offline / "ceremony/transcript.jsonl")
    signed = [one.command for one in record.entries if "before" not in one.command]
    assert signed == [
        *("sign root", "sign eu", "sign eu-platform", "sign eu-prod"),
        *(f"sign eu-prod-{one}" for one in CLUSTER),
        *("crl root", "crl eu"),
    ]
    assert [one.officer for one in record.signatures] == ["Ada", "Bo"]
    assert len({one.hsm.serial for one in record.entries if one.hsm}) == 1
    assert "<script" not in (offline / "ceremony/record.html").read_text("utf-8")
    exports = [
        one.command
        for one in read(online / "ceremony/transcript.jsonl").entries
        if one.command.startswith("export")
    ]
    assert exports == ["export eu-prod"] * 3

    # The mesh.
    root = (offline / "ceremony/root/certificate.pem").read_bytes()
    leaf, issuing, *_ = x509.load_pem_x509_certificates(
        (online / "web/chain.pem").read_bytes()
    )
    leaf.verify_directly_issued_by(issuing)
    assert (online / "istio/cacerts/root-cert.pem").read_bytes() == root
    assert "web/chain.pem: OK" in said

    # The control plane.
    node = online / "kubeadm/cp-1.nodes.corp.example"
    assert not (node / "pki/ca.key").exists()
    assert stat.S_IMODE((node / "pki/sa.key").stat().st_mode) == 0o600
    assert '"kind": "Namespace"' in said
    assert '"reason": "Unauthorized"' in said
