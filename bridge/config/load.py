"""Reads the configuration file.

All errors of a file are reported together, each with the file, the path of the key, the
value that was found and what was expected. A section that cannot be read hides only the
checks that need it.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from bridge.config.consistency import SECTIONS, consistency_problems
from bridge.config.diagnostics import Problem, known_keys, listed, problem_of, shown
from bridge.config.schema import BridgeConfig
from bridge.config.strict_yaml import parse_yaml
from bridge.config.types import ValidationState
from bridge.errors import ConfigError
from bridge.system.files import failure_text, read_public


@dataclass(frozen=True, slots=True)
class ConfigText:
    """A configuration, and the text that it was parsed from."""

    path: Path
    text: str
    config: BridgeConfig
    anchors: bytes | None = None
    """The content of `trust_anchors`, so that all processes use the same; None if it
    could not be read."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check the file at `path` once. Raises as `read` does."""
        text = _text(path)
        config = parse(text, path)
        anchors: bytes | None = None
        with suppress(ConfigError):
            anchors = read_public(config.trust_anchors)
        return cls(path, text, config, anchors)


@dataclass(frozen=True, slots=True)
class PartialConfig:
    """A configuration file section by section, and its errors."""

    config: BridgeConfig
    """Has the keys in `sections`, and no others may be used."""
    sections: frozenset[str]
    """The top-level keys that could be read."""
    problems: tuple[Problem, ...]
    """All errors that could be found; empty for a configuration that is good."""


def read(path: Path) -> BridgeConfig:
    """Read and check the file at `path`.

    Raises:
        ConfigError: The file is unreadable, is not YAML, writes a key twice, or has
            errors. The message lists every error, one a line.
    """
    return ConfigText.read(path).config


def parse(text: str, path: Path) -> BridgeConfig:
    """Check `text`, the content of the file at `path`. Raises as `read` does."""
    found = _sections(_tree(text, path), path)
    if found.problems:
        raise ConfigError(listed(path, found.problems))
    return found.config


def read_sections(path: Path) -> PartialConfig | None:
    """Read those sections of the file at `path` that have no errors.

    Returns:
        None if it is no file, or no mapping.
    """
    try:
        return _sections(_tree(_text(path), path), path)
    except ConfigError:
        return None


def _text(path: Path) -> str:
    try:
        # Line ends stay as they are: the text is compared with the file.
        return path.read_bytes().decode()
    except OSError as error:
        reason = failure_text(path, error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _tree(text: str, path: Path) -> Mapping[Any, Any]:
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: expected a mapping, found {shown(tree)}")
    return tree


def _sections(tree: Mapping[Any, Any], path: Path) -> PartialConfig:
    state = ValidationState(path)
    sections, problems = SECTIONS, list[Problem]()
    try:
        config = BridgeConfig.model_validate(tree, context=state)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        sections -= {str(item["loc"][0]) for item in error.errors()}
        config = BridgeConfig.model_construct(**state.sections)
        config.model_post_init(state)
    problems += consistency_problems(config, sections)
    return PartialConfig(config, sections, tuple(problems))


def _problem(item: Any) -> Problem:
    return problem_of(item, known_keys(BridgeConfig, item["loc"][:-1]))
