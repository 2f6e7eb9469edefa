"""what scanners found in a message, and what they are to learn"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0030"
down_revision = "0029"


def upgrade() -> None:
    op.add_column("messages", sa.Column("spam", JSON_TYPE, nullable=True))
    op.create_table(
        "lessons",
        sa.Column("message_id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("spam", sa.Boolean(), nullable=False),
        sa.Column("turn", BIG_INTEGER, nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("attempts", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["messages.id"],
            name=op.f("fk_lessons_message_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("message_id", name=op.f("pk_lessons")),
    )
    op.create_index(op.f("ix_lessons_due_at"), "lessons", ["due_at"])


def downgrade() -> None:
    op.drop_table("lessons")
    op.drop_column("messages", "spam")
