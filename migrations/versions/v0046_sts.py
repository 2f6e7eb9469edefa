"""policies of encryption that other domains publish"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0046"
down_revision = "0045"


def upgrade() -> None:
    op.create_table(
        "sts_policies",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column("policy_id", sa.String(), nullable=False),
        sa.Column(
            "mode",
            sa.Enum("enforce", "testing", "none", native_enum=False, length=32),
            nullable=False,
        ),
        sa.Column("mx", JSON_TYPE, nullable=False),
        sa.Column("max_age", BIG_INTEGER, nullable=False),
        sa.Column("fetched_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("retry_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sts_policies")),
        sa.UniqueConstraint("domain", name=op.f("uq_sts_policies_domain")),
    )
    op.create_index(op.f("ix_sts_policies_expires_at"), "sts_policies", ["expires_at"])


def downgrade() -> None:
    op.drop_table("sts_policies")
