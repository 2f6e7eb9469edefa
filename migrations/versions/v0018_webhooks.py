"""webhooks, and what waits for them"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0018"
down_revision = "0017"
STATES = ("WAITING", "DONE", "DEAD")


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=True),
        sa.Column("domain_id", BIG_INTEGER, nullable=True),
        sa.Column("types", JSON_TYPE, nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("old_secret", sa.String(), nullable=True),
        sa.Column("old_until", UtcDateTime(), nullable=True),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.Column("failures", BIG_INTEGER, nullable=False),
        sa.Column("retry_at", UtcDateTime(), nullable=True),
        sa.Column("last_delivery_at", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_webhooks_user_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["domain_id"], ["domains.id"], name=op.f("fk_webhooks_domain_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index(op.f("ix_webhooks_user_id"), "webhooks", ["user_id"])
    op.create_index(op.f("ix_webhooks_domain_id"), "webhooks", ["domain_id"])
    op.create_table(
        "webhook_feeds",
        sa.Column("stream_id", BIG_INTEGER, nullable=False),
        sa.Column("number", BIG_INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["stream_id"],
            ["streams.id"],
            name=op.f("fk_webhook_feeds_stream_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("stream_id", name=op.f("pk_webhook_feeds")),
    )
    op.create_table(
        "webhook_lanes",
        sa.Column("webhook_id", BIG_INTEGER, nullable=False),
        sa.Column("stream_id", BIG_INTEGER, nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("lease", BIG_INTEGER, nullable=True),
        sa.Column("leased_until", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["webhook_id"],
            ["webhooks.id"],
            name=op.f("fk_webhook_lanes_webhook_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("webhook_id", "stream_id", name=op.f("pk_webhook_lanes")),
    )
    op.create_index("webhook_lanes_due", "webhook_lanes", ["webhook_id", "due_at"])
    _deliveries()


def _deliveries() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("webhook_id", BIG_INTEGER, nullable=False),
        sa.Column("stream_id", BIG_INTEGER, nullable=False),
        sa.Column("number", BIG_INTEGER, nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("body", JSON_TYPE, nullable=False),
        sa.Column("state", sa.Enum(*STATES, native_enum=False, length=32), nullable=False),
        sa.Column("attempt", BIG_INTEGER, nullable=False),
        sa.Column("status", BIG_INTEGER, nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("duration", BIG_INTEGER, nullable=True),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("next_attempt_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["webhook_id"],
            ["webhooks.id"],
            name=op.f("fk_webhook_deliveries_webhook_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    waiting = sa.text("state = 'WAITING'")
    op.create_index(
        "webhook_deliveries_waiting",
        "webhook_deliveries",
        ["webhook_id", "stream_id", "number", "id"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
    op.create_index("webhook_deliveries_log", "webhook_deliveries", ["webhook_id", "id"])
    op.create_index("webhook_deliveries_ended", "webhook_deliveries", ["webhook_id", "state", "id"])


def downgrade() -> None:
    for table in ("webhook_deliveries", "webhook_lanes", "webhook_feeds", "webhooks"):
        op.drop_table(table)
