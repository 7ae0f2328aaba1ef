"""Who asked, how that was verified, and the pod: the fields of rows of format 2.

No row is rewritten: what a row of format 1 says about its pod stays in its body.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; empty where a row, or a bridge of before, does not have them."""
    for name, kind in (
        ("requester", sa.Text()),
        ("verified_by", sa.String(16)),
        ("pod_namespace", sa.String(63)),
        ("pod_name", sa.String(253)),
        ("pod_uid", sa.String(128)),
        ("node", sa.String(253)),
    ):
        op.add_column(
            "entries", sa.Column(name, kind, nullable=False, server_default="")
        )


def downgrade() -> None:
    """Refuse: a ledger only grows."""
    raise NotImplementedError
