"""What the conversations of each tool set called, older ones counting less."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tool_use",
        sa.Column("tool_set", sa.String(64), nullable=False),
        sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("live", sa.Text(), nullable=False),
        sa.Column("published", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tool_set", name="pk_tool_use"),
    )
    op.create_index("ix_tool_use_as_of", "tool_use", ["as_of"])


def downgrade() -> None:
    op.drop_table("tool_use")
