"""Add the scopes that a sign-in limited its access token to; null: no limit.

The trigger that records changes of access tokens also watches the new column. API keys that are
limited to `authenticate`, which also checked passwords without a token, can call `passwordVerify`.
"""

import sqlalchemy as sa
from alembic import op

from models.auth import credential_changes
from models.store.columns import BIG_INTEGER, JSON_TYPE

revision = "0110"
down_revision = "0109"


def upgrade() -> None:
    op.add_column("access_tokens", sa.Column("scopes", JSON_TYPE, nullable=True))
    connection = op.get_bind()
    for statement in credential_changes.recreate_update_trigger_sql(
        connection.dialect.name, "access_tokens"
    ):
        connection.exec_driver_sql(statement)
    _allow_password_verify(connection)


def _allow_password_verify(connection: sa.Connection) -> None:
    """Add `passwordVerify` to the operations of the keys that are limited to `authenticate`."""
    key_id, operations = sa.column("id", BIG_INTEGER), sa.column("operations", JSON_TYPE)
    keys = sa.table("api_keys", key_id, operations)
    for row in connection.execute(sa.select(key_id, operations)).all():
        if "authenticate" in (row.operations or ()):
            names = sorted({*row.operations, "passwordVerify"})
            connection.execute(sa.update(keys).where(key_id == row.id).values(operations=names))


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a copy of the database instead")
