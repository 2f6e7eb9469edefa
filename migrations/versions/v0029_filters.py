"""filters of accounts"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    op.create_table(
        "filters",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("order", BIG_INTEGER, nullable=False),
        sa.Column("query", JSON_TYPE, nullable=False),
        sa.Column("action", JSON_TYPE, nullable=False),
        sa.Column("targets", JSON_TYPE, nullable=False),
        sa.Column("relays", sa.String(), nullable=True),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("meta_data", JSON_TYPE, nullable=True),
        sa.Column("match_count", BIG_INTEGER, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
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
