"""The plugin of docs/plugins.md: installed, loaded, and held to the conformance tests.

Its files are taken from the document. The daemon behind it is a part of the tests.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MOST_LINES = 40
CONFTEST = """
import pytest
from tests.support.parts.signing_daemon import SigningDaemon

@pytest.fixture
def daemon(tmp_path):
    daemon = SigningDaemon(tmp_path)
    yield daemon
    daemon.stop()
"""
NEED_CONTROL = {"stall", "away", "restart", "other_key", "other_version", "secrets"}


def files() -> dict[str, str]:
    """Return the files that the document shows, by name."""
    return dict(FILE.findall((ROOT / "docs/plugins.md").read_text("utf-8")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package of the document was installed into."""
    folder = tmp_path_factory.mktemp("plugin")
    for name, text in files().items():
        (folder / name).write_text(text)
    (folder / "conftest.py").write_text(CONFTEST)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", "site", "."]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return folder / "site"


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": f"{site}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def outcomes(site: Path, file: str) -> tuple[set[str], list[str]]:
    """Run a test file of the plugin; return what passed, and why others were skipped.

    Its own copy of the package is moved away: the installed one is tested.
    """
    source = site.parent / "acme_ca.py"
    if source.exists():
        source.rename(site.parent / "acme_ca.py.source")
    report = site.parent / f"{file}.xml"
    options = ("-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", ".")
    done = python(site, "-m", "pytest", *options, f"--junitxml={report}", file)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = ET.parse(report).getroot().iter("testcase")  # noqa: S314 - our own
    passed: set[str] = set()
    skipped: list[str] = []
    for case in cases:
        skip = case.find("skipped")
        if skip is None:
            passed.add(case.attrib["name"])
        else:
            skipped.append(skip.attrib["message"])
    return passed, skipped


def test_the_example_is_short() -> None:
    lines = [line for line in files()["acme_ca.py"].splitlines() if line.strip()]
    assert len(lines) <= MOST_LINES


def test_the_loader_finds_the_installed_plugin(site: Path) -> None:
    code = "from bridge.registry import load; print(load('acme').__qualname__)"
    assert python(site, "-P", "-c", code).stdout == "AcmeCA\n"


def test_the_command_lists_it(site: Path) -> None:
    listed = python(site, "-P", "-m", "bridge.cli", "plugins").stdout
    assert re.search(r"acme +.*acme-ca", listed), listed


def test_with_one_fixture_it_passes_all_that_needs_no_control(site: Path) -> None:
    passed, skipped = outcomes(site, "test_acme.py")
    assert len(passed) >= 17
    missing = {reason.partition("Backend.")[2].split()[0] for reason in skipped}
    assert missing == NEED_CONTROL


def test_with_control_of_the_part_it_passes_all(site: Path) -> None:
    passed, skipped = outcomes(site, "test_acme_faults.py")
    assert skipped == []
    assert len(passed) >= 26
