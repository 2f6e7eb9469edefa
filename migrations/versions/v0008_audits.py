"""audits: copies of mail, who looked at them, and the bytes they need"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "audits",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("start", UtcDateTime(timezone=True), nullable=True),
        sa.Column("end", UtcDateTime(timezone=True), nullable=True),
        sa.Column("expires", UtcDateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("task_id", BIG_INTEGER, nullable=False),
        sa.Column("copied", sa.Boolean(), nullable=False),
        sa.Column("copies", BIG_INTEGER, nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("head", sa.String(), nullable=False),
        sa.Column("ended_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("removed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audits")),
    )
    for name in ("user_id", "expires"):
        op.create_index(op.f(f"ix_audits_{name}"), "audits", [name], unique=False)
    op.create_table(
        "audit_copies",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("audit_id", BIG_INTEGER, nullable=False),
        sa.Column("position", BIG_INTEGER, nullable=False),
        sa.Column("origin_id", BIG_INTEGER, nullable=False),
        sa.Column(
            "road",
            sa.Enum(
                "STORED",
                "ARCHIVED",
                "RECEIVED",
                "SAVED",
                "SENT",
                name="auditroad",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("mailbox_path", sa.String(), nullable=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.Column("received_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("date", UtcDateTime(timezone=True), nullable=True),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("from_name", sa.String(), nullable=True),
        sa.Column("from_address", sa.String(), nullable=True),
        sa.Column("to", JSON_TYPE, nullable=False),
        sa.Column("cc", JSON_TYPE, nullable=False),
        sa.Column("bcc", JSON_TYPE, nullable=False),
        sa.Column("message_id", sa.String(), nullable=True),
        sa.Column("preview", sa.String(), nullable=False),
        sa.Column("attachment_count", BIG_INTEGER, nullable=False),
        sa.Column("envelope_from", sa.String(), nullable=True),
        sa.Column("envelope_to", JSON_TYPE, nullable=False),
        sa.Column("copied_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["audit_id"], ["audits.id"], name=op.f("fk_audit_copies_audit_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_copies")),
        sa.UniqueConstraint("audit_id", "position", name=op.f("uq_audit_copies_audit_id_position")),
    )
    op.create_index(
        "audit_copies_of_origin", "audit_copies", ["audit_id", "origin_id"], unique=True
    )
    op.create_table(
        "audit_blobs",
        sa.Column("copy_id", BIG_INTEGER, nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["copy_id"],
            ["audit_copies.id"],
            name=op.f("fk_audit_blobs_copy_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["blob_id"], ["blobs.id"], name=op.f("fk_audit_blobs_blob_id"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("copy_id", "blob_id", name=op.f("pk_audit_blobs")),
    )
    op.create_index(op.f("ix_audit_blobs_blob_id"), "audit_blobs", ["blob_id"], unique=False)
    op.create_table(
        "audit_accesses",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("audit_id", BIG_INTEGER, nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("actor_id", BIG_INTEGER, nullable=True),
        sa.Column(
            "role",
            sa.Enum(
                "PUBLIC",
                "USER",
                "DOMAIN_ADMIN",
                "ADMIN",
                "ROOT",
                name="role",
                native_enum=False,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("ip", sa.String(), nullable=True),
        sa.Column("action", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["audit_id"],
            ["audits.id"],
            name=op.f("fk_audit_accesses_audit_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_accesses")),
    )
    op.create_index(
        "audit_accesses_of_audit", "audit_accesses", ["audit_id", "at", "id"], unique=False
    )


def downgrade() -> None:
    for name in ("audit_accesses", "audit_blobs", "audit_copies", "audits"):
        op.drop_table(name)
