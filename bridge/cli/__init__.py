"""The command `meshca`: one module per command."""
