"""indexes of the rows that a process holds"""

import sqlalchemy as sa
from alembic import op

revision = "0059"
down_revision = "0058"

TABLES = (
    "tasks", "connectors", "webhook_lanes", "push_channels", "certificates", "lessons",
)  # fmt: skip


def upgrade() -> None:
    where = sa.text("holder IS NOT NULL")
    for table in TABLES:
        op.create_index(
            f"{table}_leased", table, ["holder"], sqlite_where=where, postgresql_where=where
        )


def downgrade() -> None:
    for table in TABLES:
        op.drop_index(f"{table}_leased", table)
