"""what the platform sends by itself"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0022"
down_revision = "0021"

STATES = (
    "SCHEDULED", "HELD_FOR_UNDO", "QUEUED", "SENDING", "SENT", "PARTIAL", "FAILED", "CANCELLED",
)  # fmt: skip
OF_ONE = ("PENDING", "DEFERRED", "DELIVERED", "RELAYED", "BOUNCED", "EXPIRED", "CANCELLED")
SENT = (
    "id", "user_id", "queue_id", "state", "message_id", "blob_id", "size", "envelope_from",
    "send_time", "undo_until", "created_at",
)  # fmt: skip
OF_DELIVERY = (
    "id", "user_id", "submission_id", "recipient", "domain", "state", "attempts", "next_at",
    "leased_until", "lease", "final_dot_at", "last_code", "last_response", "mx", "tls",
    "delivered_at", "created_at", "expires_at",
)  # fmt: skip
VIA = ("via", "secret")
TABLES = ("submissions", "deliveries", "submission_blobs")  # those that refer to others last


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _again(nobodys=True)
        return
    for table in TABLES[:2]:
        op.alter_column(table, "user_id", existing_type=BIG_INTEGER, nullable=True)
    for name in VIA:
        op.add_column("deliveries", sa.Column(name, sa.String(), nullable=True))
    op.add_column("submissions", sa.Column("tenant_id", BIG_INTEGER, nullable=True))
    op.execute(
        "UPDATE submissions SET tenant_id = "
        "(SELECT tenant_id FROM users WHERE users.id = submissions.user_id)"
    )
    op.alter_column("submissions", "tenant_id", existing_type=BIG_INTEGER, nullable=False)


def downgrade() -> None:
    op.execute("DELETE FROM submissions WHERE user_id IS NULL")
    if op.get_bind().dialect.name == "sqlite":
        _again(nobodys=False)
        return
    op.drop_column("submissions", "tenant_id")
    for name in reversed(VIA):
        op.drop_column("deliveries", name)
    for table in TABLES[:2]:
        op.alter_column(table, "user_id", existing_type=BIG_INTEGER, nullable=False)


def _again(*, nobodys: bool) -> None:
    """Make the tables anew: SQLite cannot allow null later, and a parent takes children along."""
    for table in TABLES:
        op.execute(f"CREATE TABLE old_{table} AS SELECT * FROM {table}")  # noqa: S608
    for table in reversed(TABLES):
        op.drop_table(table)
    _submissions(nobodys=nobodys)
    _deliveries(nobodys=nobodys)
    _blobs()
    names = ", ".join(SENT)
    if nobodys:
        op.execute(
            f"INSERT INTO submissions ({names}, tenant_id) SELECT {names}, "  # noqa: S608
            "(SELECT tenant_id FROM users WHERE users.id = old_submissions.user_id) "
            "FROM old_submissions"
        )
    else:
        op.execute(f"INSERT INTO submissions ({names}) SELECT {names} FROM old_submissions")  # noqa: S608
    names = ", ".join(OF_DELIVERY)
    op.execute(f"INSERT INTO deliveries ({names}) SELECT {names} FROM old_deliveries")  # noqa: S608
    op.execute("INSERT INTO submission_blobs SELECT * FROM old_submission_blobs")
    for table in TABLES:
        op.drop_table(f"old_{table}")


def _submissions(*, nobodys: bool) -> None:
    tenant = [sa.Column("tenant_id", BIG_INTEGER, nullable=False)] if nobodys else []
    op.create_table(
        "submissions",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=nobodys),
        *tenant,
        sa.Column("queue_id", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(*STATES, name="submissionstate", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("message_id", BIG_INTEGER, nullable=True),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.Column("envelope_from", sa.String(), nullable=False),
        sa.Column("send_time", UtcDateTime(timezone=True), nullable=True),
        sa.Column("undo_until", UtcDateTime(timezone=True), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["messages.id"],
            name=op.f("fk_submissions_message_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_submissions_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_submissions")),
        sa.UniqueConstraint("queue_id", name=op.f("uq_submissions_queue_id")),
    )
    op.create_index(op.f("ix_submissions_message_id"), "submissions", ["message_id"])
    op.create_index(op.f("ix_submissions_user_id"), "submissions", ["user_id"])
    op.create_index("submissions_of_user", "submissions", ["user_id", "created_at", "id"])


def _deliveries(*, nobodys: bool) -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=nobodys),
        sa.Column("submission_id", BIG_INTEGER, nullable=False),
        sa.Column("recipient", sa.String(), nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        *([sa.Column(name, sa.String(), nullable=True) for name in VIA] if nobodys else []),
        sa.Column(
            "state",
            sa.Enum(*OF_ONE, name="deliverystate", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("attempts", BIG_INTEGER, nullable=False),
        sa.Column("next_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("leased_until", UtcDateTime(timezone=True), nullable=True),
        sa.Column("lease", BIG_INTEGER, nullable=True),
        sa.Column("final_dot_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("last_code", BIG_INTEGER, nullable=True),
        sa.Column("last_response", sa.String(), nullable=True),
        sa.Column("mx", sa.String(), nullable=True),
        sa.Column("tls", sa.String(), nullable=True),
        sa.Column("delivered_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["submission_id"],
            ["submissions.id"],
            name=op.f("fk_deliveries_submission_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_deliveries_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    due = sa.text("next_at IS NOT NULL")
    op.create_index("deliveries_due", "deliveries", ["next_at", "id"], sqlite_where=due)
    op.create_index(op.f("ix_deliveries_submission_id"), "deliveries", ["submission_id"])
    op.create_index(op.f("ix_deliveries_user_id"), "deliveries", ["user_id"])


def _blobs() -> None:
    op.create_table(
        "submission_blobs",
        sa.Column("submission_id", BIG_INTEGER, nullable=False),
        sa.Column("blob_id", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["blob_id"], ["blobs.id"], name=op.f("fk_submission_blobs_blob_id"), ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(
            ["submission_id"],
            ["submissions.id"],
            name=op.f("fk_submission_blobs_submission_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("submission_id", "blob_id", name=op.f("pk_submission_blobs")),
    )
    op.create_index(op.f("ix_submission_blobs_blob_id"), "submission_blobs", ["blob_id"])
