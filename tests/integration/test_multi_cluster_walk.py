"""`docs/multi-cluster.md`: its blocks run as they stand, in one shell.

What differs from the reader's machine: the environment of the tests is installed
already, the ports are free ones, and etcd, the API server and kubectl are those of the
tests.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.harness.walk import BASH, environment, installed, script_of
from tests.support.parts import install

PORTS = ("15012", "8080", "9990", "2379", "2380", "2381", "2382", "6443", "6444")
PRELUDE = """
set -eu
make() { test "$*" = demo; }
"""
SECONDS = 600
NAME = "spiffe://corp.example/ns/shop/sa/web"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home with a clone in it that has been installed."""
    etcd, server = install.kube_apiserver_commands()
    programs = {"etcd": etcd, "kube-apiserver": server}
    programs["kubectl"] = install.kubectl_command()
    with installed(tmp_path, programs, "deploy") as home:
        yield home


def walked(home: Path) -> str:
    """Run the blocks of the page; return what a person sees."""
    script = script_of("docs/multi-cluster.md", PRELUDE, PORTS)
    said = home / "said"
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    with said.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            ["timeout", str(SECONDS), BASH, "-c", script],
            cwd=home / "clone",
            env=environment(HOME=str(home), PATH=path, COLUMNS="200"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    found = said.read_text("utf-8")
    logs = (one.read_text("utf-8")[-2000:] for one in home.rglob("*.log"))
    assert done.returncode == 0, "\n".join([found[-4000:], *logs])
    return found


def test_the_walk_of_the_page_ends_with_two_clusters_under_one_root(
    home: Path,
) -> None:
    said = walked(home)
    assert "Traceback" not in said
    folder = home / "meshca-clusters"
    chains = [
        x509.load_pem_x509_certificates(
            (folder / f"{cluster}-web/chain.pem").read_bytes()
        )
        for cluster in ("east", "west")
    ]
    for leaf, issuing, *_ in chains:
        leaf.verify_directly_issued_by(issuing)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        (uri,) = names.value.get_values_for_type(x509.UniformResourceIdentifier)
        assert uri == NAME
    assert [one[1:] for one in chains] == [chains[0][1:]] * 2
    assert said.count("chain.pem: OK") == 2

    # What the page says of each refusal.
    assert said.count("refused, exit status 1") == 4
    assert said.count("token.review: ") == 3
    assert said.count("cluster.namespace: ") == 1
    for what in ("not yet", "away"):
        assert said.count(f"{what}, exit status 1") == 1
    assert '"ready": true' in said or '"ready":true' in said
    assert "UNAVAILABLE" in (folder / "gone").read_text("utf-8")
