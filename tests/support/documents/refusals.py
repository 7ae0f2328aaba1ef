"""The rules of refusals, from the code: every error that is raised, by its rule.

The source is read, not run. A rule is a literal, or a constant with a name in capitals,
in the call that makes the error, in a call of the function that makes it, or in the
function that raises it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from bridge import errors
from bridge.errors import BridgeError, OperatorError
from bridge.server.status import status_name
from tests.support.documents.markdown import code, table

_ROOT = Path(__file__).parents[3]
_NO_REFUSALS = {"_proto", "client", "cli"}
"""What is generated, and what only ever speaks to the user of a command."""
_ERRORS: dict[str, type[BridgeError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, BridgeError)
}
_RULE = re.compile(r"[a-z]+\.[a-z][a-z-]*")
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
        (errors.BackendError,),
    ),
    (
        "The ledger",
        """While the ledger cannot be written, nothing is signed. A caller is told only
`ledger: the CA cannot put issuances on record now`.""",
        (errors.LedgerError,),
    ),
    (
        "At the start, at a reload and in commands",
        """These never reach a caller of the CA. The text names the file or the key,
and what was expected.""",
        (errors.ConfigError, errors.PluginError),
    ),
)


def lines() -> Iterator[str]:
    """Yield the document: what callers see, what backends do, what operators mend."""
    modules: dict[tuple[str, str], dict[str, None]] = {}
    for rule, error, module in refusals():
        modules.setdefault((rule, error), {})[code(module)] = None
    for name, kind in _ERRORS.items():
        if issubclass(kind, errors.BackendError):
            modules.setdefault((kind.default_rule, name), {})["a plugin"] = None
    yield "Each error has a *rule*, a stable name for programs. The caller gets the"
    yield "status and `RULE: TEXT`; the ledger and the log have the rule and more"
    yield "details. The last column has the modules that raise the error."
    for title, text, kinds in _FAMILIES:
        yield from ("", f"## {title}", "", text, "")
        yield from table(
            ("Rule", "Error", "Istio", "Linkerd", "Module"),
            (
                (code(rule), code(error), *_statuses(rule, error), ", ".join(names))
                for (rule, error), names in sorted(modules.items())
                if issubclass(_ERRORS[error], kinds)
            ),
        )


def refusals() -> list[tuple[str, str, str]]:
    """Return each rule with an error and a module that raises it, in order."""
    trees = {
        ".".join(path.relative_to(_ROOT).with_suffix("").parts): ast.parse(
            path.read_text("utf-8")
        )
        for folder in ("bridge", "plugins")
        for path in (_ROOT / folder).rglob("*.py")
        if not _NO_REFUSALS & {*path.parts}
    }
    constants = {
        name: "".join(_rules(node.value, {}))
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        for name in map(_name, node.targets)
        if name.lstrip("_").isupper() and _rules(node.value, {})
    }
    return sorted(
        {
            (rule, error, name.removeprefix("plugins.").removesuffix(".__init__"))
            for name, tree in trees.items()
            for rule, error in _raised(tree, constants)
        }
    )


def _raised(tree: ast.Module, constants: dict[str, str]) -> Iterator[tuple[str, str]]:
    kinds = {name: name for name in _ERRORS}
    owners: dict[ast.AST, ast.FunctionDef] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.bases:
            kinds[node.name] = kinds.get(_name(node.bases[0]), "")
        elif isinstance(node, ast.FunctionDef):
            owners |= dict.fromkeys(ast.walk(node), node)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        error = kinds.get(_name(call.func), "")
        if error:
            for rule in _of_call(call, calls, owners, constants):
                yield rule or _ERRORS[error].default_rule, error


def _of_call(
    call: ast.Call,
    calls: list[ast.Call],
    owners: dict[ast.AST, ast.FunctionDef],
    constants: dict[str, str],
) -> set[str]:
    rule = {each.arg: each.value for each in call.keywords}.get("rule")
    if rule is None:
        return {""}
    if isinstance(rule, ast.Constant):
        return {str(rule.value)}
    if not isinstance(rule, ast.Name) or rule.id in constants:
        return _rules(rule, constants)
    owner = owners[call]
    if rule.id not in {each.arg for each in owner.args.args}:
        return _rules(owner, constants)
    above = [each for each in calls if _name(each.func) == owner.name]
    found = (
        _rules(each, constants) or _rules(owners[each], constants) for each in above
    )
    return {rule for rules in found for rule in rules}


def _rules(node: ast.AST, constants: dict[str, str]) -> set[str]:
    values = {
        constants.get(_name(each)) or getattr(each, "value", "")
        for each in ast.walk(node)
    }
    return {each for each in values if isinstance(each, str) and _RULE.fullmatch(each)}


def _name(node: ast.AST) -> str:
    return getattr(node, "attr", "") or getattr(node, "id", "")


def _statuses(rule: str, error: str) -> Iterator[str]:
    made = _ERRORS[error]("", rule=rule)
    is_told = not isinstance(made, OperatorError) or isinstance(
        made, errors.LedgerError
    )
    for front in ("istio", "linkerd"):
        yield status_name(made, front) if is_told else ""
