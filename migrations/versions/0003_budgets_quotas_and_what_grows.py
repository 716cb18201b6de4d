"""a batch's budget, an owner's quota, and indexes for what grows

Revision: 0003
Follows: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("budget", sa.Double(), nullable=True))
    op.add_column("batches", sa.Column("budget_spent_at", sa.Double(), nullable=True))
    op.add_column("owners", sa.Column("quota", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True))
    op.create_index("ix_jobs_owner", "jobs", ["owner", "id"], unique=False)
    op.create_index(
        "ix_attempts_strikes",
        "attempts",
        ["job_id", "worker", "segment_id"],
        unique=False,
        sqlite_where=sa.text("strike = 1"),
        postgresql_where=sa.text("strike"),
    )


def downgrade() -> None:
    op.drop_index("ix_attempts_strikes", table_name="attempts")
    op.drop_index("ix_jobs_owner", table_name="jobs")
    op.drop_column("owners", "quota")
    op.drop_column("batches", "budget_spent_at")
    op.drop_column("batches", "budget")
