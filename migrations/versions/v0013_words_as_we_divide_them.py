"""the text index takes words as we divide them, and is filled again"""

import sqlalchemy as sa
from alembic import op

from models.search import text_index

revision = "0013"
down_revision = "0012"

WAITING = "messages_waiting"


def _emptied() -> None:
    for statement in (*text_index.DROP_TABLE, *text_index.CREATE_TABLE[op.get_bind().dialect.name]):
        op.execute(statement)
    op.execute("UPDATE messages SET indexed = false WHERE indexed")


def upgrade() -> None:
    _emptied()
    op.create_index(
        WAITING,
        "messages",
        ["user_id", "indexed", "id"],
        unique=False,
        sqlite_where=sa.text("NOT indexed"),
        postgresql_where=sa.text("NOT indexed"),
    )


def downgrade() -> None:
    op.drop_index(WAITING, table_name="messages")
    _emptied()
