"""The commands of `meshca`, from the program's own help."""

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args, get_origin

from typer.main import get_command

from bridge.cli import app
from tests.support.documents.markdown import code, one_line, table


def lines() -> Iterator[str]:
    """Yield the document: an overview, then each command with its options."""
    found = [*_commands("meshca", get_command(app))]
    yield "Results go to stdout and messages to stderr. The exit status is 0, 1 if"
    yield "something is wrong, and 2 if the command line is."
    yield ""
    rows = ((f"[`{name}`](#{_anchor(name)})", _first(each)) for name, each in found)
    yield from table(("Command", "Does"), rows)
    for name, command in found:
        yield ""
        yield f"## {name}"
        yield ""
        yield f"`{_usage(name, command)}`"
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            yield ""
            yield one_line(paragraph)
        options = [_option(each) for each in command.params if not _is_help(each)]
        if options:
            yield ""
            yield from table(("Option", "Value", "Default", "Meaning"), options)


def _commands(above: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name in group.commands if hasattr(group, "commands") else ():
        yield from _one(f"{above} {name}", group.commands[name])
    if not getattr(group, "commands", None):
        for name in group.list_commands(None):
            yield from _one(f"{above} {name}", group.get_command(None, name))


def _one(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "list_commands"):
        yield from _commands(name, command)
    elif not command.hidden:
        yield name, command


def _usage(name: str, command: Any) -> str:
    parts = [name]
    for each in command.params:
        if each.param_type_name == "argument":
            parts.append(_value(each) or each.human_readable_name)
        elif each.required:
            parts.append(f"{_shortest(each)} {_value(each)}")
    return " ".join(parts) + " [OPTIONS]"


def _option(parameter: Any) -> tuple[str, str, str, str]:
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        names = [_value(parameter) or parameter.human_readable_name]
    value = "" if parameter.param_type_name == "argument" else _value(parameter)
    text = one_line(getattr(parameter, "help", None) or "")
    return ", ".join(map(code, names)), value, _default(parameter), text


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return code(shown)
    if value is None or value is False or value == "" or callable(value):
        return "`-`"
    return code(str(getattr(value, "value", value)))


def _value(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) is list:
        (annotation,) = get_args(annotation)
    choices: tuple[Any, ...] = get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        choices = tuple(each.value for each in annotation)
    if choices:
        return ", ".join(code(str(each)) for each in choices)
    return "NUMBER" if annotation in (int, float) else "TEXT"


def _first(command: Any) -> str:
    return one_line((command.help or "").partition("\n\n")[0])


def _shortest(parameter: Any) -> str:
    return str(min(parameter.opts, key=len))


def _is_help(parameter: Any) -> bool:
    return "--help" in parameter.opts


def _anchor(name: str) -> str:
    return name.replace(" ", "-")
