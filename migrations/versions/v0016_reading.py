"""messages: what was found out about their senders, and what they answer"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE

revision = "0016"
down_revision = "0015"

COLUMNS = ("verification", "reference_id", "reference_action")


def upgrade() -> None:
    op.add_column("messages", sa.Column("verification", JSON_TYPE, nullable=True))
    op.add_column("messages", sa.Column("reference_id", BIG_INTEGER, nullable=True))
    op.add_column("messages", sa.Column("reference_action", sa.String(), nullable=True))


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_column("messages", name)
