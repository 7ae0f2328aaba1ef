"""Check the options of a plugin, and name keys and files in its messages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from bridge.errors import ConfigError
from bridge.spi import PluginContext

_SHOWN_CHARACTERS = 80


def _in_base(path: Path, info: ValidationInfo) -> Path:
    if "\0" in str(path):
        raise ValueError("expected the name of a file, without NUL")
    return Path(info.context or "") / path


FileOption = Annotated[Path, Field(strict=False), AfterValidator(_in_base)]
"""The type of an option that names a file or a folder. A relative path is relative to
the configuration file; the value of the field is the path that can be opened."""


class PluginOptions(BaseModel):
    """The options of a plugin, `issuing_cas.<name>.options`. Subclass it.

    An unknown option is an error, and no value is converted: `"yes"` is no boolean.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Options = TypeVar("Options", bound=PluginOptions)


def parse_options(
    model: type[Options], options: Mapping[str, object], context: PluginContext
) -> Options:
    """Check the options of a plugin.

    Args:
        model: The options that there are.
        options: As the factory was given them.
        context: Names the issuing CA, and the folder of the configuration file.

    Raises:
        ConfigError: The message has a line for each problem. The value of an unknown
            option is not shown, as it may be a secret.
    """
    try:
        return model.model_validate(dict(options), context=context.base)
    except ValidationError as error:
        problems = [_problem(model, context, item) for item in error.errors()]
        raise ConfigError("\n".join(problems), rule="plugin.options") from None


def option_error(context: PluginContext, key: str, message: str) -> ConfigError:
    """Build the error of an option.

    Args:
        context: Names the issuing CA.
        key: The key under `issuing_cas.<name>`, such as `options.token` or `chain`.
        message: What was expected, and what was found.
    """
    return ConfigError(
        f"issuing_cas.{context.name}.{key}: {message}", rule="plugin.options"
    )


def _problem(model: type[PluginOptions], context: PluginContext, item: Any) -> str:
    where = f"issuing_cas.{context.name}.options"
    option = ".".join([where, *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        known = ", ".join(model.model_fields)
        return f"{option}: unknown option; expected one of {known}"
    if item["type"] == "missing":
        return f"{option}: expected a value (found nothing)"
    shown = repr(item["input"])
    if len(shown) > _SHOWN_CHARACTERS:
        shown = f"{shown[:_SHOWN_CHARACTERS]}..."
    told = item["msg"].removeprefix("Value error, ")
    return f"{option}: {told} (found {shown})"


def placed(error: ConfigError, keys: Mapping[Path, str]) -> ConfigError:
    """Put the key of the configuration before each line that begins with a file.

    Args:
        error: Its lines may begin with a path, `<path>:` or `<path>/...`.
        keys: The configuration key of each file or folder.
    """
    lines = [_placed(line, keys) for line in str(error).splitlines()]
    return ConfigError("\n".join(lines), rule=error.rule, detail=error.detail)


def _placed(line: str, keys: Mapping[Path, str]) -> str:
    for path, key in keys.items():
        if line.startswith((f"{path}:", f"{path}/")):
            return f"{key}: {line}"
    return line


def secret_line(data: bytes, source: Path, what: str) -> bytes:
    r"""Return the secret of a file, without one `\n` or `\r\n` at its end.

    Args:
        data: The content of the file.
        source: The file, for the message.
        what: What it holds, with its article, such as `a PIN`.

    Raises:
        ConfigError: Nothing is left.
    """
    secret = data.removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise ConfigError(
            f"{source}: expected {what} (found an empty file)", rule="file.secret"
        )
    return secret
