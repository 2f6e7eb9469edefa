"""copies by rules, and recipients that are replaced"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0025"
down_revision = "0024"
COPY = sa.text("copy_of IS NOT NULL")


def upgrade() -> None:
    directions = sa.Enum("SENDER", "RECIPIENT", native_enum=False, length=32)
    op.create_table(
        "bcc_rules",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("direction", directions, nullable=False),
        sa.Column("local", sa.String(), nullable=False),
        sa.Column("domain_id", BIG_INTEGER, nullable=False),
        sa.Column("bcc_to", sa.String(), nullable=False),
        *_rest(),
        sa.ForeignKeyConstraint(
            ["domain_id"], ["domains.id"], name=op.f("fk_bcc_rules_domain_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bcc_rules")),
    )
    match = ["direction", "domain_id", "local"]
    op.create_index("uq_bcc_rules_match", "bcc_rules", match, unique=True)
    op.create_index("bcc_rules_oldest", "bcc_rules", ["created_at", "id"])
    op.create_index(op.f("ix_bcc_rules_domain_id"), "bcc_rules", ["domain_id"])
    op.create_table(
        "recipient_rewrites",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("local", sa.String(), nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        *_rest(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recipient_rewrites")),
    )
    table = "recipient_rewrites"
    op.create_index("uq_recipient_rewrites_from", table, ["domain", "local"], unique=True)
    op.create_index("recipient_rewrites_oldest", table, ["created_at", "id"])
    op.add_column("submissions", sa.Column("copy_of", BIG_INTEGER, nullable=True))
    op.create_index(
        "submissions_copies",
        "submissions",
        ["copy_of"],
        sqlite_where=COPY,
        postgresql_where=COPY,
    )


def _rest() -> list[sa.Column[object]]:
    return [
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
    ]


def downgrade() -> None:
    op.drop_index("submissions_copies", "submissions")
    op.drop_column("submissions", "copy_of")
    op.drop_table("recipient_rewrites")
    op.drop_table("bcc_rules")
