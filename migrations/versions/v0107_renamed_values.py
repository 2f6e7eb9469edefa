"""Rename stored values whose GraphQL names changed."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from alembic import op
from sqlalchemy import Connection, String, bindparam, case, column, select, table, update

from models.store.columns import BIG_INTEGER, JSON_TYPE

revision = "0107"
down_revision = "0106"

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
            "deletedMessagesRestore": ["deletedMessageRestore"],
            "domainAlias": ["aliasDomain"],
            "domainAliasCreate": ["aliasDomainCreate"],
            "domainAliasDelete": ["aliasDomainDelete"],
            "domainAliases": ["aliasDomains"],
            "messageTrace": ["deliveryTrace"],
            "messageTraceEvents": ["deliveryTrace"],
            "tokenRevoke": ["accessTokenRevoke"],
        },
        sorted,
    ),
)


# New names of mutations in the audit log.
NEW_MUTATIONS = {
    "composeRequest": "composeRequestCreate",
    "deletedMessagesRestore": "deletedMessageRestore",
    "domainAliasCreate": "aliasDomainCreate",
    "domainAliasDelete": "aliasDomainDelete",
    "tokenRevoke": "accessTokenRevoke",
}
# New names of conditions in the JSON of the API, and of those in the settings of an import.
NEW_FILTER_FIELDS = {
    "messageId": "messageIdHeader",
    "recipient": "anyRecipient",
    "to": "toOrCc",
    "toOnly": "to",
}
NEW_CONDITIONS = {
    "message_id": "message_id_header",
    "recipient": "any_recipient",
    "to": "to_or_cc",
    "to_only": "to",
}
GROUPS = frozenset(("and", "or", "every", "some"))  # lists of filters
NEGATIONS = frozenset(("not", "none"))  # one filter


def upgrade() -> None:
    connection = op.get_bind()
    _change_texts(connection, "audit_log", "target_kind", {"DomainAlias": "AliasDomain"})
    _change_texts(connection, "audit_log", "mutation", NEW_MUTATIONS)
    for renamed in RENAMED_VALUES:
        _change_column(
            connection, renamed.table_name, renamed.column_name, partial(_renamed, renamed)
        )
    _change_column(
        connection, "saved_searches", "filter", partial(_renamed_conditions, NEW_FILTER_FIELDS)
    )
    _change_column(connection, "connectors", "import_options", _renamed_import_options)


def _change_texts(
    connection: Connection, table_name: str, column_name: str, new_texts: Mapping[str, str]
) -> None:
    """Replace the texts of a column by their new ones."""
    text = column(column_name, String)
    changed_table = table(table_name, text)
    is_old = text.in_(new_texts.keys())
    new_text = case(new_texts, value=text)
    connection.execute(update(changed_table).where(is_old).values({column_name: new_text}))


def _change_column(
    connection: Connection, table_name: str, column_name: str, new_value: Callable[[Any], Any]
) -> None:
    """Replace the JSON values of a column that change, in batches of rows."""
    row_id, value = column("id", BIG_INTEGER), column(column_name, JSON_TYPE)
    changed_table = table(table_name, row_id, value)
    change = update(changed_table).where(row_id == bindparam("row_id"))
    change = change.values({column_name: bindparam("new_value", type_=JSON_TYPE)})
    last_id = -1
    while rows := connection.execute(
        select(row_id, value.label("value"))
        .where(row_id > last_id)
        .order_by(row_id)
        .limit(BATCH_SIZE)
    ).all():
        last_id = rows[-1].id
        new_rows = [
            (row, {"row_id": row.id, "new_value": new_value(row.value)})
            for row in rows
            if row.value
        ]
        changes = [new_row for row, new_row in new_rows if new_row["new_value"] != row.value]
        if changes:
            connection.execute(change, changes)


def _renamed(renamed: RenamedValues, names: Collection[str]) -> list[str]:
    """Return the new names of a stored list, each once."""
    new_names = [new for old in names for new in renamed.new_names.get(old, [old])]
    return renamed.in_stored_order(list(dict.fromkeys(new_names)))


def _renamed_conditions(
    new_names: Mapping[str, str], conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a stored filter with the new names of its conditions."""
    renamed = {}
    for name, value in conditions.items():
        new_value = value
        if name in GROUPS:
            new_value = [_renamed_conditions(new_names, item) for item in value]
        elif name in NEGATIONS:
            new_value = _renamed_conditions(new_names, value)
        renamed[new_names.get(name, name)] = new_value
    return renamed


def _renamed_import_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an import with the new names of the conditions of its filter."""
    if not options.get("where"):
        return dict(options)
    return {**options, "where": _renamed_conditions(NEW_CONDITIONS, options["where"])}


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a backup instead")
