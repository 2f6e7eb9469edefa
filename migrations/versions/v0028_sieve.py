"""scripts in Sieve, and what they remember"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, BYTEWISE_TEXT, JSON_TYPE, UtcDateTime

revision = "0028"
down_revision = "0027"
KINDS = ("VACATION", "DUPLICATE")


def upgrade() -> None:
    op.create_table(
        "sieve_scripts",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("name", BYTEWISE_TEXT, nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("requires", JSON_TYPE, nullable=False),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.Column("last_error_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_sieve_scripts_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sieve_scripts")),
        sa.UniqueConstraint("user_id", "name", name=op.f("uq_sieve_scripts_user_id_name")),
    )
    op.create_index(op.f("ix_sieve_scripts_user_id"), "sieve_scripts", ["user_id"])
    active = sa.text("active")
    op.create_index(
        "uq_sieve_scripts_active",
        "sieve_scripts",
        ["user_id"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )
    op.create_table(
        "sieve_memories",
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("kind", sa.Enum(*KINDS, native_enum=False, length=32), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("receipt", sa.String(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_sieve_memories_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "kind", "key", name=op.f("pk_sieve_memories")),
    )
    op.create_index(op.f("ix_sieve_memories_until"), "sieve_memories", ["until"])


def downgrade() -> None:
    op.drop_table("sieve_memories")
    op.drop_table("sieve_scripts")
