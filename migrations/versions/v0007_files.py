"""files, and links to them"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("content_type", sa.String(), nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("used_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_files_user_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["blob_id"], ["blobs.id"], name=op.f("fk_files_blob_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index("files_of_user", "files", ["user_id", "created_at", "id"], unique=False)
    for name in ("user_id", "blob_id", "used_at"):
        op.create_index(op.f(f"ix_files_{name}"), "files", [name], unique=False)
    op.create_table(
        "file_shares",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("file_id", BIG_INTEGER, nullable=False),
        sa.Column(
            "mode",
            sa.Enum(
                "ATTACH",
                "LINK",
                "SHARE_RO",
                "SHARE_RW",
                name="fileattachmentmode",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("blob_id", BIG_INTEGER, nullable=True),
        sa.Column("size", BIG_INTEGER, nullable=True),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("password", sa.String(), nullable=True),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("idle", sa.Boolean(), nullable=False),
        sa.Column("access_count", BIG_INTEGER, nullable=False),
        sa.Column("last_access_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_file_shares_user_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["file_id"], ["files.id"], name=op.f("fk_file_shares_file_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["blob_id"], ["blobs.id"], name=op.f("fk_file_shares_blob_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file_shares")),
    )
    for name in ("user_id", "file_id", "blob_id", "expires_at"):
        op.create_index(op.f(f"ix_file_shares_{name}"), "file_shares", [name], unique=False)


def downgrade() -> None:
    op.drop_table("file_shares")
    op.drop_table("files")
