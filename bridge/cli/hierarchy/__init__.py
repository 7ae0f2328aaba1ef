"""`meshca hierarchy`: the chain above an issuing CA, made in a ceremony.

`bridge.cli` adds `app` to the command line and prints every `BridgeError`. Each
subcommand has a module of its own here.
"""

from bridge.cli.console import group
from bridge.cli.hierarchy import (
    crl,
    export,
    init,
    plan,
    sign,
    throwaway,
    transcript,
    verify,
)

app = group("Make the chain above an issuing CA.")


app.command("init")(init.init)
app.command("plan")(plan.plan)
app.command("rehearse")(sign.rehearse)
app.command("sign")(sign.sign)
app.command("cross-sign")(sign.cross_sign)
app.command("crl")(crl.crl)
app.command("verify")(verify.verify)
app.command("export")(export.export)
app.command("throwaway")(throwaway.throwaway)
app.add_typer(transcript.app, name="transcript")
app.command("digest")(transcript.digest)
