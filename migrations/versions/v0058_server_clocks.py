"""the clock of each server at its last heartbeat"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0058"
down_revision = "0057"


def upgrade() -> None:
    op.create_table(
        "server_clocks",
        sa.Column("server", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("ahead", BIG_INTEGER, nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("server", name=op.f("pk_server_clocks")),
    )


def downgrade() -> None:
    op.drop_table("server_clocks")
