"""certificates of the listeners"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, JSON_TYPE, UtcDateTime

revision = "0043"
down_revision = "0042"
KEY = "certificate_id"


def upgrade() -> None:
    op.create_table(
        "certificates",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("server_name", sa.String(), nullable=False),
        sa.Column("alt_names", JSON_TYPE, nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("chain", sa.String(), nullable=True),
        sa.Column("private_key", sa.String(), nullable=True),
        sa.Column("version", BIG_INTEGER, nullable=False),
        sa.Column("sha1", sa.String(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("spki", sa.String(), nullable=True),
        sa.Column("issuer", sa.String(), nullable=True),
        sa.Column("not_before", UtcDateTime(), nullable=True),
        sa.Column("not_after", UtcDateTime(), nullable=True),
        sa.Column("acme", sa.Boolean(), nullable=False),
        sa.Column("acme_state", sa.String(), nullable=True),
        sa.Column("acme_next_at", UtcDateTime(), nullable=True),
        sa.Column("acme_failures", BIG_INTEGER, nullable=False),
        sa.Column("lease", BIG_INTEGER, nullable=True),
        sa.Column("leased_until", UtcDateTime(), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificates")),
        sa.UniqueConstraint("server_name", name=op.f("uq_certificates_server_name")),
    )
    for column in ("not_after", "acme_next_at"):
        op.create_index(op.f(f"ix_certificates_{column}"), "certificates", [column])
    op.create_table(
        "certificate_names",
        sa.Column(KEY, BIG_INTEGER, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        _of("certificate_names"),
        sa.PrimaryKeyConstraint(KEY, "name", name=op.f("pk_certificate_names")),
    )
    op.create_index(op.f("ix_certificate_names_name"), "certificate_names", ["name"])
    op.create_table(
        "acme_accounts",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("directory", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=True),
        sa.Column("private_key", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_acme_accounts")),
        sa.UniqueConstraint("directory", name=op.f("uq_acme_accounts_directory")),
    )
    op.create_table(
        "acme_challenges",
        sa.Column("token", sa.String(), nullable=False),
        sa.Column(KEY, BIG_INTEGER, nullable=False),
        sa.Column("answer", sa.String(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        _of("acme_challenges"),
        sa.PrimaryKeyConstraint("token", name=op.f("pk_acme_challenges")),
    )
    for column in (KEY, "expires_at"):
        op.create_index(op.f(f"ix_acme_challenges_{column}"), "acme_challenges", [column])


def _of(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_{KEY}")
    return sa.ForeignKeyConstraint([KEY], ["certificates.id"], name=name, ondelete="CASCADE")


def downgrade() -> None:
    for table in ("acme_challenges", "acme_accounts", "certificate_names", "certificates"):
        op.drop_table(table)
