"""makers of rules and credentials, and how failures are counted"""

import sqlalchemy as sa
from alembic import op

from models.store.columns import BIG_INTEGER

revision = "0054"
down_revision = "0053"

# the type of each table's rows in the administrative log, and which rows only an ADMIN makes
RULES = {
    "bcc_rules": ("BccRule", None),
    "recipient_rewrites": ("RecipientRewrite", "id > 0"),
    "sender_rules": ("SenderRule", "domain_id IS NULL AND user_id IS NULL"),
}
CREDENTIALS = ("api_keys", "app_passwords")


def upgrade() -> None:
    for name in RULES:
        made_as = sa.Column("made_as", sa.String(32), nullable=False, server_default="DOMAIN_ADMIN")
        op.add_column(name, sa.Column("made_by", BIG_INTEGER, nullable=True))
        op.add_column(name, made_as)
        _fill(name)
    for name in CREDENTIALS:
        op.add_column(name, sa.Column("made_by", BIG_INTEGER, nullable=True))
        op.add_column(name, sa.Column("made_by_key", BIG_INTEGER, nullable=True))
        op.add_column(name, sa.Column("maker", sa.String(), nullable=True))
    op.add_column("access_tokens", sa.Column("actor_key_id", BIG_INTEGER, nullable=True))
    op.add_column(
        "access_tokens",
        sa.Column("temporary", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def _fill(name: str) -> None:
    """Name the makers of existing rules as far as the administrative log knows them."""
    kind, of_admin = RULES[name]
    rules = sa.table(name, *map(sa.column, ("id", "user_id", "domain_id", "made_by", "made_as")))
    log = sa.table(
        "admin_log",
        *map(sa.column, ("id", "at", "target_kind", "target_id", "mutation", "actor_id", "role")),
    )
    if of_admin is not None:
        op.execute(sa.update(rules).where(sa.text(of_admin)).values(made_as="ADMIN"))
    entries = (
        log.c.target_kind == kind,
        log.c.target_id == rules.c.id,
        log.c.mutation.not_like("%Delete"),
    )
    newest = (log.c.at.desc(), log.c.id.desc())
    maker, role = (
        sa.select(log.c[column]).where(*entries).order_by(*newest).limit(1).scalar_subquery()
        for column in ("actor_id", "role")
    )
    known = sa.select(log.c.id).where(*entries).exists()
    op.execute(sa.update(rules).where(known).values(made_by=maker, made_as=role))


def downgrade() -> None:
    op.drop_column("access_tokens", "temporary")
    op.drop_column("access_tokens", "actor_key_id")
    for name in CREDENTIALS:
        for column in ("maker", "made_by_key", "made_by"):
            op.drop_column(name, column)
    for table in RULES:
        op.drop_column(table, "made_as")
        op.drop_column(table, "made_by")
