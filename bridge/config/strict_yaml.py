"""A strict YAML reader: values are as a person sees them in the file.

PyYAML reads `no` as false, `0600` as 384 and `1:30` as 90, keeps the last of two equal
keys, and lets a few lines of aliases stand for a billion values. In a file of limits
each of these is a limit that nobody meant.

Source:
    YAML 1.2.2, section 10.3 (core schema), without octal and hexadecimal numbers.
"""

import re
from collections.abc import Callable
from typing import Any, ClassVar

import yaml

LONGEST_TEXT = 256 * 1024
"""Characters; a configuration has a few thousand."""
MOST_VALUES = 20_000
"""Keys and values, with every alias written out."""

_TAG = "tag:yaml.org,2002:"
_UNNAMED = 'in "<unicode string>", '
"""How PyYAML begins a place in a text; the message names the file itself."""


def parse_yaml(
    text: str, *, longest: int = LONGEST_TEXT, most: int = MOST_VALUES
) -> object:
    """Read one YAML document.

    Args:
        text: The document.
        longest: How many characters it may have.
        most: How many keys and values it may stand for.

    Returns:
        Strings, whole numbers, floats, booleans, None, and lists and dicts of them.
        What is not plainly a number in decimal, `true`, `false` or `null` is a string.

    Raises:
        ValueError: It is too long, is not YAML, is more than one document, writes a key
            twice, has a tag of another kind, or stands for too many values.
    """
    if len(text) > longest:
        raise ValueError(f"expected at most {longest} characters")
    try:
        return _read(text, most)
    except yaml.YAMLError as error:
        told = str(error).replace(_UNNAMED, "at ")
        raise ValueError(" ".join(told.split())) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read(text: str, most: int) -> object:
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}, set()) > most:
            raise ValueError(f"its aliases stand for more than {most} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[yaml.Node, int], within: set[yaml.Node]) -> int:
    # An alias is the same node as its anchor: each node is measured once, and counted
    # for each alias.
    if node in known:
        return known[node]
    if node in within:
        raise ValueError("an alias stands for something that holds it")
    if isinstance(node, yaml.ScalarNode):
        return 1
    within.add(node)
    below = node.value
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in below for part in pair]
    known[node] = 1 + sum(_size(part, known, within) for part in below)
    within.discard(node)
    return known[node]


class _StrictLoader(yaml.SafeLoader):
    # Both tables are this class's own: nothing is inherited from YAML 1.1.
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - as in the stubs
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002 - PyYAML fixes the signature
    ) -> dict[Any, Any]:
        seen: set[str] = set()
        if isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                text = str(key.value)
                if text in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{text!r} is written twice", key.start_mark
                    )
                seen.add(text)
        return super().construct_mapping(node, deep)


def _bool(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise ValueError("expected true or false") from None


def _null(_: str) -> None:
    return None


# Tag, what a plain scalar looks like, its first characters, and its meaning.
_SCALARS: tuple[tuple[str, str, str, Callable[[str], object]], ...] = (
    ("null", r"(?:~|null|Null|NULL)?", "~nN", _null),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF", _bool),
    ("int", r"-?(?:0|[1-9][0-9]*)", "-0123456789", int),
    (
        "float",
        r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?",
        "-0123456789",
        float,
    ),
)


def _scalar(read: Callable[[str], object]) -> Callable[[Any, yaml.ScalarNode], object]:
    return lambda loader, node: read(loader.construct_scalar(node))


for _name, _pattern, _first, _meaning in _SCALARS:
    _StrictLoader.add_implicit_resolver(
        f"{_TAG}{_name}",
        re.compile(rf"(?:{_pattern})\Z"),
        [*_first, *([""] if _name == "null" else [])],
    )
    _StrictLoader.add_constructor(f"{_TAG}{_name}", _scalar(_meaning))
_StrictLoader.add_constructor(f"{_TAG}str", _scalar(str))
for _name in ("seq", "map"):
    _StrictLoader.add_constructor(
        f"{_TAG}{_name}", yaml.SafeLoader.yaml_constructors[f"{_TAG}{_name}"]
    )
_StrictLoader.add_constructor(None, yaml.SafeLoader.yaml_constructors[None])
