"""changes of credentials, noted by triggers"""

import sqlalchemy as sa
from alembic import op

from models.auth.credential_changes import CREATE_TRIGGERS
from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0063"
down_revision = "0059"


def upgrade() -> None:
    op.create_table(
        "credential_changes",
        sa.Column("id", BIG_INTEGER, autoincrement=True, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("position", BIG_INTEGER, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credential_changes")),
    )
    op.create_index("ix_credential_changes_position", "credential_changes", ["position"])
    op.create_index("ix_credential_changes_at", "credential_changes", ["at"])
    for statement in CREATE_TRIGGERS[op.get_bind().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    dialect = op.get_bind().dialect.name
    for statement in CREATE_TRIGGERS[dialect]:
        words = statement.split()
        if words[:2] == ["CREATE", "TRIGGER"]:
            table = f" ON {words[words.index('ON') + 1]}" if dialect == "postgresql" else ""
            op.execute(f"DROP TRIGGER {words[2]}{table}")
    if dialect == "postgresql":
        op.execute("DROP FUNCTION note_credential_change()")
    op.drop_table("credential_changes")
