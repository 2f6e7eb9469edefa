"""accounts and rewrites that send on what comes, and what labels of addresses do"""

import sqlalchemy as sa
from alembic import op

from models.columns import Big, Plain

revision = "0034"
down_revision = "0027"
ACTIONS = ("NONE", "SUBFOLDER", "SUBJECT")


def upgrade() -> None:
    for column in (
        sa.Column("targets", Plain, nullable=False, server_default="[]"),
        sa.Column("relays", sa.String(), nullable=True),
        sa.Column("encrypt_forwarded", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column(
            "delimiter_action",
            sa.Enum(*ACTIONS, native_enum=False, length=32),
            nullable=False,
            server_default="NONE",
        ),
        sa.Column("forwards", Big, nullable=True),
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


def downgrade() -> None:
    op.drop_column("recipient_rewrites", "outside")
    op.drop_index("ix_users_forwards", "users")
    for name in ("forwards", "delimiter_action", "encrypt_forwarded", "relays", "targets"):
        op.drop_column("users", name)
