"""key-value stores"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, BYTEWISE_TEXT, UtcDateTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "key_values",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("stream_id", BIG_INTEGER, nullable=False),
        sa.Column("store", sa.String(), nullable=False),
        sa.Column("key", BYTEWISE_TEXT, nullable=False),
        sa.Column("level", BYTEWISE_TEXT, nullable=False),
        sa.Column("version", BIG_INTEGER, nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("value", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["stream_id"], ["streams.id"], name=op.f("fk_key_values_stream_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_key_values")),
    )
    op.create_index(op.f("ix_key_values_expires_at"), "key_values", ["expires_at"], unique=False)
    op.create_index("ix_key_values_level", "key_values", ["stream_id", "store", "level", "key"])
    op.create_index("ix_key_values_size", "key_values", ["stream_id", "expires_at", "size"])
    op.create_index("uq_key_values_key", "key_values", ["stream_id", "store", "key"], unique=True)


def downgrade() -> None:
    op.drop_table("key_values")
