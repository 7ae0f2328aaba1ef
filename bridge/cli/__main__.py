"""`python -m bridge.cli` is `meshca`."""

from bridge.cli import main

main()
