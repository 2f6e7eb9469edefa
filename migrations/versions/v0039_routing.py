"""ways out: relay hosts, transports, TLS policies, forwarding hosts"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER, UtcDateTime

revision = "0039"
down_revision = "0038"
LEVELS = ("NONE", "MAY", "ENCRYPT", "DANE", "DANE_ONLY", "FINGERPRINT", "VERIFY", "SECURE")


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=nullable)


def _switch(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False)


def _access() -> list[sa.Column[str]]:
    return [_text("username", nullable=True), _text("secret", nullable=True)]


def _table(name: str, *columns: sa.Column[Any], unique: str | None = None) -> None:
    constraints = [sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}"))]
    op.create_table(
        name,
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        *columns,
        sa.Column("created_at", UtcDateTime(), nullable=False),
        *constraints,
        *([sa.UniqueConstraint(unique, name=op.f(f"uq_{name}_{unique}"))] if unique else []),
    )


def upgrade() -> None:
    _table(
        "relay_hosts",
        _text("host"),
        sa.Column("port", BIG_INTEGER, nullable=False),
        *_access(),
        _switch("tls"),
        _switch("active"),
    )
    _table(
        "transports",
        _text("destination"),
        _text("next_hop"),
        _switch("lookup_mx"),
        *_access(),
        _switch("active"),
        unique="destination",
    )
    _table(
        "tls_policies",
        _text("destination"),
        sa.Column("policy", sa.Enum(*LEVELS, native_enum=False, length=32), nullable=False),
        _text("parameters", nullable=True),
        _switch("active"),
        sa.Column("updated_at", UtcDateTime(), nullable=True),
        unique="destination",
    )
    _table(
        "forwarding_hosts", _text("host"), _text("source"), _switch("filter_spam"), unique="host"
    )
    op.add_column("domains", sa.Column("relay_host_id", BIG_INTEGER, nullable=True))
    op.add_column(
        "users",
        sa.Column("tls_enforce_out", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    op.drop_column("users", "tls_enforce_out")
    op.drop_column("domains", "relay_host_id")
    for name in ("forwarding_hosts", "tls_policies", "transports", "relay_hosts"):
        op.drop_table(name)
