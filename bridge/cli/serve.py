"""`meshca serve`: run the bridge."""

from types import ModuleType
from typing import Annotated, Literal

import typer

from bridge.cli.console import ConfigOption
from bridge.config import ConfigText
from bridge.errors import BridgeError, ConfigError
from bridge.process import parent
from bridge.system.logs import set_up

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def serve(
    *,
    config: ConfigOption,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(help="The lowest level of log lines on stderr."),
    ] = "info",
) -> None:
    """Run the bridge until SIGTERM or SIGINT, then finish the requests in progress.

    A small parent process starts the workers that serve, as many as the key workers
    says. SIGHUP, or a change of the file, reloads the configuration: new workers take
    the place of the old ones. Either all of it takes effect or none.
    """
    set_up(log_level.upper())
    try:
        source = ConfigText.read(config)
    except ConfigError as error:
        raise _checks().with_other_problems(error, config) from error
    try:
        parent.serve(source, log_level=log_level.upper())
    except BridgeError as error:
        raise _checks().with_ledger_problems(error, source.config) from error


def _checks() -> ModuleType:
    # Opens backends, and is needed after a failure only.
    from bridge.checks import findings  # noqa: PLC0415 - see above

    return findings
