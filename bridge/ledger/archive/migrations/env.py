"""Runs the migrations on the connection that the archive hands over."""

from alembic import context

from bridge.ledger.archive.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata
)
with context.begin_transaction():
    context.run_migrations()
