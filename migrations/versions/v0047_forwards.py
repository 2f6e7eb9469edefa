"""where messages were sent on to as they came"""

import sqlalchemy as sa
from alembic import op

from models.columns import Plain

revision = "0047"
down_revision = "0046"


def upgrade() -> None:
    op.add_column("messages", sa.Column("forwarded_to", Plain, nullable=True))


def downgrade() -> None:
    op.drop_column("messages", "forwarded_to")
