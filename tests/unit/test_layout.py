import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from bridge import errors
from bridge.errors import BridgeError, ConfigError, OperatorError, PluginError
from bridge.server.status import BUG, status_of

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "bridge/_proto"
MODULES = sorted(
    path
    for folder in ("bridge", "plugins")
    for path in (ROOT / folder).rglob("*.py")
    if GENERATED not in path.parents
)
LONGEST_MODULE = 300
# The status table is the fronts', so these never reach a peer.
NOT_FOR_PEERS = {BridgeError, OperatorError, ConfigError, PluginError}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_modules_are_found() -> None:
    assert len(MODULES) > 50


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_one_thought(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONGEST_MODULE, "split it by thought"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_everything_public_says_what_it_does(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    scopes += [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    silent = [
        f"{node.name} (line {node.lineno})"
        for scope in scopes
        for node in scope.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_the_command_line_starts_without_the_server_and_the_database() -> None:
    code = (
        "import sys, bridge.cli; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'grpc', 'sqlalchemy', 'alembic', 'prometheus_client', 'bridge_file'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "kind",
    [
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, BridgeError) and found not in NOT_FOR_PEERS
    ],
)
def test_every_error_that_a_call_may_raise_has_a_status(
    kind: type[BridgeError],
) -> None:
    assert status_of(kind("text"))[0] is not BUG[0]


def test_an_error_of_a_plugins_own_has_the_status_of_its_class() -> None:
    class AcmeError(errors.BackendUnavailableError):
        pass

    assert (
        status_of(AcmeError("x"))[0]
        is status_of(errors.BackendUnavailableError("x"))[0]
    )


def test_each_test_names_a_module_that_is_there() -> None:
    # A test of something that was renamed would go on unseen.
    exempt = {"contract", "layout"}
    tested = {
        path.stem.removeprefix("test_")
        for path in Path(__file__).parent.glob("test_*.py")
    }
    present = {path.stem for path in MODULES} | exempt
    assert {one for one in tested if not one.startswith("cli_")} <= present
