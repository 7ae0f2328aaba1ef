"""The commands of `meshca`, each imported when it is run; and how errors are shown."""

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from bridge import __version__
from bridge.cli.console import CommandGroup, complain
from bridge.errors import BridgeError
from bridge.registry import load_command, plugin_commands
from bridge.system.logs import silence_warnings

_COMMANDS = (
    *("demo", "config", "check", "doctor", "serve", "request", "token"),
    *("ledger", "bar", "hierarchy", "plugins"),
)
"""In the order of `--help`. Each is a module here with a Typer application `app`."""
_GROUPS = frozenset({"bar", "config", "hierarchy", "ledger"})
_UNBROKEN = 100_000
"""The width of help in a pipe: each paragraph is one line there."""


class PluginCommand(TyperGroup):
    """A command that a plugin brings. The plugin is imported when the command is run.

    Args:
        name: One of `plugin_commands()`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            name=name,
            rich_markup_mode=None,
            help=f"Commands of the backends of {name}.",
        )

    def load(self) -> TyperGroup:
        """Import the plugin, and return its command.

        Raises:
            PluginError: A library that it needs is not installed.
        """
        application = load_command(str(self.name))
        application.info.cls, application.rich_markup_mode = CommandGroup, None
        return get_group(application)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Make the context of the plugin's own command."""
        return self.load().make_context(info_name, args, parent, **extra)


class _Commands(CommandGroup):
    # Imports only the command that is run: `serve` has to be ready within two seconds.
    def list_commands(self, ctx: Any) -> list[str]:
        return [*_COMMANDS, *plugin_commands()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return PluginCommand(cmd_name) if cmd_name in plugin_commands() else None
        module = import_module(f"bridge.cli.{cmd_name}")
        make = get_group if cmd_name in _GROUPS else get_command
        command = make(module.app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # A mistyped name is compared with these, and they are not imported for that.
        self.commands = dict.fromkeys(self.list_commands(ctx), PluginCommand(""))
        return super().resolve_command(ctx, args)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        if not sys.stdout.isatty():
            extra["terminal_width"] = _UNBROKEN
        return super().make_context(info_name, args, parent, **extra)


app = typer.Typer(
    name="meshca",
    cls=_Commands,
    help="The external CA of a service mesh, under an enterprise chain.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:  # noqa: FBT001 - typer calls it so
    if value:
        typer.echo(f"meshca {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line; print an error as a sentence, with exit status 1."""
    # Errors are printed as a sentence; gRPC's own log lines are switched off.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    silence_warnings()
    try:
        app()
    except BridgeError as error:
        complain(str(error))
        if error.detail:
            complain(error.detail, style="dim")
        sys.exit(1)
    except OSError as error:
        # With the name of the file, the system's reason is enough.
        if error.filename is None:
            raise
        complain(f"{error.filename}: {error.strerror}")
        sys.exit(1)
