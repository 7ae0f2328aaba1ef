"""An index of the few rows that tell what is latched, stopped and cleared."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    rows = sa.text("kind IN ('cleared', 'latched', 'stopped')")
    op.create_index(
        "entries_latches",
        "entries",
        ["at"],
        sqlite_where=rows,
        postgresql_where=rows,
    )


def downgrade() -> None:
    """Refuse: a ledger only grows."""
    raise NotImplementedError
