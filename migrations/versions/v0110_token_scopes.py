"""Add the scopes that a sign-in limited its access token to; null: no limit.

The trigger that records changes of access tokens also watches the new column.
"""

import sqlalchemy as sa
from alembic import op

from models.auth import credential_changes
from models.store.columns import JSON_TYPE

revision = "0110"
down_revision = "0109"


def upgrade() -> None:
    op.add_column("access_tokens", sa.Column("scopes", JSON_TYPE, nullable=True))
    connection = op.get_bind()
    for statement in credential_changes.recreate_update_trigger_sql(
        connection.dialect.name, "access_tokens"
    ):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a copy of the database instead")
