"""encryption of what arrives"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    for table in ("users", "mailboxes"):
        asked = sa.Column(
            "encrypt_messages", sa.Boolean(), nullable=False, server_default=sa.false()
        )
        op.add_column(table, asked)


def downgrade() -> None:
    for table in ("mailboxes", "users"):
        op.drop_column(table, "encrypt_messages")
