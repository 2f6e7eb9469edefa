"""Add the table of sort keys, for lists of messages by date, sender, subject or size."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Connection, String, column, insert, select, table

from mail.storage.message_sort_keys import SOURCE_COLUMNS, sort_key_columns
from models.messages import sort_keys
from models.store.columns import BIG_INTEGER, BYTEWISE_TEXT, UtcDateTime

revision = "0112"
down_revision = "0111"

BATCH_SIZE = 1000  # rows of one statement
TYPES = {
    "id": BIG_INTEGER,
    "mailbox_id": BIG_INTEGER,
    "size": BIG_INTEGER,
    "date": UtcDateTime(),
    "received_at": UtcDateTime(),
}
INDEXED_COLUMNS = {
    "message_sort_keys_by_date": "sent_at",
    "message_sort_keys_by_sender": "sender_key",
    "message_sort_keys_by_subject": "subject_key",
    "message_sort_keys_by_size": "size",
}


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":  # a running server of an older version
        connection.exec_driver_sql("LOCK TABLE messages IN SHARE ROW EXCLUSIVE MODE")
    keys_table = op.create_table(
        "message_sort_keys",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("mailbox_id", BIG_INTEGER, nullable=True),
        sa.Column("sent_at", UtcDateTime(), nullable=False),
        sa.Column("sender_key", BYTEWISE_TEXT, nullable=False),
        sa.Column("subject_key", BYTEWISE_TEXT, nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    _insert_sort_keys(connection, keys_table)
    for name, key in INDEXED_COLUMNS.items():  # after the rows, which is faster
        op.create_index(name, "message_sort_keys", ["mailbox_id", key, "id"])
    for statement in sort_keys.CREATE_TRIGGERS[connection.dialect.name]:
        connection.exec_driver_sql(statement)


def _insert_sort_keys(connection: Connection, keys_table: sa.Table) -> None:
    """Insert the sort keys of all messages, in batches of rows."""
    columns = {name: column(name, TYPES.get(name, String)) for name in sorted(SOURCE_COLUMNS)}
    messages = table("messages", *columns.values())
    batch = select(messages).order_by(messages.c.id).limit(BATCH_SIZE)
    last_id = -1
    while rows := connection.execute(batch.where(messages.c.id > last_id)).all():
        last_id = rows[-1].id
        connection.execute(insert(keys_table), [sort_key_columns(row._asdict()) for row in rows])


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a backup instead")
