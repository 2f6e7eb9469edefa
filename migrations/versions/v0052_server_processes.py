"""processes that work on the store, and leases that last as long as their heartbeats"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0052"
down_revision = "0051"

LEASED = ("deliveries", "tasks", "connectors", "webhook_lanes", "push_channels", "certificates")
WAITS = "next_at IS NOT NULL AND turn_at IS NULL AND held_at IS NULL"


def _due(condition: str) -> None:
    op.drop_index("deliveries_due", "deliveries")
    where = sa.text(condition)
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["next_at", "id"],
        sqlite_where=where,
        postgresql_where=where,
    )


def upgrade() -> None:
    op.create_table(
        "server_processes",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("server", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("exclusive", sa.String(), nullable=True),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", BIG_INTEGER, nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("boot", sa.String(), nullable=False),
        sa.Column("beats", BIG_INTEGER, nullable=False),
        sa.Column("beat_at", BIG_INTEGER, nullable=False),
        sa.Column("vault_keys", JSON_TYPE, nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_server_processes")),
    )
    op.create_index(op.f("ix_server_processes_server"), "server_processes", ["server"])
    # no server runs while the tables change, so nobody holds any of these
    op.execute(
        "UPDATE deliveries SET next_at = created_at, lease = NULL,"
        " turn_at = CASE WHEN held_at IS NULL THEN created_at END WHERE lease IS NOT NULL"
    )
    for table in LEASED:
        if table != "deliveries":
            op.execute(sa.text(f"UPDATE {table} SET lease = NULL WHERE lease IS NOT NULL"))  # noqa: S608
        op.drop_column(table, "leased_until")
        op.add_column(table, sa.Column("holder", BIG_INTEGER, nullable=True))
    op.add_column("lessons", sa.Column("holder", BIG_INTEGER, nullable=True))
    _due(f"{WAITS} AND lease IS NULL")
    op.execute("DELETE FROM compose_listeners")
    op.drop_index(op.f("ix_compose_listeners_seen_at"), "compose_listeners")
    op.drop_column("compose_listeners", "seen_at")
    op.add_column(
        "compose_listeners", sa.Column("holder", BIG_INTEGER, nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.execute("DELETE FROM compose_listeners")
    op.drop_column("compose_listeners", "holder")
    op.add_column(
        "compose_listeners",
        sa.Column("seen_at", UtcDateTime(), nullable=False, server_default="2025-01-01 00:00:00"),
    )
    op.create_index(op.f("ix_compose_listeners_seen_at"), "compose_listeners", ["seen_at"])
    _due(WAITS)
    op.drop_column("lessons", "holder")
    for table in LEASED:
        op.drop_column(table, "holder")
        op.add_column(table, sa.Column("leased_until", UtcDateTime(), nullable=True))
    op.drop_table("server_processes")
