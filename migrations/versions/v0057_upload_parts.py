"""parts of unfinished uploads, which all servers of a store can read"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0057"
down_revision = "0056"


def upgrade() -> None:
    op.create_table(
        "upload_parts",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("upload_id", BIG_INTEGER, nullable=False),
        sa.Column("start", BIG_INTEGER, nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"],
            ["uploads.id"],
            name=op.f("fk_upload_parts_upload_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload_parts")),
        sa.UniqueConstraint("name", name=op.f("uq_upload_parts_name")),
        sa.UniqueConstraint("upload_id", "start", name=op.f("uq_upload_parts_upload_id_start")),
    )
    _restart_uploads()


def downgrade() -> None:
    _restart_uploads()
    op.drop_table("upload_parts")


def _restart_uploads() -> None:
    """Let clients send unfinished uploads again from their first byte, on PostgreSQL.

    Their bytes are where the other version does not look for them.
    """
    if op.get_bind().dialect.name == "postgresql":
        op.execute("UPDATE uploads SET received = 0 WHERE blob_name IS NULL")
