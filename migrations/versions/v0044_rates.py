"""how much may be sent in a time"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0044"
down_revision = "0043"


def _one_of(*names: str) -> sa.Enum:
    return sa.Enum(*names, native_enum=False, length=32)


def _frame() -> sa.Column[str]:
    return sa.Column("frame", _one_of("SECOND", "MINUTE", "HOUR", "DAY"), nullable=False)


def _belongs(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_{column}")
    return sa.ForeignKeyConstraint([column], [f"{to}.id"], name=name, ondelete="CASCADE")


def upgrade() -> None:
    op.create_table(
        "rate_limits",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=True),
        sa.Column("domain_id", BIG_INTEGER, nullable=True),
        sa.Column("value", BIG_INTEGER, nullable=False),
        _frame(),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        _belongs("rate_limits", "user_id", "users"),
        _belongs("rate_limits", "domain_id", "domains"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rate_limits")),
    )
    op.create_index("rate_limits_by_age", "rate_limits", ["created_at", "id"])
    for column in ("user_id", "domain_id"):
        op.create_index(op.f(f"ix_rate_limits_{column}"), "rate_limits", [column])
    op.create_table(
        "rate_windows",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        _frame(),
        sa.Column("allowed", BIG_INTEGER, nullable=False),
        sa.Column("used", BIG_INTEGER, nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rate_windows")),
    )
    op.create_index(op.f("ix_rate_windows_until"), "rate_windows", ["until"])
    op.create_table(
        "rate_holds",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("window_id", BIG_INTEGER, nullable=False),
        sa.Column("source", _one_of("USER", "DOMAIN", "PLATFORM"), nullable=False),
        sa.Column("value", BIG_INTEGER, nullable=False),
        _frame(),
        sa.Column("since", UtcDateTime(), nullable=False),
        sa.Column("until", UtcDateTime(), nullable=False),
        sa.Column("told_until", UtcDateTime(), nullable=False),
        _belongs("rate_holds", "id", "users"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rate_holds")),
    )
    op.create_index("rate_holds_by_age", "rate_holds", ["since", "id"])
    op.create_index(op.f("ix_rate_holds_told_until"), "rate_holds", ["told_until"])


def downgrade() -> None:
    for name in ("rate_holds", "rate_windows", "rate_limits"):
        op.drop_table(name)
