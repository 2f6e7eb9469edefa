"""senders whose mail is never spam, or always"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, BYTEWISE_TEXT, UtcDateTime

revision = "0024"
down_revision = "0023"
ACTIONS = ("ALLOW", "BLOCK")


def upgrade() -> None:
    op.create_table(
        "sender_rules",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("place", BYTEWISE_TEXT, nullable=False),
        sa.Column("pattern", BYTEWISE_TEXT, nullable=False),
        sa.Column("action", sa.Enum(*ACTIONS, native_enum=False, length=32), nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=True),
        sa.Column("domain_id", BIG_INTEGER, nullable=True),
        sa.Column("tag", sa.String(), nullable=True),
        sa.Column("comment", sa.String(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_sender_rules_user_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["domain_id"],
            ["domains.id"],
            name=op.f("fk_sender_rules_domain_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sender_rules")),
    )
    op.create_index("uq_sender_rules_place", "sender_rules", ["place", "pattern"], unique=True)
    op.create_index("ix_sender_rules_pattern", "sender_rules", ["pattern", "id"])
    op.create_index(op.f("ix_sender_rules_user_id"), "sender_rules", ["user_id"])
    op.create_index(op.f("ix_sender_rules_domain_id"), "sender_rules", ["domain_id"])


def downgrade() -> None:
    op.drop_table("sender_rules")
