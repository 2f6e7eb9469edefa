"""Let every type of event say what happened.

Actions of the security log get the names of events. The types ..._CHANGED become three types.
"""

from collections.abc import Mapping
from typing import Any

from alembic import op
from sqlalchemy import (
    Connection,
    String,
    bindparam,
    case,
    column,
    select,
    table,
    update,
)

from models.store.columns import BIG_INTEGER, JSON_TYPE

revision = "0109"
down_revision = "0108"

BATCH_SIZE = 1000  # rows of one statement
NEW_ACTIONS = {
    "ACCESS_GRANT": "ACCESS_GRANT_REFUSED",
    "ALLOWED_SENDERS_CHANGE": "ALLOWED_SENDERS_CHANGED",
    "API_KEY_CREATE": "API_KEY_CREATED",
    "API_KEY_DELETE": "API_KEY_DELETED",
    "API_KEY_UPDATE": "API_KEY_UPDATED",
    "API_KEY_USE": "API_KEY_REFUSED",
    "APP_PASSWORD_CREATE": "APP_PASSWORD_CREATED",
    "APP_PASSWORD_DELETE": "APP_PASSWORD_DELETED",
    "APP_PASSWORD_UPDATE": "APP_PASSWORD_UPDATED",
    "AUTHENTICATE": "SIGN_IN_ATTEMPTED",
    "BCC_RULE_CREATE": "BCC_RULE_CREATED",
    "BCC_RULE_DELETE": "BCC_RULE_DELETED",
    "BCC_RULE_UPDATE": "BCC_RULE_UPDATED",
    "CONNECTOR_CREATE": "CONNECTOR_CREATED",
    "CONNECTOR_DELETE": "CONNECTOR_DELETED",
    "CONNECTOR_UPDATE": "CONNECTOR_UPDATED",
    "EXTERNAL_TWO_FACTOR_DISABLE": "EXTERNAL_TWO_FACTOR_DISABLED",
    "EXTERNAL_TWO_FACTOR_ENABLE": "EXTERNAL_TWO_FACTOR_ENABLED",
    "FILTER_FORWARD": "FILTER_FORWARDING_ADDED",
    "FORWARDING_CHANGE": "FORWARDING_CHANGED",
    "IDENTITY_BCC_CHANGE": "IDENTITY_BCC_CHANGED",
    "MAILBOX_SHARE_DELETE": "MAILBOX_SHARE_DELETED",
    "MESSAGES_TRANSFER": "MESSAGES_TRANSFERRED",
    "MESSAGE_REDIRECT": "MESSAGE_REDIRECTED",
    "MESSAGE_SEND": "MESSAGE_SENT",
    "NETWORK_BAN": "BAN_CREATED",
    "OAUTH_GRANT_CREATE": "OAUTH_GRANT_CREATED",
    "OAUTH_GRANT_REVOKE": "OAUTH_GRANT_REVOKED",
    "OAUTH_TOKEN_REPLAY": "OAUTH_TOKEN_REPLAYED",
    "PASSWORD_CHANGE": "PASSWORD_CHANGED",
    "PASSWORD_GUESSING": "PASSWORD_GUESSING_DETECTED",
    "PUSH_CHANNEL_DELETE": "PUSH_CHANNEL_DELETED",
    "RECOVERY_CODES_CREATE": "RECOVERY_CODES_CREATED",
    "RECOVERY_CODE_VERIFY": "RECOVERY_CODE_USED",
    "SESSION_TERMINATE": "SESSION_TERMINATED",
    "SIEVE_FORWARD": "SIEVE_FORWARDING_ADDED",
    "TOKEN_REVOKE": "TOKEN_REVOKED",
    "TOTP_DISABLE": "TOTP_DISABLED",
    "TOTP_ENABLE": "TOTP_ENABLED",
    "TOTP_SETUP": "TOTP_SECRET_CREATED",
    "TOTP_VERIFY": "TOTP_CHECKED",
    "TWO_FACTOR_DISABLE": "TWO_FACTOR_DISABLED",
    "USER_IMPERSONATE": "IMPERSONATION_STARTED",
    "WEBAUTHN_DELETE": "WEBAUTHN_DELETED",
    "WEBAUTHN_REGISTER": "WEBAUTHN_REGISTERED",
    "WEBAUTHN_VERIFY": "WEBAUTHN_CHECKED",
    "WEBHOOK_CREATE": "WEBHOOK_CREATED",
    "WEBHOOK_DELETE": "WEBHOOK_DELETED",
    "WEBHOOK_UPDATE": "WEBHOOK_UPDATED",
}

# The new types of each old type of an event. A stored event gets the one that ends in _UPDATED, or
# the first one, since it doesn't say what happened. Webhooks receive all of them.
_CREATED_UPDATED_DELETED = ("CREATED", "UPDATED", "DELETED")
NEW_TYPE_ENDINGS = {
    **dict.fromkeys(
        (
            "CERTIFICATE", "CONNECTOR", "FILE", "FILTER", "FORWARDING_HOST", "IDENTITY",
            "KEY_VALUE", "LABEL", "OAUTH_CLIENT", "RELAY_HOST", "RESOURCE", "SAVED_SEARCH",
            "SENDER_RULE", "SIEVE", "TLS_POLICY", "TRANSPORT",
        ),
        _CREATED_UPDATED_DELETED,
    ),
    **dict.fromkeys(("AUTOREPLY", "BAN_POLICY", "SETTING"), ("UPDATED",)),
    **dict.fromkeys(("CLUSTER_NODE", "SUBMISSION", "TASK"), ("CREATED", "UPDATED")),
    "CLUSTER_AFFINITY": ("CREATED", "DELETED"),
    "QUARANTINE": ("NOTIFIED",),
    "THREAD": ("UPDATED", "MERGED"),
}  # fmt: skip
NEW_TYPES = {
    f"{prefix}_CHANGED": [f"{prefix}_{ending}" for ending in endings]
    for prefix, endings in NEW_TYPE_ENDINGS.items()
}
NEW_TYPE_OF_STORED_EVENT = {
    old: next((name for name in new if name.endswith("_UPDATED")), new[0])
    for old, new in NEW_TYPES.items()
}


def upgrade() -> None:
    connection = op.get_bind()
    for table_name in ("changes", "webhook_deliveries"):
        _rename_column_values(connection, table_name, "type", NEW_TYPE_OF_STORED_EVENT)
    _split_types_of_webhooks(connection)
    _rename_column_values(connection, "security_events", "action", NEW_ACTIONS)
    _rename_actions_of_webhook_deliveries(connection)


def _rename_column_values(
    connection: Connection, table_name: str, column_name: str, new_names: Mapping[str, str]
) -> None:
    renamed_table = table(table_name, column(column_name, String))
    value = renamed_table.c[column_name]
    statement = update(renamed_table).where(value.in_(new_names))
    connection.execute(statement.values({column_name: case(new_names, value=value)}))


def _split_types_of_webhooks(connection: Connection) -> None:
    """Replace each old type that a webhook receives by its new types."""
    webhooks = table("webhooks", column("id", BIG_INTEGER), column("types", JSON_TYPE))
    for row in connection.execute(select(webhooks.c.id, webhooks.c.types)).all():
        new_types = [new for old in row.types or () for new in NEW_TYPES.get(old, [old])]
        if row.types and new_types != row.types:
            statement = update(webhooks).where(webhooks.c.id == row.id)
            connection.execute(statement.values(types=new_types))


def _rename_actions_of_webhook_deliveries(connection: Connection) -> None:
    """Rename the actions in stored events of webhooks, in batches of rows."""
    row_id, body = column("id", BIG_INTEGER), column("body", JSON_TYPE)
    deliveries = table("webhook_deliveries", row_id, body)
    change = update(deliveries).where(row_id == bindparam("row_id"))
    change = change.values(body=bindparam("new_body", type_=JSON_TYPE))
    last_id = -1
    while rows := connection.execute(
        select(row_id, body).where(row_id > last_id).order_by(row_id).limit(BATCH_SIZE)
    ).all():
        last_id = rows[-1].id
        changes = [
            {"row_id": row.id, "new_body": _body_with_new_actions(row.body)}
            for row in rows
            if any("action" in facts for facts in (row.body or {}).get("objects", ()))
        ]
        if changes:
            connection.execute(change, changes)


def _body_with_new_actions(body: Mapping[str, Any]) -> dict[str, Any]:
    objects = [
        {**facts, "action": NEW_ACTIONS.get(facts["action"], facts["action"])}
        if "action" in facts
        else facts
        for facts in body["objects"]
    ]
    return {**body, "objects": objects}


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a backup instead")
