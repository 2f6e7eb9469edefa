"""reports of deliveries: what was asked for, what came back"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import UtcDateTime

revision = "0041"
down_revision = "0040"

SUBMISSIONS = ("envid", "ret", "header_id")
DELIVERIES = ("notify", "orcpt", "delay_told_at", "reported_at", "reported_by", "report_proven")
LISTED = {
    "submissions_header": ("user_id", "header_id"),
    "submissions_envid": ("user_id", "envid"),
}


def upgrade() -> None:
    for column in (
        sa.Column("envid", sa.String(), nullable=True),
        sa.Column("ret", sa.String(), nullable=True),
        sa.Column("header_id", sa.String(), nullable=True),
    ):
        op.add_column("submissions", column)
    for column in (
        sa.Column("notify", sa.String(), nullable=True),
        sa.Column("orcpt", sa.String(), nullable=True),
        sa.Column("delay_told_at", UtcDateTime(), nullable=True),
        sa.Column("reported_at", UtcDateTime(), nullable=True),
        sa.Column("reported_by", sa.String(), nullable=True),
        sa.Column("report_proven", sa.Boolean(), nullable=True),
    ):
        op.add_column("deliveries", column)
    for name, columns in LISTED.items():
        there = sa.text(f"{columns[1]} IS NOT NULL")
        op.create_index(name, "submissions", columns, sqlite_where=there, postgresql_where=there)


def downgrade() -> None:
    for name in LISTED:
        op.drop_index(name, "submissions")
    for name in reversed(DELIVERIES):
        op.drop_column("deliveries", name)
    for name in reversed(SUBMISSIONS):
        op.drop_column("submissions", name)
