"""names of certificates that ACME makes, whose they are, and when they are renewed"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import JSON_TYPE, UtcDateTime

revision = "0048"
down_revision = "0047"


def upgrade() -> None:
    for column in (
        sa.Column("acme_names", JSON_TYPE, nullable=False, server_default="[]"),
        sa.Column("acme_directory", sa.String(), nullable=True),
        sa.Column("acme_renew_at", UtcDateTime(), nullable=True),
    ):
        op.add_column("certificates", column)


def downgrade() -> None:
    with op.batch_alter_table("certificates") as table:
        for name in ("acme_renew_at", "acme_directory", "acme_names"):
            table.drop_column(name)
