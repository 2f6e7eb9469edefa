"""automatic answers, and who had one"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0026"
down_revision = "0025"
OWNERS = {"user_id": "users.id", "address_id": "addresses.id"}


def upgrade() -> None:
    op.create_table(
        "autoreplies",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=True),
        sa.Column("address_id", BIG_INTEGER, nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("html", sa.String(), nullable=False),
        sa.Column("internal_subject", sa.String(), nullable=True),
        sa.Column("internal_text", sa.String(), nullable=True),
        sa.Column("internal_html", sa.String(), nullable=True),
        sa.Column("starts_at", UtcDateTime(), nullable=True),
        sa.Column("ends_at", UtcDateTime(), nullable=True),
        sa.Column("interval", BIG_INTEGER, nullable=True),
        sa.Column("addresses", JSON_TYPE, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "(user_id IS NULL) <> (address_id IS NULL)", name=op.f("ck_autoreplies_one_owner")
        ),
        *(
            sa.ForeignKeyConstraint(
                [column], [target], name=op.f(f"fk_autoreplies_{column}"), ondelete="CASCADE"
            )
            for column, target in OWNERS.items()
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_autoreplies")),
    )
    for column in OWNERS:
        op.create_index(op.f(f"ix_autoreplies_{column}"), "autoreplies", [column])
    op.create_table(
        "autoreply_senders",
        sa.Column("autoreply_id", BIG_INTEGER, nullable=False),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["autoreply_id"],
            ["autoreplies.id"],
            name=op.f("fk_autoreply_senders_autoreply_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("autoreply_id", "sender", name=op.f("pk_autoreply_senders")),
    )
    op.create_index(op.f("ix_autoreply_senders_until"), "autoreply_senders", ["until"])


def downgrade() -> None:
    op.drop_table("autoreply_senders")
    op.drop_table("autoreplies")
