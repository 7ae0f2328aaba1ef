"""Alembic migrations of the archive; `bridge.ledger.archive.archive` runs them."""
