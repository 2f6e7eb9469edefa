"""what is to be tried as soon as may be, and the turns of places"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import UtcDateTime

revision = "0050"
down_revision = "0049"


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("hurried_at", UtcDateTime(), nullable=True))
    op.create_table(
        "place_turns",
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("free_at", UtcDateTime(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("place", name=op.f("pk_place_turns")),
    )
    op.create_index(op.f("ix_place_turns_until"), "place_turns", ["until"])


def downgrade() -> None:
    op.drop_table("place_turns")
    op.drop_column("deliveries", "hurried_at")
