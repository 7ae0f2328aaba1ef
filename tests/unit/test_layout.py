"""The rules for rooms, names and sizes: `docs/decisions`, *rooms and sizes*."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "bridge/_proto"
MODULES = sorted(
    path
    for folder in ("bridge", "plugins")
    for path in (ROOT / folder).rglob("*.py")
    if GENERATED not in path.parents
)
PACKAGES = sorted({path.parent for path in MODULES} - {ROOT / "plugins"})
TOP = {
    *("errors", "dns_names", "spiffe", "spi", "sdk", "registry", "testing"),
    *("system", "x509", "metrics", "resilience", "admin", "config", "dataplanes"),
    *("client", "kubernetes", "identity", "ledger", "policy", "hierarchy"),
    *("snapshot", "issuance"),
    *("checks", "server", "process", "cli", "_proto", "__init__"),
}
LONGEST_MODULE = 600
LONGEST_CLASS = 300
LONGEST_FUNCTION = 50
SHORTEST_MODULE = 60
MOST_MODULES = 14
SHORT = {
    "bridge/cli/check.py": "a command has a module of its own",
    "bridge/cli/doctor.py": "a command has a module of its own",
    "bridge/cli/hierarchy/verify.py": "a command has a module of its own",
    "bridge/cli/plugins.py": "a command has a module of its own",
    "bridge/cli/serve.py": "a command has a module of its own",
    "bridge/dns_names.py": "the lowest room: every other imports it",
    "bridge/issuance/call.py": "what the fronts and the one path hand each other",
    "bridge/process/watcher.py": "a process: it starts before its work is loaded",
    "bridge/resilience/budget.py": "the one value that each step of a call is given",
    "bridge/system/clock.py": "what is passed in wherever a time is asked for",
}
"""Modules below the floor, each with its reason."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines(node: ast.AST) -> int:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    return (node.end_lineno or node.lineno) - node.lineno + 1


def options(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a signature: a command's options are a list, not a thought."""
    return node.body[0].lineno - node.lineno


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of the bridge that a module imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)


def dotted(path: Path) -> str:
    source = ROOT / "plugins" if ROOT / "plugins" in path.parents else ROOT
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def public_classes(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def stem(module: str) -> str:
    """Return a name without a number or an ending, by which two would differ."""
    return re.sub(r"(?<=\w{3})(\d+|s|er|ers|ing)$", "", module)


def test_the_modules_are_found() -> None:
    assert len(MODULES) > 50


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_one_thing_to_look_up(path: Path) -> None:
    size = len(path.read_text("utf-8").splitlines())
    assert size <= LONGEST_MODULE, "split it where its users differ"
    face = path.stem in {"__init__", "__main__"} or "migrations" in path.parts
    assert size >= SHORTEST_MODULE or face or name(path) in SHORT, (
        "fold it into the module whose name a reader would look under"
    )


def test_each_exception_to_the_floor_is_needed() -> None:
    for path in SHORT:
        assert len((ROOT / path).read_text("utf-8").splitlines()) < SHORTEST_MODULE


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_class_and_no_function_is_too_long(path: Path) -> None:
    nodes = [*ast.walk(ast.parse(path.read_text("utf-8")))]
    long = [
        f"{node.name}: {lines(node)} lines"
        for node in nodes
        if (isinstance(node, ast.ClassDef) and lines(node) > LONGEST_CLASS)
        or (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and lines(node) - options(node) > LONGEST_FUNCTION
        )
    ]
    assert long == []


@pytest.mark.parametrize("package", PACKAGES, ids=name)
def test_a_package_holds_few_modules_whose_names_are_apart(package: Path) -> None:
    modules = sorted(
        path.stem for path in package.glob("*.py") if path.stem != "__init__"
    )
    assert len(modules) <= MOST_MODULES, "two packages, or one with an inner room"
    alike = defaultdict(list)
    for module in modules:
        alike[stem(module)].append(module)
    assert [names for names in alike.values() if len(names) > 1] == []


def test_the_top_of_the_bridge_holds_its_rooms_and_nothing_else() -> None:
    here = {
        path.stem
        for path in (ROOT / "bridge").iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    assert here == TOP


def test_a_public_class_has_a_name_of_its_own() -> None:
    where = defaultdict(list)
    for path in MODULES:
        for one in public_classes(path):
            where[one].append(name(path))
    assert {one: paths for one, paths in where.items() if len(paths) > 1} == {}


def test_no_two_modules_import_each_other() -> None:
    modules = {dotted(path): path for path in MODULES}
    needs = {
        module: {one for one in imports(path) if one in modules and one != module}
        for module, path in modules.items()
    }
    assert [
        (module, other)
        for module, others in needs.items()
        for other in others
        if module < other and module in needs[other]
    ] == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_hands_on_no_names_of_another(path: Path) -> None:
    if path.name == "__init__.py":
        return  # a package's face may
    tree = ast.parse(path.read_text("utf-8"))
    imported = {
        one.asname or one.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for one in node.names
    }
    listed = {
        constant.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(
            isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets
        )
        for constant in ast.walk(node.value)
        if isinstance(constant, ast.Constant)
    }
    # What a plugin imports: the contract with its errors.
    public = path == ROOT / "bridge/spi.py"
    assert public or imported & listed == set()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_class_reaches_into_the_private_names_of_another(path: Path) -> None:
    assert "SLF001" not in path.read_text("utf-8")


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


# What is tested across modules, or is no module.
ACROSS = {
    "test_contract": "the errors and the plugin contract",
    "test_layout": "this file",
    "test_documents": "the documents",
    "cli/test_commands": "what holds for all commands",
    "ledger/test_no_record_no_signature": "the procedure on the real ledger",
}


def test_each_test_names_a_module_that_is_there() -> None:
    # A test of something that was renamed would go on unseen.
    unit = Path(__file__).parent
    astray = [
        str(path.relative_to(ROOT))
        for path in sorted(unit.rglob("test_*.py"))
        if unit / "plugins" not in path.parents
        and str(path.relative_to(unit).with_suffix("")) not in ACROSS
        and not (
            ROOT
            / "bridge"
            / path.parent.relative_to(unit)
            / f"{path.stem.removeprefix('test_')}.py"
        ).exists()
    ]
    assert astray == []


@pytest.mark.xdist_group("layout")
def test_a_group_of_tests_has_one_worker(request: pytest.FixtureRequest) -> None:
    # Its tests share what they start. xdist tells a group by the end of a test's ID.
    if request.config.getoption("loadgroup", default=False):
        assert request.node.nodeid.endswith("@layout"), "pytest and xdist do not fit"
