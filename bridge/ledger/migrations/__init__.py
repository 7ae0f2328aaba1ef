"""Alembic migrations of the archive; `bridge.ledger.archive` runs them."""
