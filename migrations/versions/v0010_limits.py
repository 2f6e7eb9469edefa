"""limits: until when refusals are told of"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import UtcDateTime

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column(
        "users", sa.Column("storage_told_until", UtcDateTime(timezone=True), nullable=True)
    )
    op.add_column(
        "users", sa.Column("received_told_until", UtcDateTime(timezone=True), nullable=True)
    )
    op.add_column("usages", sa.Column("told_until", UtcDateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("usages", "told_until")
    op.drop_column("users", "received_told_until")
    op.drop_column("users", "storage_told_until")
