"""audits: every version of a draft is copied, though it keeps its id"""

from alembic import op

revision = "0009"
down_revision = "0008"

NAME, TABLE = "audit_copies_of_origin", "audit_copies"


def upgrade() -> None:
    op.drop_index(NAME, table_name=TABLE)
    op.create_index(NAME, TABLE, ["audit_id", "origin_id", "digest"], unique=True)


def downgrade() -> None:
    op.drop_index(NAME, table_name=TABLE)
    op.create_index(NAME, TABLE, ["audit_id", "origin_id"], unique=True)
