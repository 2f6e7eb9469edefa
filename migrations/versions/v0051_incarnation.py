"""damaged blobs are marked"""

import sqlalchemy as sa
from alembic import op

from models.columns import Instant

revision = "0051"
down_revision = "0050"


def upgrade() -> None:
    op.add_column("blobs", sa.Column("damaged_at", Instant(), nullable=True))


def downgrade() -> None:
    op.drop_column("blobs", "damaged_at")
