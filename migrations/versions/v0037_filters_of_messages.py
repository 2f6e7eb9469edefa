"""which filters acted on a message"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import JSON_TYPE

revision = "0037"
down_revision = "0036"


def upgrade() -> None:
    op.add_column("messages", sa.Column("filters", JSON_TYPE, nullable=True))


def downgrade() -> None:
    op.drop_column("messages", "filters")
