"""when the newest change happened that is no longer kept"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import UtcDateTime

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.add_column("streams", sa.Column("gone_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("streams", "gone_at")
