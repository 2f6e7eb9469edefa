"""Add the indexes of message lists with a condition, and the table of keywords."""

import sqlalchemy as sa
from alembic import op

from models.messages import keywords
from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0104"
down_revision = "0103"

IS_TRUE = {"sqlite": "IS 1", "postgresql": "IS true"}  # as SQLAlchemy writes it in a select
FLAGS_BY_INDEX = {
    "flagged": "flagged",
    "answered": "answered",
    "draft": "draft",
    "marked_deleted": "deleted",
}


def upgrade() -> None:
    is_true = IS_TRUE[op.get_bind().dialect.name]
    _create_index("messages_unseen_of_user", "user_id, deleted_at, listed_at, id", "NOT seen")
    for name, flag in FLAGS_BY_INDEX.items():
        condition = f"{flag} {is_true}"
        _create_index(f"messages_{name}", "mailbox_id, listed_at, id", condition)
        _create_index(f"messages_{name}_of_user", "user_id, deleted_at, listed_at, id", condition)
    op.create_index("messages_by_message_id", "messages", ["user_id", "message_id"])
    op.create_table(
        "message_keywords",
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("keyword", sa.String(), nullable=False),
        sa.Column("listed_at", UtcDateTime(), nullable=False),
        sa.Column("id", BIG_INTEGER, nullable=False),
        sa.Column("mailbox_id", BIG_INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "keyword", "listed_at", "id"),
        sqlite_with_rowid=False,
    )
    columns = ["mailbox_id", "keyword", "listed_at", "id"]
    op.create_index("message_keywords_of_mailbox", "message_keywords", columns)
    for statement in keywords.CREATE_TRIGGERS[op.get_bind().dialect.name]:
        op.get_bind().exec_driver_sql(statement)


def _create_index(name: str, columns: str, condition: str) -> None:
    op.execute(f"CREATE INDEX {name} ON messages ({columns}) WHERE {condition}")


def downgrade() -> None:
    raise NotImplementedError("no older version: delete the database instead")
