"""where messages were sent on to, and what senders of held ones want to be told of"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import JSON_TYPE

revision = "0047"
down_revision = "0046"


def upgrade() -> None:
    op.add_column("messages", sa.Column("forwarded_to", JSON_TYPE, nullable=True))
    op.add_column("quarantine_items", sa.Column("wish", JSON_TYPE, nullable=True))


def downgrade() -> None:
    op.drop_column("quarantine_items", "wish")
    op.drop_column("messages", "forwarded_to")
