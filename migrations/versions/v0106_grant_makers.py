"""Add the administrator who shared a mailbox or diverted mail of an identity.

The share and the diversion end when this administrator loses the right to them.
"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0106"
down_revision = "0105"

MAKER_COLUMNS = {"mailbox_shares": "made_by", "identities": "diverted_by"}


def upgrade() -> None:
    for table, column in MAKER_COLUMNS.items():
        op.add_column(table, sa.Column(column, BIG_INTEGER, nullable=True))
        is_made = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            f"{table}_{column}", table, [column], sqlite_where=is_made, postgresql_where=is_made
        )


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a copy of the database instead")
