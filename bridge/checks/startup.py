"""What else is wrong, told with the first: an operator mends a file once."""

from collections.abc import Iterator
from pathlib import Path

from bridge.checks.ledger_storage import ledger_places
from bridge.config import BridgeConfig, rest
from bridge.config.error_recovery import STAND_IN
from bridge.errors import BridgeError, ConfigError
from bridge.snapshot.builder import Assembly
from bridge.system.clock import system_clock


def with_rest(error: ConfigError, path: Path) -> ConfigError:
    """Add what is wrong with options and files, as far as `path` can be read."""
    config = rest(path)
    return error if config is None else _with(error, [*_of_parts(config)])


def with_places(error: BridgeError, config: BridgeConfig) -> BridgeError:
    """Add what is wrong with the places of the ledger."""
    return _with(error, [*_of_places(config)])


def _with(error: BridgeError, further: list[str]) -> ConfigError:
    told = dict.fromkeys([*str(error).splitlines(), *further])
    return ConfigError("\n".join(told), detail=error.detail)


def _of_parts(config: BridgeConfig) -> Iterator[str]:
    lines: list[str] = []
    try:
        Assembly(config=config, clock=system_clock, warn=_be_quiet).snapshot().close()
    except BridgeError as error:
        lines += str(error).splitlines()
    lines += _of_places(config)
    yield from (line for line in lines if STAND_IN not in line)


def _of_places(config: BridgeConfig) -> Iterator[str]:
    for key, _, problem in ledger_places(config):
        if problem:
            yield f"{config.path}: {key}: {problem}"


def _be_quiet(_: str) -> None:
    # Warnings are for a configuration that can be read.
    return
