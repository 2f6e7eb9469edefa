"""windows to write in that were asked for, who hears of them, and files of drafts"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0045"
down_revision = "0044"


def upgrade() -> None:
    op.create_table(
        "compose_requests",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("identity_id", BIG_INTEGER, nullable=True),
        sa.Column("mailbox_id", BIG_INTEGER, nullable=True),
        sa.Column("written", JSON_TYPE, nullable=False),
        sa.Column("requested_by", sa.String(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        _belongs("compose_requests", "user_id", "users"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_compose_requests")),
    )
    _index("compose_requests", "user_id")
    _index("compose_requests", "expires_at")
    op.create_table(
        "compose_listeners",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        _belongs("compose_listeners", "user_id", "users"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_compose_listeners")),
    )
    _index("compose_listeners", "user_id")
    _index("compose_listeners", "seen_at")
    op.create_table(
        "draft_files",
        sa.Column("message_id", BIG_INTEGER, nullable=False),
        sa.Column("file_id", BIG_INTEGER, nullable=False),
        sa.Column("nth", BIG_INTEGER, nullable=False),
        _belongs("draft_files", "message_id", "messages"),
        _belongs("draft_files", "file_id", "files"),
        sa.PrimaryKeyConstraint("message_id", "file_id", name=op.f("pk_draft_files")),
    )
    _index("draft_files", "file_id")


def _belongs(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_{column}")
    return sa.ForeignKeyConstraint([column], [f"{to}.id"], name=name, ondelete="CASCADE")


def _index(table: str, column: str) -> None:
    op.create_index(op.f(f"ix_{table}_{column}"), table, [column])


def downgrade() -> None:
    for table in ("draft_files", "compose_listeners", "compose_requests"):
        op.drop_table(table)
