"""push channels, and the key of the platform for web push"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0019"
down_revision = "0018"
KINDS = ("PUSHOVER", "WEB_PUSH", "HTTP")


def upgrade() -> None:
    op.create_table(
        "push_channels",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("kind", sa.Enum(*KINDS, native_enum=False, length=32), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=True),
        sa.Column("text", sa.String(), nullable=True),
        sa.Column("senders", JSON_TYPE, nullable=False),
        sa.Column("senders_regex", sa.String(), nullable=True),
        sa.Column("only_priority", sa.Boolean(), nullable=False),
        sa.Column("evaluate_priority", sa.Boolean(), nullable=False),
        sa.Column("mailboxes", JSON_TYPE, nullable=False),
        sa.Column("number", BIG_INTEGER, nullable=False),
        sa.Column("test_at", UtcDateTime(), nullable=True),
        sa.Column("failures", BIG_INTEGER, nullable=False),
        sa.Column("retry_at", UtcDateTime(), nullable=True),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.Column("last_push_at", UtcDateTime(), nullable=True),
        sa.Column("window_at", UtcDateTime(), nullable=True),
        sa.Column("pushed", BIG_INTEGER, nullable=False),
        sa.Column("lease", BIG_INTEGER, nullable=True),
        sa.Column("leased_until", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_push_channels_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_push_channels")),
    )
    op.create_index("push_channels_kind", "push_channels", ["user_id", "kind"], unique=True)
    for name in ("retry", "test"):
        there = sa.text(f"{name}_at IS NOT NULL")
        op.create_index(
            f"push_channels_{name}",
            "push_channels",
            [f"{name}_at"],
            sqlite_where=there,
            postgresql_where=there,
        )
    op.create_table(
        "push_keys",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("public", sa.String(), nullable=False),
        sa.Column("private", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_push_keys")),
    )


def downgrade() -> None:
    op.drop_table("push_keys")
    op.drop_table("push_channels")
