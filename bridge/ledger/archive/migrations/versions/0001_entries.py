"""The rows of the journals and how far each was read.

Written out, not taken from `archive.schema`: a migration makes what was
right on its day, also when the schema has moved on.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "entries",
        sa.Column("writer", sa.String(63), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("attempt", sa.String(32), nullable=False),
        sa.Column("request", sa.String(32), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("front", sa.String(16), nullable=False),
        sa.Column("cluster", sa.String(63), nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("issuing_ca", sa.String(63), nullable=False),
        sa.Column("serial", sa.String(64), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("names", sa.Text, nullable=False),
        sa.Column("not_before", sa.BigInteger),
        sa.Column("not_after", sa.BigInteger),
        sa.Column("tbs_sha256", sa.String(64), nullable=False),
        sa.Column("certificate_sha256", sa.String(64), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("rule", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_table(
        "positions",
        sa.Column("writer", sa.String(63), primary_key=True),
        sa.Column("segment", sa.Integer, nullable=False),
        sa.Column("byte_offset", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("head", sa.String(64), nullable=False),
    )
    op.create_index("entries_at", "entries", ["at"])
    for column in ("caller", "attempt", "serial", "key_sha256", "certificate_sha256"):
        start = sa.text(f"substr({column}, 1, 16)")
        present = sa.text(f"{column} <> ''")
        op.create_index(
            f"entries_{column}",
            "entries",
            ["caller", "at"] if column == "caller" else [start],
            sqlite_where=present,
            postgresql_where=present,
        )


def downgrade() -> None:
    """Refuse: a ledger only grows."""
    raise NotImplementedError
