"""Proves the wheel: what is in it, and that it works where no extra is installed.

Run as `python -m tests.support.wheel`. It makes an environment of its own, installs the
locked runtime and the wheel, imports every module, and asks for backends that are not
there, and for such whose extra is missing. Then it installs the extras.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ALLOWED = (
    "bridge/",
    "bridge_file/",
    "bridge_pkcs11/",
    "bridge_vault/",
    "meshca_bridge-",
)
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
from bridge.errors import PluginError
from bridge.registry import EXTRAS, load
def refusal(name):
    try:
        load(name)
    except PluginError as error:
        return str(error)
    raise SystemExit(f"{name} was loaded without its extra")

for name, extra in EXTRAS.items():
    assert f"install meshca-bridge[{extra}]" in refusal(name), refusal(name)
"""
_WITH_EXTRA = """
from bridge.registry import load
for name, factory in (
    ("pkcs11", "PKCS11CA"),
    ("vault-pki", "VaultPKICA"),
    ("vault-transit", "VaultTransitCA"),
):
    assert load(name).__name__ == factory
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
            (["plugins"], "bridge_vault:VaultPKICA"),
            (["demo"], ""),
        ):
            done = subprocess.run(
                [meshca, *command], check=True, cwd=folder, stdout=subprocess.PIPE
            )
            if wanted.encode() not in done.stdout:
                raise SystemExit(f"meshca {command[0]} does not show {wanted}")
        for extra in ("pkcs11", "vault"):
            lock = str(ROOT / f"deploy/locks/{extra}.txt")
            _pip(python, "install", "--require-hashes", "-r", lock)
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
        "bridge_vault/__init__.py",
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
