"""folders are shared with other accounts"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.create_table(
        "mailbox_shares",
        sa.Column("mailbox_id", BIG_INTEGER, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("owner_id", BIG_INTEGER, nullable=False),
        sa.Column("rights", BIG_INTEGER, nullable=False),
        sa.Column("since", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["mailbox_id"],
            ["mailboxes.id"],
            name=op.f("fk_mailbox_shares_mailbox_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_mailbox_shares_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("mailbox_id", "user_id", name=op.f("pk_mailbox_shares")),
    )
    op.create_index(
        "mailbox_shares_of_user", "mailbox_shares", ["user_id", "owner_id", "mailbox_id"]
    )


def downgrade() -> None:
    op.drop_index("mailbox_shares_of_user", table_name="mailbox_shares")
    op.drop_table("mailbox_shares")
