"""mailboxes: paths of any length, subscriptions without folders, metadata"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "mailbox_subscriptions",
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_mailbox_subscriptions_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("user_id", "digest", name=op.f("pk_mailbox_subscriptions")),
    )
    op.create_table(
        "mailbox_metadata",
        sa.Column("mailbox_id", BIG_INTEGER, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["mailbox_id"],
            ["mailboxes.id"],
            name=op.f("fk_mailbox_metadata_mailbox_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("mailbox_id", "key", name=op.f("pk_mailbox_metadata")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("uq_mailboxes_user_id_path", "mailboxes")
        op.execute("CREATE UNIQUE INDEX uq_mailboxes_path ON mailboxes (user_id, md5(path))")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("uq_mailboxes_path", "mailboxes")
        op.create_unique_constraint("uq_mailboxes_user_id_path", "mailboxes", ["user_id", "path"])
    op.drop_table("mailbox_metadata")
    op.drop_table("mailbox_subscriptions")
