"""of whom a report of success is still owed"""

import sqlalchemy as sa
from alembic import op

revision = "0049"
down_revision = "0048"

OWED = sa.text("success_owed IS NOT NULL")


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("success_owed", sa.String(), nullable=True))
    op.create_index(
        "deliveries_owed",
        "deliveries",
        ["submission_id", "id"],
        sqlite_where=OWED,
        postgresql_where=OWED,
    )


def downgrade() -> None:
    op.drop_index("deliveries_owed", "deliveries")
    op.drop_column("deliveries", "success_owed")
