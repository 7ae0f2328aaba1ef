"""`meshca serve`: run the bridge."""

from types import ModuleType
from typing import Annotated, Literal

import typer

from bridge.cli.console import ConfigOption
from bridge.config import ConfigText
from bridge.errors import BridgeError, ConfigError
from bridge.system.linux import poll_without_hops
from bridge.system.logs import set_up

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def serve(
    *,
    config: ConfigOption,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(help="What the log on stderr tells."),
    ] = "info",
) -> None:
    """Run the bridge until SIGTERM or SIGINT, then finish what is under way.

    SIGHUP, or a change of the file, takes the configuration anew.
    """
    set_up(log_level.upper())
    try:
        source = ConfigText.read(config)
    except ConfigError as error:
        raise _checks().with_other_problems(error, config) from error
    try:
        _serve(source, log_level)
    except BridgeError as error:
        raise _checks().with_ledger_problems(error, source.config) from error


def _serve(source: ConfigText, log_level: str) -> None:
    # Only what is needed: a parent of workers serves nothing itself, and the other
    # has to be ready soon.
    if source.config.workers:
        from bridge.process.parent import supervise  # noqa: PLC0415 - see above

        supervise(source, log_level=log_level.upper())
    else:
        poll_without_hops()
        from bridge.process.standalone import serve_alone  # noqa: PLC0415 - see above

        serve_alone(source)


def _checks() -> ModuleType:
    # Opens backends, and is needed after a failure only.
    from bridge.checks import findings  # noqa: PLC0415 - see above

    return findings
