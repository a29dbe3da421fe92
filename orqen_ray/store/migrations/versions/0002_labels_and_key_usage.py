"""Several credentials of one provider, told apart by a label; tokens used by each key and day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The default serves the rows that are there, and a gateway of the version before that still runs beside this one.
    label = sa.Column("label", sa.String(100), nullable=False, server_default="default")
    with op.batch_alter_table("provider_credentials") as table:
        table.add_column(label)
        table.drop_constraint("pk_provider_credentials", type_="primary")
        table.create_primary_key("pk_provider_credentials", ["provider", "label"])
    op.create_table(
        "key_usage",
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "day", name="pk_key_usage"),
    )
    op.create_index("ix_key_usage_day", "key_usage", ["day"])


def downgrade() -> None:
    op.drop_table("key_usage")
    op.execute("DELETE FROM provider_credentials WHERE label <> 'default'")
    with op.batch_alter_table("provider_credentials") as table:
        table.drop_constraint("pk_provider_credentials", type_="primary")
        table.create_primary_key("pk_provider_credentials", ["provider"])
        table.drop_column("label")
