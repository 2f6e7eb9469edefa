"""identities of senders, and forwards found without reading all addresses"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.create_table(
        "identities",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("local", sa.String(), nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column("shown", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("preferred", sa.Boolean(), nullable=False),
        sa.Column("reply_to", sa.String(), nullable=True),
        sa.Column("bcc", JSON_TYPE, nullable=False),
        sa.Column("signature_text", sa.String(), nullable=True),
        sa.Column("signature_html", sa.String(), nullable=True),
        sa.Column("mailbox_id", BIG_INTEGER, nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_identities_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identities")),
    )
    op.create_index(op.f("ix_identities_user_id"), "identities", ["user_id"])
    preferred = sa.text("preferred")
    op.create_index(
        "uq_identities_preferred",
        "identities",
        ["user_id"],
        unique=True,
        sqlite_where=preferred,
        postgresql_where=preferred,
    )
    forwards = sa.text("kind = 'FORWARD'")
    op.create_index(
        "ix_addresses_forwards",
        "addresses",
        ["id"],
        sqlite_where=forwards,
        postgresql_where=forwards,
    )


def downgrade() -> None:
    op.drop_index("ix_addresses_forwards", "addresses")
    op.drop_table("identities")
