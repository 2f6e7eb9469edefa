"""of whom a report of success is still owed, and who is tried again"""

import sqlalchemy as sa
from alembic import op

revision = "0049"
down_revision = "0048"

LISTED = {
    "deliveries_owed": (["submission_id", "id"], "success_owed IS NOT NULL"),
    "deliveries_deferred": (["submission_id"], "state = 'DEFERRED'"),
}


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("success_owed", sa.String(), nullable=True))
    for name, (columns, condition) in LISTED.items():
        where = sa.text(condition)
        op.create_index(name, "deliveries", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name in LISTED:
        op.drop_index(name, "deliveries")
    op.drop_column("deliveries", "success_owed")
