"""Vectors of tool texts, so that a restart and a second replica need not embed them again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tool_vectors",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("encoder", sa.String(200), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("made_on", sa.Date(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_tool_vectors"),
    )
    op.create_index("ix_tool_vectors_made_on", "tool_vectors", ["made_on"])


def downgrade() -> None:
    op.drop_table("tool_vectors")
