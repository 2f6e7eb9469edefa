"""what all servers of a store must have in common, and rows to test writing"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0055"
down_revision = "0054"


def upgrade() -> None:
    op.create_table(
        "store_facts",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_store_facts")),
    )
    op.create_table(
        "write_probes",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_write_probes")),
    )


def downgrade() -> None:
    op.drop_table("write_probes")
    op.drop_table("store_facts")
