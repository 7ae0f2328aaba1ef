"""`meshca serve`: run the bridge."""

import logging
import signal
import threading
from typing import Annotated, Literal

import typer

from bridge.cli.console import ConfigOption
from bridge.config import read
from bridge.server.process import Process, harden

app = typer.Typer()


@app.command()
def serve(
    *,
    config: ConfigOption,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(help="What the log on stderr tells."),
    ] = "info",
) -> None:
    """Run the bridge until SIGTERM or SIGINT, then finish what is under way."""
    logging.basicConfig(
        level=log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    harden()
    asked_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_stop.set())
    process = Process(read(config), warn=logging.getLogger("bridge").warning)
    try:
        process.start()
        asked_to_stop.wait()
    finally:
        process.stop()
