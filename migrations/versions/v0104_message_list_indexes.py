"""Add the indexes of message lists with a condition."""

from alembic import op

revision = "0104"
down_revision = "0101"

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


def _create_index(name: str, columns: str, condition: str) -> None:
    op.execute(f"CREATE INDEX {name} ON messages ({columns}) WHERE {condition}")


def downgrade() -> None:
    for name in ("unseen_of_user", "by_message_id", *FLAGS_BY_INDEX):
        op.drop_index(f"messages_{name}", "messages")
    for name in FLAGS_BY_INDEX:
        op.drop_index(f"messages_{name}_of_user", "messages")
