"""the end of a hold, and the mailbox of the copy after it"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0053"
down_revision = "0052"

HELD = sa.text("release_at IS NOT NULL")


def upgrade() -> None:
    op.add_column("submissions", sa.Column("release_at", UtcDateTime(), nullable=True))
    op.add_column("submissions", sa.Column("sent_mailbox_id", BIG_INTEGER, nullable=True))
    op.create_index(
        "submissions_held", "submissions", ["release_at", "id"],
        sqlite_where=HELD, postgresql_where=HELD,
    )  # fmt: skip


def downgrade() -> None:
    op.drop_index("submissions_held", table_name="submissions")
    op.drop_column("submissions", "sent_mailbox_id")
    op.drop_column("submissions", "release_at")
