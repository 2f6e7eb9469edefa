"""limits and origins of addresses, and the address register"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, BYTEWISE_TEXT, UtcDateTime

revision = "0023"
down_revision = "0022"


def _columns() -> list[sa.Column[Any]]:
    moment = UtcDateTime(timezone=True)
    return [
        sa.Column("relays", sa.String(), nullable=True),
        sa.Column("forwards_max", BIG_INTEGER, nullable=True),
        sa.Column("forwarded", BIG_INTEGER, nullable=False, server_default="0"),
        sa.Column("forwarded_until", moment, nullable=True),
        sa.Column("masked", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("for_domain", sa.String(), nullable=True),
        sa.Column("last_received_at", moment, nullable=True),
    ]


def upgrade() -> None:
    for column in _columns():
        op.add_column("addresses", column)
    op.create_table(
        "correspondents",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("user_id", BIG_INTEGER, nullable=False),
        sa.Column("key", BYTEWISE_TEXT, nullable=False),
        sa.Column("called", BYTEWISE_TEXT, nullable=True),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("last_used_at", UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_correspondents_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_correspondents")),
    )
    indexes = {
        "uq_correspondents_user_id_key": ["user_id", "key"],
        "ix_correspondents_called": ["user_id", "called"],
        "ix_correspondents_used": ["user_id", "last_used_at", "id"],
    }
    for name, columns in indexes.items():
        op.create_index(name, "correspondents", columns, unique=name.startswith("uq"))
    ending = sa.text("expires_at IS NOT NULL")
    op.create_index(
        "ix_addresses_ending",
        "addresses",
        ["expires_at"],
        sqlite_where=ending,
        postgresql_where=ending,
    )


def downgrade() -> None:
    op.drop_index("ix_addresses_ending", table_name="addresses")
    op.drop_table("correspondents")
    for column in reversed(_columns()):
        op.drop_column("addresses", column.name)
