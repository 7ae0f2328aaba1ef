"""What each data plane's verifier accepts of a chain."""
