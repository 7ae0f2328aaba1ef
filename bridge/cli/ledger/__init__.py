"""`meshca ledger`: show what was issued, to whom, and what was refused.

`bridge.cli` adds `app` to the command line and prints every `BridgeError`.
"""

from bridge.cli.console import group
from bridge.cli.ledger import journals, latch, reconcile, search

app = group("Verify, search and export the ledger.")
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
