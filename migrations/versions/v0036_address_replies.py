"""addresses that forward answer by themselves"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0036"
down_revision = "0035"


def upgrade() -> None:
    for column in (
        sa.Column("answers", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("replied", BIG_INTEGER, nullable=False, server_default="0"),
        sa.Column("replied_until", UtcDateTime(), nullable=True),
    ):
        op.add_column("addresses", column)


def downgrade() -> None:
    for name in ("replied_until", "replied", "answers"):
        op.drop_column("addresses", name)
