"""`docs/multi-cluster.md`: its blocks run as they stand, in one shell.

What differs from the reader's machine: the environment of the tests is installed
already, the ports are free ones, and etcd, the API server and kubectl are those of the
tests.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.harness.walk import BASH, ROOT, blocks, environment
from tests.support.parts import install, netports

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
    clone = tmp_path / "clone"
    clone.mkdir()
    for name, place in {".venv": Path(sys.prefix), "deploy": ROOT / "deploy"}.items():
        (clone / name).symlink_to(place)
    etcd, server = install.kube_apiserver_commands()
    put(tmp_path / "bin/etcd", etcd)
    put(tmp_path / "bin/kube-apiserver", server)
    put(tmp_path / "bin/kubectl", install.kubectl_command())
    yield tmp_path
    # A block that failed leaves its servers behind.
    for path in tmp_path.rglob("*.pid"):
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(path.read_text("utf-8")), signal.SIGKILL)


def put(path: Path, command: Sequence[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)


def walked(home: Path) -> str:
    """Run the blocks of the page; return what a person sees."""
    text = (ROOT / "docs/multi-cluster.md").read_text("utf-8")
    script = "\n".join([PRELUDE, *blocks(text)])
    for port in PORTS:
        script = re.sub(rf"\b{port}\b", str(netports.reserve()), script)
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
