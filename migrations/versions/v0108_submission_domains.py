"""Add the domain of a submission, whose administrators see it if it has no user."""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0108"
down_revision = "0107"


def upgrade() -> None:
    op.add_column("submissions", sa.Column("domain_id", BIG_INTEGER, nullable=True))
    op.execute("UPDATE submissions SET domain_id = tenant_id")


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a copy of the database instead")
