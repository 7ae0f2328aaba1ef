"""Proves the wheel: what is in it, and that it works where no extra is installed.

Run as `python -m tests.support.wheel`. It makes an environment of its own, installs the
locked runtime and the wheel, imports every module, and asks for backends that are not
there, and for such whose extra is missing. Then it installs the extra `pkcs11`.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ALLOWED = ("bridge/", "bridge_file/", "bridge_pkcs11/", "meshca_bridge-")
_EXTRA_LIBRARIES = ("hvac", "python-pkcs11")
_IMPORT_ALL = """
import importlib, pkgutil, bridge, bridge_file
for package in (bridge, bridge_file):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name == "bridge.cli.__main__" or "bridge.testing" in module.name:
            continue  # one runs, the other is for plugin authors, who have pytest
        if ".migrations." in module.name:
            continue  # run by alembic, which gives them their context
        importlib.import_module(module.name)
for absent in ("hvac", "pkcs11", "pytest"):
    assert importlib.util.find_spec(absent) is None, absent
"""
_MISSING = """
import pathlib, sys
from bridge.errors import PluginError
from bridge.registry import EXTRAS, GROUP, load
def refusal(name):
    try:
        load(name)
    except PluginError as error:
        return str(error)
    raise SystemExit(f"{name} was loaded without its extra")

assert "install meshca-bridge[pkcs11]" in refusal("pkcs11"), refusal("pkcs11")
later = {name: extra for name, extra in EXTRAS.items() if name != "pkcs11"}
for name in later:
    assert f"no backend {name!r} is installed in this version" in refusal(name)
# Once it ships such a backend, its entry point is there without the extra.
site = pathlib.Path("site")
info = site / "later-1.dist-info"
info.mkdir(parents=True)
(info / "METADATA").write_text("Metadata-Version: 2.1\\nName: later\\nVersion: 1\\n")
lines = [f"[{GROUP}]"]
for name in later:
    module = "later_" + name.replace("-", "_")
    (site / f"{module}.py").write_text("import hvac\\n")
    lines.append(f"{name} = {module}:CA")
(info / "entry_points.txt").write_text("\\n".join(lines))
sys.path.insert(0, str(site))
for name, extra in later.items():
    assert f"install meshca-bridge[{extra}]" in refusal(name), refusal(name)
"""
_WITH_EXTRA = """
from bridge.registry import load
assert load("pkcs11").__name__ == "PKCS11CA"
"""


def main() -> int:
    """Build, install, import, ask; return the exit status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = _build(folder)
        _require_contents(wheel)
        python = _install(folder, wheel)
        for code in (_IMPORT_ALL, _MISSING):
            subprocess.run([python, "-P", "-c", code], check=True, cwd=folder)
        meshca = python.parent / "meshca"
        for command, wanted in (
            (["--help"], "hierarchy"),
            (["plugins"], "bridge_pkcs11:PKCS11CA"),
            (["demo"], ""),
        ):
            done = subprocess.run(
                [meshca, *command], check=True, cwd=folder, stdout=subprocess.PIPE
            )
            if wanted.encode() not in done.stdout:
                raise SystemExit(f"meshca {command[0]} does not show {wanted}")
        extra = str(ROOT / "deploy/locks/pkcs11.txt")
        _pip(python, "install", "--require-hashes", "-r", extra)
        subprocess.run([python, "-P", "-c", _WITH_EXTRA], check=True, cwd=folder)
    print("the wheel holds what it must, and works without extras")  # noqa: T201 - a program
    return 0


def _build(folder: Path) -> Path:
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    _pip(Path(sys.executable), "wheel", *options, str(ROOT))
    (wheel,) = folder.glob("*.whl")
    return wheel


def _require_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    foreign = [name for name in names if not name.startswith(_ALLOWED)]
    wanted = {
        "bridge/py.typed",
        "bridge/cli/__init__.py",
        "bridge_file/__init__.py",
        "bridge_pkcs11/__init__.py",
    }
    if foreign or not wanted <= {*names}:
        raise SystemExit(f"the wheel holds {foreign} and lacks {wanted - {*names}}")
    for library in _EXTRA_LIBRARIES:
        start = f"Requires-Dist: {library}"
        needed = [line for line in lines if line.startswith(start)]
        if not needed or not all("extra ==" in line for line in needed):
            raise SystemExit(f"the wheel needs {library} with no extra: {needed}")


def _install(folder: Path, wheel: Path) -> Path:
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    locked = str(ROOT / "deploy/locks/runtime.txt")
    _pip(python, "install", "--require-hashes", "-r", locked)
    _pip(python, "install", "--no-deps", str(wheel))
    return python


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "-q", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
