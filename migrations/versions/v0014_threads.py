"""labels, saved searches, muted conversations, and what is snoozed"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0014"
down_revision = "0013"

BY = {"messages_by_age": "mailbox_id", "messages_unseen": "mailbox_id",
      "messages_of_user": "user_id"}  # fmt: skip
ONLY = {"messages_unseen": "NOT seen", "messages_of_user": "archived_at IS NULL"}
NEW = {
    "messages_to_wake": (["snoozed_until"], "snoozed_until IS NOT NULL"),
    "messages_snoozed": (
        ["user_id", "archived_at", "listed_at", "id"],
        "snoozed_until IS NOT NULL",
    ),
    "messages_with_keywords": (["user_id", "archived_at"], "keywords <> '[]'"),
}
MOMENT = UtcDateTime(timezone=True)


def _index(name: str, columns: list[str], only: str | None) -> None:
    where = sa.text(only) if only else None
    op.create_index(name, "messages", columns, sqlite_where=where, postgresql_where=where)


def _in_order_of(column: str) -> None:
    for name, first in BY.items():
        op.drop_index(name, table_name="messages")
        _index(name, [first, column, "id"], ONLY.get(name))


def upgrade() -> None:
    begin = "1970-01-01 00:00:00.000000"
    op.add_column("messages", sa.Column("listed_at", MOMENT, nullable=False, server_default=begin))
    op.add_column("messages", sa.Column("snoozed_until", MOMENT, nullable=True))
    op.add_column("messages", sa.Column("snoozed_from", BIG_INTEGER, nullable=True))
    op.add_column(
        "threads", sa.Column("muted", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.execute("UPDATE messages SET listed_at = received_at")
    _in_order_of("listed_at")
    for name, (columns, only) in NEW.items():
        _index(name, columns, only)
    op.create_table(
        "labels",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("keyword", sa.String(), nullable=False),
        sa.Column("folded", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("color", sa.String(), nullable=True),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_labels_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labels")),
        sa.UniqueConstraint("user_id", "folded", name=op.f("uq_labels_user_id_folded")),
    )
    op.create_index(op.f("ix_labels_user_id"), "labels", ["user_id"])
    op.create_table(
        "saved_searches",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("folded", sa.String(), nullable=False),
        sa.Column("filter", JSON_TYPE, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_saved_searches_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_searches")),
        sa.UniqueConstraint("user_id", "folded", name=op.f("uq_saved_searches_user_id_folded")),
    )
    op.create_index(op.f("ix_saved_searches_user_id"), "saved_searches", ["user_id"])


def downgrade() -> None:
    op.drop_table("saved_searches")
    op.drop_table("labels")
    for name in NEW:
        op.drop_index(name, table_name="messages")
    _in_order_of("received_at")
    op.drop_column("threads", "muted")
    for name in ("snoozed_from", "snoozed_until", "listed_at"):
        op.drop_column("messages", name)
