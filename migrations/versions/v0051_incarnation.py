"""the incarnation of the store, objects kept for a restore, and damaged blobs"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0051"
down_revision = "0050"


def upgrade() -> None:
    op.add_column("blobs", sa.Column("damaged_at", UtcDateTime(), nullable=True))
    op.create_table(
        "store_incarnation",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("store", sa.String(), nullable=False),
        sa.Column("number", BIG_INTEGER, nullable=False),
        sa.Column("base", BIG_INTEGER, nullable=False),
        sa.Column("beat", BIG_INTEGER, nullable=False),
        sa.Column("began_at", UtcDateTime(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_store_incarnation")),
    )
    op.create_table(
        "dropped_objects",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_dropped_objects")),
    )
    op.create_index(op.f("ix_dropped_objects_at"), "dropped_objects", ["at"])


def downgrade() -> None:
    op.drop_table("dropped_objects")
    op.drop_table("store_incarnation")
    op.drop_column("blobs", "damaged_at")
