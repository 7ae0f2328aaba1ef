"""The helper that builds Rust programs: once per state of the sources, or an error."""

from pathlib import Path

import pytest

from tests.support.parts import builds, install
from tests.support.parts.builds import BuildError

pytestmark = pytest.mark.interop

_GOOD = 'fn main() { println!("42") }\n'
_MANIFEST = (
    '[package]\nname = "tool"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n'
)
_LOCK = 'version = 4\n\n[[package]]\nname = "tool"\nversion = "0.0.0"\n'


@pytest.fixture
def crate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MESHCA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tool"
    (folder / "src").mkdir(parents=True)
    (folder / "Cargo.toml").write_text(_MANIFEST)
    (folder / "Cargo.lock").write_text(_LOCK)
    (folder / "src/main.rs").write_text(_GOOD)
    return folder


def _is_built_once_until_its_sources_change(crate: Path) -> None:
    first = builds.build_crate(crate)
    made = first.stat().st_mtime_ns
    assert builds.build_crate(crate) == first
    assert first.stat().st_mtime_ns == made
    (crate / "src/main.rs").write_text(_GOOD.replace("42", "43"))
    assert builds.build_crate(crate) != first
    assert not (crate / "target").exists()


def _is_an_error_each_time_where_it_does_not_compile(crate: Path) -> None:
    (crate / "src/main.rs").write_text(_GOOD.replace('"42"', "missing"))
    for _ in range(2):
        with pytest.raises(BuildError, match=r"(?s)cargo build in .* failed:.*error"):
            builds.build_crate(crate)


def _is_an_error_where_the_lock_does_not_fit(crate: Path) -> None:
    (crate / "Cargo.lock").write_text(_LOCK.replace("tool", "other"))
    with pytest.raises(BuildError, match=r"--locked"):
        builds.build_crate(crate)


def test_program_is_built_where_there_is_cargo(
    crate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each of these needs the compiler, and the rest of the tests does not.
    if builds.cargo() is not None:
        _is_an_error_where_the_lock_does_not_fit(crate)
        (crate / "Cargo.lock").write_text(_LOCK)
        _is_built_once_until_its_sources_change(crate)
        _is_an_error_each_time_where_it_does_not_compile(crate)
    monkeypatch.setenv("PATH", str(crate))
    with pytest.raises(BuildError, match=r"no 'cargo' on PATH: .* rtls alone"):
        builds.build_crate(crate)


def test_the_reason_is_told_where_there_is_no_cargo(
    crate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(crate))
    assert "rtls alone stands for rustls" in install.crates()
