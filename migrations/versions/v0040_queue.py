"""the queue: held, hurried, told of"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0040"
down_revision = "0039"
PLANNED = "next_at IS NOT NULL"
OPEN = "state IN ('PENDING', 'DEFERRED')"
INDEXES = {
    "deliveries_due": (
        f"{PLANNED} AND turn_at IS NULL AND held_at IS NULL",
        ["next_at", "id"],
    ),
    "deliveries_turn": ("turn_at IS NOT NULL", ["rank", "domain", "turn_at", "id"]),
    "deliveries_open": (OPEN, ["submission_id"]),
    "deliveries_held": ("held_at IS NOT NULL", ["submission_id"]),
    "deliveries_leased": ("lease IS NOT NULL", ["lease", "submission_id"]),
}
WAITING = "state IN ('SCHEDULED', 'HELD_FOR_UNDO', 'QUEUED', 'SENDING')"
PLACE = ["created_at", "id"]
MOMENTS = ("turn_at", "held_at")


def upgrade() -> None:
    op.drop_index("deliveries_due", "deliveries")
    for name in MOMENTS:
        op.add_column("deliveries", sa.Column(name, UtcDateTime(), nullable=True))
    op.add_column("deliveries", sa.Column("rank", BIG_INTEGER, nullable=False, server_default="1"))
    for name, (where, columns) in INDEXES.items():
        _index(name, "deliveries", columns, where)
    _index("submissions_waiting", "submissions", PLACE, WAITING)
    _index("submissions_waiting_of_user", "submissions", ["user_id", *PLACE], WAITING)


def _index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name in ("submissions_waiting_of_user", "submissions_waiting"):
        op.drop_index(name, "submissions")
    for name in INDEXES:
        op.drop_index(name, "deliveries")
    for name in ("rank", *MOMENTS):
        op.drop_column("deliveries", name)
    _index("deliveries_due", "deliveries", ["next_at", "id"], PLANNED)
