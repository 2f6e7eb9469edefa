"""copies by rules are nobody's"""

from alembic import op

revision = "0035"
down_revision = "0034"


def upgrade() -> None:
    copies = "SELECT id FROM submissions WHERE copy_of IS NOT NULL"
    op.execute(f"UPDATE deliveries SET user_id = NULL WHERE submission_id IN ({copies})")  # noqa: S608
    op.execute("UPDATE submissions SET user_id = NULL WHERE copy_of IS NOT NULL")


def downgrade() -> None:
    pass  # whose they were is told by what was copied, if it is still there
