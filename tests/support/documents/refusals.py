"""The rules of refusals, from the code: every error that is raised, by its rule.

The source is read, not run. A rule, or the text of an error, is often an argument of a
small function: then the calls of that function are looked at, as far as they stand in
the same module.
"""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bridge import errors
from bridge.errors import BackendError, BridgeError, OperatorError, PluginError
from bridge.server.status import status_name
from tests.support.documents.markdown import code, table

_ROOT = Path(__file__).parents[3]
_NO_REFUSALS = {_ROOT / "bridge" / name for name in ("_proto", "client", "cli")}
"""What is generated, and what only ever speaks to the user of a command."""
_ERRORS: dict[str, type[BridgeError]] = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BridgeError)
}
_UNKNOWN = "..."
_DEEPEST = 4
_NO_PEER = (errors.ConfigError, PluginError)


@dataclass(frozen=True, slots=True, order=True)
class Refusal:
    """One rule, and how an error with it is told."""

    rule: str
    error: str
    module: str
    text: str


@dataclass(slots=True)
class _Module:
    name: str
    tree: ast.Module
    constants: dict[str, str]
    owners: dict[ast.AST, ast.FunctionDef]
    errors: dict[str, str]
    """The name of each error, and whose status it has."""


_FAMILIES: tuple[tuple[str, str, tuple[type[BridgeError], ...]], ...] = (
    (
        "Refused calls",
        "The request cannot be granted as it stands. The same request fails again.",
        (errors.CallerError,),
    ),
    (
        "Try again",
        "Nothing is wrong with the request. Istio's client sends it again by itself.",
        (errors.OverloadedError, errors.ReviewError),
    ),
    (
        "The issuing CA",
        "The issuing CA gave no usable certificate. Its plugin may have more rules.",
        (BackendError,),
    ),
    (
        "The ledger",
        (
            "While the ledger cannot be written, nothing is signed. A caller is told "
            "only `ledger: the CA cannot put issuances on record now`."
        ),
        (errors.LedgerError,),
    ),
)


def lines() -> Iterator[str]:
    """Yield the document: what callers see, what backends do, what operators mend."""
    found = refusals()
    yield "Each error has a *rule*, a stable name for programs. The caller gets the"
    yield "status and `RULE: TEXT`; the ledger and the log have the rule and more"
    yield "details. `...` stands for a value that differs from call to call. The last"
    yield "column is the module that raises the error."
    for title, text, kinds in _FAMILIES:
        yield ""
        yield f"## {title}"
        yield ""
        yield text
        yield ""
        yield from table(
            ("Rule", "Text", "Istio", "Linkerd", "Module"),
            _rows(each for each in found if issubclass(_ERRORS[each.error], kinds)),
        )
    yield ""
    yield "## At the start, at a reload and in commands"
    yield ""
    yield "These never reach a caller of the CA. The text names the file or the key,"
    yield "and what was expected."
    yield ""
    others = [each for each in found if issubclass(_ERRORS[each.error], _NO_PEER)]
    yield from table(("Rule", "Module"), _modules(others))


def refusals() -> list[Refusal]:
    """Return every rule with the error and the texts that go with it, in order."""
    modules = [_read(path) for path in _sources()]
    shared = {
        name: value for module in modules for name, value in module.constants.items()
    }
    found = {
        Refusal(rule, error, module.name, text): None
        for module in modules
        for rule, error, text in _raised(module, shared)
    }
    known = {each.rule for each in found if _UNKNOWN not in each.rule}
    return [
        each
        for each in sorted(found)
        if each.rule in known or not _is_covered(each.rule, known)
    ]


def _is_covered(rule: str, known: Iterable[str]) -> bool:
    # `overload....` says nothing where the rules that begin so are there.
    prefix = rule.partition(_UNKNOWN)[0]
    return any(each.startswith(prefix) for each in known)


def _sources() -> Iterator[Path]:
    for folder in ("bridge", "plugins"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            if not _NO_REFUSALS & {*path.parents}:
                yield path


def _rows(found: Iterable[Refusal]) -> Iterator[tuple[str, ...]]:
    rows: dict[tuple[str, str, str], list[Refusal]] = {}
    for each in found:
        status = (_status(each, "istio"), _status(each, "linkerd"))
        rows.setdefault((each.rule, *status), []).append(each)
    for (rule, istio, linkerd), same in rows.items():
        texts = dict.fromkeys(_plain(each.text) for each in same)
        modules = dict.fromkeys(code(each.module) for each in same)
        yield code(rule), "<br>".join(texts), istio, linkerd, ", ".join(modules)


def _modules(found: Iterable[Refusal]) -> Iterator[tuple[str, str]]:
    modules: dict[str, dict[str, None]] = {}
    for each in found:
        modules.setdefault(each.rule, {})[code(each.module)] = None
    for rule, names in modules.items():
        yield code(rule), ", ".join(names)


def _status(refusal: Refusal, front: str) -> str:
    error = _ERRORS[refusal.error]("", rule=refusal.rule)
    if isinstance(error, OperatorError) and not isinstance(error, errors.LedgerError):
        return ""
    return status_name(error, front)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("<", r"\<")


def _read(path: Path) -> _Module:
    tree = ast.parse(path.read_text("utf-8"))
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                    constants[target.id] = node.value.value
    owners: dict[ast.AST, ast.FunctionDef] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            # The inner function comes later, and keeps what is in it.
            owners |= dict.fromkeys(ast.walk(function), function)
    known = {name: name for name in _ERRORS}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.bases:
            base = known.get(_last(node.bases[0]))
            if base:
                known[node.name] = base
    name = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
    name = name.removeprefix("plugins.").removesuffix(".__init__")
    return _Module(name, tree, constants, owners, known)


def _raised(module: _Module, shared: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        error = module.errors.get(_last(node.func), "")
        if not error or not node.args:
            continue
        named = {each.arg: each.value for each in node.keywords}
        owner = module.owners.get(node)
        values: list[ast.expr] = [named.get("rule", ast.Constant("")), node.args[0]]
        for rule, text in _Values(module, shared).together(values, owner):
            if not rule.startswith(_UNKNOWN):
                yield rule or _ERRORS[error].default_rule, error, text


def _last(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


class _Values:
    # What expressions may be, as texts.
    def __init__(self, module: _Module, shared: dict[str, str]) -> None:
        self._module = module
        self._shared = shared

    def together(
        self, nodes: list[ast.expr], owner: ast.FunctionDef | None, depth: int = 0
    ) -> list[tuple[str, ...]]:
        """Return the values that several expressions have at the same time."""
        bound = _loop(nodes, owner) or _chosen(nodes, owner)
        if bound:
            return [
                one
                for known in bound
                for one in product(*(self._of(node, known) for node in nodes))
            ]
        names = self._parameters(nodes, owner)
        if not names or owner is None or depth == _DEEPEST:
            return [*product(*(self._of(node, {}) for node in nodes))]
        found: list[tuple[str, ...]] = []
        for call in self._calls(owner.name):
            given = [_argument(call, owner, name) for name in names]
            above = self._module.owners.get(call)
            for values in self.together(given, above, depth + 1):
                known = dict(zip(names, values, strict=True))
                found += product(*(self._of(node, known) for node in nodes))
        return found or [*product(*(self._of(node, {}) for node in nodes))]

    def _parameters(
        self, nodes: list[ast.expr], owner: ast.FunctionDef | None
    ) -> list[str]:
        if owner is None:
            return []
        listed = {each.arg for each in (*owner.args.args, *owner.args.kwonlyargs)}
        used = [
            each.id
            for node in nodes
            for each in ast.walk(node)
            if isinstance(each, ast.Name) and each.id in listed
        ]
        return [*dict.fromkeys(used)]

    def _calls(self, name: str) -> list[ast.Call]:
        return [
            node
            for node in ast.walk(self._module.tree)
            if isinstance(node, ast.Call) and _last(node.func) == name
        ]

    def _of(self, node: ast.expr, known: dict[str, str]) -> list[str]:
        match node:
            case ast.Constant():
                found = [str(node.value)]
            case ast.IfExp():
                found = self._of(node.body, known) + self._of(node.orelse, known)
            case ast.BinOp(op=ast.Add()):
                found = self._joined([node.left, node.right], known)
            case ast.JoinedStr():
                found = self._joined(node.values, known)
            case ast.FormattedValue():
                found = self._of(node.value, known)
            case ast.Subscript():
                found = self._of_choice(node, known)
            case _:
                found = self._named(node, known)
        return found

    def _joined(self, nodes: list[ast.expr], known: dict[str, str]) -> list[str]:
        parts = [self._of(each, known) for each in nodes]
        return ["".join(each) for each in product(*parts)]

    def _of_choice(self, node: ast.Subscript, known: dict[str, str]) -> list[str]:
        texts = _choices(self._module.tree, _last(node.value))
        value = texts.get(known.get(_last(node.slice), ""))
        return [_UNKNOWN] if value is None else self._of(value, known)

    def _named(self, node: ast.expr, known: dict[str, str]) -> list[str]:
        name = _last(node)
        if isinstance(node, ast.Name) and name in known:
            return [known[name]]
        if isinstance(node, ast.Name) and name.lstrip("_").isupper():
            value = self._module.constants.get(name) or self._shared.get(name)
            return [value or _UNKNOWN]
        if isinstance(node, ast.Call) and _last(node.func) == "replace":
            return [each.replace("_", "-") for each in self._of(_receiver(node), known)]
        return [_UNKNOWN]


def _choices(tree: ast.AST, name: str) -> dict[str, ast.expr]:
    # The texts of `name = {"a": "one text", "b": "another"}`.
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        if _last(node.targets[0]) == name:
            return {
                key.value: value
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
    return {}


def _chosen(
    nodes: list[ast.expr], owner: ast.FunctionDef | None
) -> list[dict[str, str]]:
    # Where a text is `texts[name]`, the name is one of the keys of `texts`.
    for node in nodes:
        if owner is not None and isinstance(node, ast.Subscript):
            name = _last(node.slice)
            return [{name: key} for key in _choices(owner, _last(node.value)) if name]
    return []


def _loop(nodes: list[ast.expr], owner: ast.FunctionDef | None) -> list[dict[str, str]]:
    # What the names of `for a, b in (("x", "y"), ...)` are, time after time.
    used = {_last(each) for node in nodes for each in ast.walk(node) if _is_name(each)}
    for found in ast.walk(owner) if owner is not None else ():
        if not isinstance(found, ast.For) or not isinstance(found.iter, ast.Tuple):
            continue
        names = [_last(each) for each in getattr(found.target, "elts", [found.target])]
        if used & {*names}:
            return [
                {
                    name: str(value.value)
                    for name, value in zip(
                        names, getattr(each, "elts", [each]), strict=True
                    )
                    if isinstance(value, ast.Constant)
                }
                for each in found.iter.elts
            ]
    return []


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


def _receiver(node: ast.Call) -> ast.expr:
    return node.func.value if isinstance(node.func, ast.Attribute) else node.func


def _argument(call: ast.Call, function: ast.FunctionDef, name: str) -> ast.expr:
    for each in call.keywords:
        if each.arg == name:
            return each.value
    listed = [each.arg for each in function.args.args]
    if listed and listed[0] in ("self", "cls"):
        listed = listed[1:]
    if name in listed and listed.index(name) < len(call.args):
        found: Any = call.args[listed.index(name)]
        return ast.Name(_UNKNOWN) if isinstance(found, ast.Starred) else found
    return _default(function, name)


def _default(function: ast.FunctionDef, name: str) -> ast.expr:
    arguments = function.args
    plain = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    for each, value in zip(plain, arguments.defaults, strict=True):
        if each.arg == name:
            return value
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if each.arg == name and default is not None:
            return default
    return ast.Name(_UNKNOWN)
