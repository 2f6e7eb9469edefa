"""accounts as files"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.create_table(
        "exports",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("task_id", BIG_INTEGER, nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("settings", sa.Boolean(), nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("finished_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_exports_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exports")),
    )
    op.create_index("exports_of_user", "exports", ["user_id", "created_at", "id"], unique=False)
    for name in ("user_id", "expires_at"):
        op.create_index(op.f(f"ix_exports_{name}"), "exports", [name], unique=False)
    op.create_table(
        "export_pieces",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("export_id", BIG_INTEGER, nullable=False),
        sa.Column("part", BIG_INTEGER, nullable=False),
        sa.Column("position", BIG_INTEGER, nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["export_id"], ["exports.id"], name=op.f("fk_export_pieces_export_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["blob_id"], ["blobs.id"], name=op.f("fk_export_pieces_blob_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_export_pieces")),
    )  # fmt: skip
    op.create_index(
        "export_pieces_in_order", "export_pieces", ["export_id", "part", "position"], unique=True
    )
    op.create_index(op.f("ix_export_pieces_blob_id"), "export_pieces", ["blob_id"], unique=False)
    op.create_table(
        "import_archives",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("task_id", BIG_INTEGER, nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_import_archives_user_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["blob_id"], ["blobs.id"], name=op.f("fk_import_archives_blob_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_import_archives")),
    )
    for name in ("user_id", "task_id", "blob_id"):
        op.create_index(op.f(f"ix_import_archives_{name}"), "import_archives", [name], unique=False)


def downgrade() -> None:
    op.drop_table("import_archives")
    op.drop_table("export_pieces")
    op.drop_table("exports")
