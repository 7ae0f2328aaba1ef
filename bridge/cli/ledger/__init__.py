"""`meshca ledger`: show what was issued, to whom, and what was refused.

`bridge.cli` adds `app` to the command line and prints every `BridgeError`.
"""

import typer

from bridge.cli.console import CommandGroup
from bridge.cli.ledger import journals, latch, reconcile, search

app = typer.Typer(
    cls=CommandGroup,
    add_completion=False,
    rich_markup_mode=None,
    help="Verify, search and export the ledger.",
    no_args_is_help=True,
)
app.command("verify")(journals.verify_journals)
app.command("accept")(journals.accept_journal)
app.command(
    "attest",
    hidden=True,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(journals.attest_journal)
app.command("search")(search.search)
app.command("export")(search.export)
app.command("reconcile")(reconcile.reconcile)
app.add_typer(latch.app, name="latch")
