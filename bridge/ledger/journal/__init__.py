"""The journal: append-only segments on the signing path."""
