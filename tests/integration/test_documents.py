"""The command blocks of the README, the tutorial and two guides, run as they stand.

A block runs in the order of its document, all of them in one shell, in a clean folder
that is the user's home. What stands in for the reader's machine:

* `make demo` installs into `.venv` and runs `meshca demo`. Here `.venv` is the
  environment of the tests, and only the second half is run.
* `make test` is the run that this test is part of.
* The ports of the documents are replaced by free ones.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from bridge_pkcs11 import csr
from bridge_pkcs11.options import PKCS11Options
from tests.support.harness.real_process import MESHCA
from tests.support.harness.terminal import Terminal
from tests.support.parts import netports
from tests.support.parts.tokens import TokenIssuer

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
PORTS = ("15012", "15013", "8080", "9990", "9991")
PRELUDE = """
set -eu
make() {
  case "$*" in
    demo) .venv/bin/meshca demo ;;
    test) echo "this is part of make test" ;;
    *) echo "make $*: nothing stands for it here" >&2; return 2 ;;
  esac
}
"""
INIT = "meshca config init"
OTHER_PORTS = "sed -i 's/1501[2]/15012/; s/999[0]/9990/' bridge.yaml"
"""Has the configuration that `config init` writes use free ports as well."""
SECONDS = 600


def blocks(document: str, language: str = "sh") -> list[str]:
    text = (ROOT / document).read_text("utf-8")
    found = [
        textwrap.dedent(match[3])
        for match in BLOCK.finditer(text)
        if match[2] == language
    ]
    assert found, f"{document} has no block of {language}"
    return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home with a clone in it that has been installed."""
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / ".venv").symlink_to(sys.prefix)
    yield tmp_path
    # A block that failed leaves its server behind.
    for file in tmp_path.rglob("bridge.pid"):
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(file.read_text("utf-8")), signal.SIGKILL)


def runnable(script: list[str]) -> str:
    text = "\n".join([PRELUDE, *script]).replace(INIT, f"{INIT}; {OTHER_PORTS}")
    for port in PORTS:
        text = re.sub(rf"\b{port}\b", str(netports.reserve()), text)
    return text


def run(home: Path, script: list[str]) -> str:
    """Run blocks in one shell; return what they print."""
    text = runnable(script)
    said = home / "said"
    with said.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            ["timeout", str(SECONDS), "bash", "-c", text],
            cwd=home / "clone",
            env={**os.environ, "HOME": str(home), "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    found = said.read_text("utf-8")
    log = "".join(file.read_text("utf-8") for file in home.rglob("bridge.log"))
    assert done.returncode == 0, f"{found[-4000:]}\n{log[-4000:]}"
    return found


def test_the_walk_of_the_readme_at_80_columns_loses_nothing(home: Path) -> None:
    script = [*blocks("README.md"), "wait"]
    terminal = Terminal(
        ["bash", "-c", runnable(script)], 80, home / "clone", {"HOME": str(home)}
    )
    status, said = terminal.end(SECONDS), terminal.said
    log = "".join(file.read_text("utf-8") for file in home.rglob("bridge.log"))
    assert status == 0, f"{said[-4000:]}\n{log[-4000:]}"
    assert "every check passed" in said
    assert "the ledger verifies" in said
    assert "\N{HORIZONTAL ELLIPSIS}" not in said
    assert "Traceback" not in said
    folder = home / "meshca-try"
    for words in (["check"], ["ledger", "search", "--namespace", "shop"]):
        # The same in a pipe, where each row is one line.
        done = subprocess.run(
            [MESHCA, *words, "-c", "bridge.yaml"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        cells = re.split(r"\s+", done.stdout.replace("\t-", ""))
        assert {cell for cell in cells if cell not in said} == set()
    (serial,) = {*re.findall(r"^serial +([0-9a-f]+)$", said, re.MULTILINE)}
    assert f", serial {serial}" in " ".join(said.split())


def test_the_blocks_of_the_tutorial_and_of_its_guides_run(home: Path) -> None:
    *tutorial, stop = blocks("docs/tutorial.md")
    guides = [
        *blocks("docs/how-to/rotate-file-key.md"),
        *blocks("docs/how-to/workers.md"),
    ]
    said = run(home, [*tutorial, *guides, stop])
    assert "web/chain.pem: OK" in said
    assert "PERMISSION_DENIED: rule.refuse" in said
    assert "refused, exit status 1" in said
    assert "Throwaway issuing CA eu 2" in said
    assert re.search(r'^meshca_worker_up\{worker="\w+"\} 1.0$', said, re.MULTILINE)
    assert ", 0 attempts without an outcome" in said.splitlines()[-1]


def test_the_page_of_hsms_names_options_that_there_are() -> None:
    (example,) = blocks("docs/hsm.md", "yaml")
    (issuing_ca,) = yaml.safe_load(example)["issuing_cas"].values()
    assert {*issuing_ca["options"]} <= {*PKCS11Options.model_fields}
    text = (ROOT / "docs/hsm.md").read_text("utf-8")
    command = re.search(r"python -m bridge_pkcs11\.csr (.*?)```", text, re.DOTALL)
    assert command is not None
    words = shlex.split(command[1].replace("\\\n", " "))
    csr.arguments().parse_args(words)


@pytest.mark.parametrize("mesh", ["istio", "linkerd"])
def test_the_configuration_of_the_guides_passes_check(home: Path, mesh: str) -> None:
    (text,) = blocks("docs/how-to/install.md", "yaml")
    configuration = yaml.safe_load(text)
    data_plane = "sidecar"
    if mesh == "linkerd":
        (text,) = blocks("docs/how-to/linkerd.md", "yaml")
        configuration |= yaml.safe_load(text)
        data_plane = "linkerd"
    TokenIssuer().write_jwks(home / "jwks.json")
    (home / "bridge.yaml").write_text(yaml.safe_dump(configuration), "utf-8")
    options = ["--trust-domain", "corp.example", "--data-plane", data_plane]
    for command in (
        ["hierarchy", "throwaway", "ca/", *options],
        ["check", "-c", "bridge.yaml"],
    ):
        done = subprocess.run(
            [MESHCA, *command], cwd=home, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
