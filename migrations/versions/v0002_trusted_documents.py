"""trusted documents"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import JSON_TYPE, UtcDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "documents",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("operations", JSON_TYPE, nullable=False),
        sa.Column("added_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_documents")),
    )


def downgrade() -> None:
    op.drop_table("documents")
