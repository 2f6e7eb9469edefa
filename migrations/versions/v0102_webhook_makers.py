"""Add the maker of a webhook, with whose role or domain it ends."""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0102"
down_revision = "0101"


def upgrade() -> None:
    op.add_column("webhooks", sa.Column("made_by", BIG_INTEGER, nullable=True))


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a copy of the database instead")
