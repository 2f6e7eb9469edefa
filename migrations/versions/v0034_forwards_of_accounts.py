"""accounts and rewrites that send on what comes, and what labels of addresses do"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0034"
down_revision = "0032"
COMPONENTS = ("MTA", "SPAM", "STORE")
ACTIONS = ("NONE", "SUBFOLDER", "SUBJECT")


def upgrade() -> None:
    for column in (
        sa.Column("targets", JSON_TYPE, nullable=False, server_default="[]"),
        sa.Column("relays", sa.String(), nullable=True),
        sa.Column("encrypt_forwarded", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column(
            "delimiter_action",
            sa.Enum(*ACTIONS, native_enum=False, length=32),
            nullable=False,
            server_default="NONE",
        ),
        sa.Column("forwards", BIG_INTEGER, nullable=True),
    ):
        op.add_column("users", column)
    outside = sa.Column("outside", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("recipient_rewrites", outside)
    forwarding = sa.text("targets <> '[]'")
    op.create_index(
        "ix_users_forwards",
        "users",
        ["id"],
        sqlite_where=forwarding,
        postgresql_where=forwarding,
    )
    _steps()


def _steps() -> None:
    op.create_table(
        "message_steps",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("queue_id", sa.String(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=True),
        sa.Column("component", sa.Enum(*COMPONENTS, native_enum=False, length=32), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("compared", sa.String(), nullable=True),
        sa.Column("domain_id", BIG_INTEGER, nullable=True),
        sa.Column("submission_id", BIG_INTEGER, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_message_steps")),
    )
    op.create_index(op.f("ix_message_steps_at"), "message_steps", ["at"])
    op.create_index("message_steps_of_queue_id", "message_steps", ["queue_id", "at", "id"])
    named = sa.text("message_id IS NOT NULL")
    op.create_index(
        "message_steps_of_message_id",
        "message_steps",
        ["message_id", "at", "id"],
        sqlite_where=named,
        postgresql_where=named,
    )


def downgrade() -> None:
    op.drop_table("message_steps")
    op.drop_column("recipient_rewrites", "outside")
    op.drop_index("ix_users_forwards", "users")
    for name in ("forwards", "delimiter_action", "encrypt_forwarded", "relays", "targets"):
        op.drop_column("users", name)
