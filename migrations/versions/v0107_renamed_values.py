"""Rename stored values whose GraphQL names changed."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from alembic import op
from sqlalchemy import Connection, String, bindparam, column, select, table, update

from models.store.columns import BIG_INTEGER, JSON_TYPE

revision = "0107"
down_revision = "0105"

BATCH_SIZE = 1000  # rows of one statement


@dataclass(frozen=True, slots=True)
class RenamedValues:
    """A column with lists of names, the new names of each old one, and the order of a list."""

    table_name: str
    column_name: str
    new_names: Mapping[str, Collection[str]]
    in_stored_order: Callable[[Collection[str]], list[str]] = list


RENAMED_VALUES = (
    RenamedValues("users", "second_factors", {"CUSTOM": ["EXTERNAL"]}),
    RenamedValues(
        "users",
        "permissions",
        {"SPAM_POLICY": ["SENDER_RULES"], "SPAM_SCORE": ["SPAM_POLICY"]},
        sorted,
    ),
    # The old SPAM_POLICY of a DOMAIN_ADMIN allowed both.
    RenamedValues(
        "users",
        "admin_permissions",
        {
            "DOMAIN_ALIASES": ["ALIAS_DOMAINS"],
            "SPAM_POLICY": ["SENDER_RULES", "SPAM_POLICY"],
        },
        sorted,
    ),
    RenamedValues(
        "api_keys",
        "operations",
        {
            "authLog": ["securityLog"],
            "composeRequest": ["composeRequestCreate"],
            "domainAlias": ["aliasDomain"],
            "domainAliasCreate": ["aliasDomainCreate"],
            "domainAliasDelete": ["aliasDomainDelete"],
            "domainAliases": ["aliasDomains"],
            "tokenRevoke": ["accessTokenRevoke"],
        },
        sorted,
    ),
)


def upgrade() -> None:
    connection = op.get_bind()
    entries = table("audit_log", column("target_kind", String))
    is_alias_domain = entries.c.target_kind == "DomainAlias"
    connection.execute(update(entries).where(is_alias_domain).values(target_kind="AliasDomain"))
    for renamed in RENAMED_VALUES:
        _rename_stored_names(connection, renamed)


def _rename_stored_names(connection: Connection, renamed: RenamedValues) -> None:
    """Replace old names in a column, in batches of rows."""
    row_id, names = column("id", BIG_INTEGER), column(renamed.column_name, JSON_TYPE)
    changed_table = table(renamed.table_name, row_id, names)
    change = update(changed_table).where(row_id == bindparam("row_id"))
    change = change.values({renamed.column_name: bindparam("new_value", type_=JSON_TYPE)})
    last_id = -1
    while rows := connection.execute(
        select(row_id, names.label("names"))
        .where(row_id > last_id)
        .order_by(row_id)
        .limit(BATCH_SIZE)
    ).all():
        last_id = rows[-1].id
        changes = [
            {"row_id": row.id, "new_value": _renamed(renamed, row.names)}
            for row in rows
            if not renamed.new_names.keys().isdisjoint(row.names)
        ]
        if changes:
            connection.execute(change, changes)


def _renamed(renamed: RenamedValues, names: Collection[str]) -> list[str]:
    """Return the new names of a stored list, each once."""
    new_names = [new for old in names for new in renamed.new_names.get(old, [old])]
    return renamed.in_stored_order(list(dict.fromkeys(new_names)))


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a backup instead")
