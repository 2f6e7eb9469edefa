"""who has been told to come again, and what accounts say about SMTP"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import JSON_TYPE, UtcDateTime

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    op.create_table(
        "greylisted",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_greylisted")),
    )
    op.create_index(op.f("ix_greylisted_until"), "greylisted", ["until"])
    for name in ("tls_enforce_in", "upload_sent_messages"):
        op.add_column(
            "users", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false())
        )
    op.add_column(
        "users", sa.Column("smtp_allowed_networks", JSON_TYPE, nullable=False, server_default="[]")
    )


def downgrade() -> None:
    op.drop_column("users", "smtp_allowed_networks")
    for name in ("upload_sent_messages", "tls_enforce_in"):
        op.drop_column("users", name)
    op.drop_index(op.f("ix_greylisted_until"), table_name="greylisted")
    op.drop_table("greylisted")
