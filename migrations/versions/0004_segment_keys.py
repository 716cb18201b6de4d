"""what a segment of a parallel film is rendered from, and the key under which its frames may be used again

Revision: 0004
Follows: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("fresh", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("segments", sa.Column("part", sa.JSON(), nullable=True))
    op.add_column("segments", sa.Column("content_key", sa.String(length=64), nullable=True))
    op.create_index("ix_segments_content_key", "segments", ["content_key"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_segments_content_key", table_name="segments")
    op.drop_column("segments", "content_key")
    op.drop_column("segments", "part")
    op.drop_column("jobs", "fresh")
