"""filters of accounts"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import Big, Instant, Plain

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    op.create_table(
        "filters",
        sa.Column("id", Big, autoincrement=False, nullable=False),
        sa.Column("user_id", Big, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("order", Big, nullable=False),
        sa.Column("query", Plain, nullable=False),
        sa.Column("action", Plain, nullable=False),
        sa.Column("targets", Plain, nullable=False),
        sa.Column("relays", sa.String(), nullable=True),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("meta_data", Plain, nullable=True),
        sa.Column("match_count", Big, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_filters_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_filters")),
    )
    op.create_index(op.f("ix_filters_user_id"), "filters", ["user_id"])
    op.create_index("ix_filters_order", "filters", ["user_id", "order", "id"])
    op.create_index("ix_filters_made", "filters", ["created_at", "id"])


def downgrade() -> None:
    op.drop_table("filters")
