"""senders, domains and stored messages of the steps of messages, with indexes"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0064"
down_revision = "0063"

TABLE = "message_steps"
COLUMNS = {
    "recipient_domain": sa.String(),
    "sender": sa.String(),
    "sender_compared": sa.String(),
    "sender_domain": sa.String(),
    "stored_message_id": BIG_INTEGER,
}
INDEXES = {
    "message_steps_of_recipient": "compared",
    "message_steps_of_recipient_domain": "recipient_domain",
    "message_steps_of_sender": "sender_compared",
    "message_steps_of_sender_domain": "sender_domain",
}


def upgrade() -> None:
    for name, kind in COLUMNS.items():
        op.add_column(TABLE, sa.Column(name, kind, nullable=True))
    for name, column in INDEXES.items():
        where = sa.text(f"{column} IS NOT NULL")
        columns = [column, "at", "id"]
        op.create_index(name, TABLE, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, TABLE)
    for name in COLUMNS:
        op.drop_column(TABLE, name)
