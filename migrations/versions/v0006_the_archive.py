"""the archive: which folder a deleted message lay in, and pages of them"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("messages", sa.Column("archived_mailbox_id", BIG_INTEGER, nullable=True))
    op.create_index(
        "messages_archived",
        "messages",
        ["user_id", "archived_at", "id"],
        unique=False,
        sqlite_where=sa.text("archived_at IS NOT NULL"),
        postgresql_where=sa.text("archived_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("messages_archived", table_name="messages")
    op.drop_column("messages", "archived_mailbox_id")
