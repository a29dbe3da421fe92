"""What conversations were given at first sight."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pins",
        sa.Column("conversation", sa.String(64), nullable=False),
        sa.Column("pin", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("conversation", name="pk_pins"),
    )
    op.create_index("ix_pins_expires_at", "pins", ["expires_at"])


def downgrade() -> None:
    op.drop_table("pins")
