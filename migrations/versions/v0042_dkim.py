"""keys that mail of our domains is signed with"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0042"
down_revision = "0041"


def _one_of(*names: str) -> sa.Enum:
    return sa.Enum(*names, native_enum=False, length=32)


def upgrade() -> None:
    op.create_table(
        "dkim_keys",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("domain_id", BIG_INTEGER, nullable=True),
        *(sa.Column(n, sa.String(), nullable=False) for n in
          ("domain", "selector", "private", "public")),
        sa.Column("algorithm", _one_of("RSA", "ED25519"), nullable=False),
        sa.Column("key_size", BIG_INTEGER, nullable=True),
        sa.Column("state", _one_of("PENDING", "ACTIVE", "RETIRED"), nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("looks", BIG_INTEGER, nullable=False),
        *(sa.Column(n, UtcDateTime(), nullable=True) for n in
          ("due_at", "activated_at", "retired_at")),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_id"], ["domains.id"], name=op.f("fk_dkim_keys_domain_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dkim_keys")),
    )  # fmt: skip
    op.create_index(op.f("ix_dkim_keys_domain_id"), "dkim_keys", ["domain_id"])
    named = ["domain", "selector"]
    op.create_index("uq_dkim_keys_selector", "dkim_keys", named, unique=True)
    due = sa.text("due_at IS NOT NULL")
    op.create_index(
        "dkim_keys_due", "dkim_keys", ["due_at"], sqlite_where=due, postgresql_where=due
    )
    # what waits meanwhile leaves as it would have
    ours = sa.Column("ours", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("submissions", ours)


def downgrade() -> None:
    with op.batch_alter_table("submissions") as batch_op:
        batch_op.drop_column("ours")
    op.drop_table("dkim_keys")
