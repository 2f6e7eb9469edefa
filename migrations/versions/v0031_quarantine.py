"""mail that is held, and how often its owner hears of it"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0031"
down_revision = "0030"
ITEMS, BLOBS = "quarantine_items", "quarantine_blobs"


def upgrade() -> None:
    op.create_table(
        ITEMS,
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("domain_id", BIG_INTEGER, nullable=True),
        sa.Column("queue_id", sa.String(), nullable=False),
        sa.Column("receipt", sa.String(), nullable=False),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("recipient", sa.String(), nullable=False),
        sa.Column("from_name", sa.String(), nullable=True),
        sa.Column("from_address", sa.String(), nullable=True),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("symbols", JSON_TYPE, nullable=False),
        sa.Column("tests", sa.String(), nullable=False),
        sa.Column("virus", sa.String(), nullable=True),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.Column("structure", sa.LargeBinary(), nullable=False),
        sa.Column("attachments", JSON_TYPE, nullable=False),
        sa.Column("verification", JSON_TYPE, nullable=True),
        sa.Column("notified", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_quarantine_items_user_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["domain_id"],
            ["domains.id"],
            name=op.f("fk_quarantine_items_domain_id"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quarantine_items")),
    )
    for column in ("domain_id", "expires_at", "user_id"):
        op.create_index(op.f(f"ix_quarantine_items_{column}"), ITEMS, [column])
    op.create_index("quarantine_by_age", ITEMS, ["created_at", "id"])
    op.create_index("quarantine_of_user", ITEMS, ["user_id", "created_at", "id"])
    untold = sa.text("NOT notified")
    op.create_index(
        "quarantine_untold", ITEMS, ["created_at"], sqlite_where=untold, postgresql_where=untold
    )
    op.create_table(
        BLOBS,
        sa.Column("item_id", BIG_INTEGER, nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["item_id"],
            ["quarantine_items.id"],
            name=op.f("fk_quarantine_blobs_item_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["blob_id"],
            ["blobs.id"],
            name=op.f("fk_quarantine_blobs_blob_id"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("item_id", "blob_id", name=op.f("pk_quarantine_blobs")),
    )
    op.create_index(op.f("ix_quarantine_blobs_blob_id"), BLOBS, ["blob_id"])
    often = sa.Column(
        "quarantine_notification", sa.String(32), nullable=False, server_default="DAILY"
    )
    op.add_column("users", often)


def downgrade() -> None:
    op.drop_column("users", "quarantine_notification")
    op.drop_table(BLOBS)
    op.drop_table(ITEMS)
