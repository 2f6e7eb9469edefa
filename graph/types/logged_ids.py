"""Global IDs in the values of logs, which are stored with the IDs of rows."""

from collections.abc import Mapping
from typing import Any

from graph.types import global_ids
from models.auth.security_log import SecurityEventAction

TYPE_BY_NAME = {  # of the objects that a value of the audit log refers to
    "administers": "Domain",
    "domains": "Domain",
    "mailbox": "Mailbox",
    "relayHost": "RelayHost",
    "user": "User",
}
SCOPE_TYPES = {"domain": "Domain", "user": "User"}  # of the scope of a sender rule
TYPE_BY_ACTION_PREFIX = {
    "API_KEY_": "ApiKey",
    "APP_PASSWORD_": "AppPassword",
    "BCC_RULE_": "BccRule",
    "CONNECTOR_": "Connector",
    "WEBHOOK_": "Webhook",
}
OBJECT_NAMES = ("id", "key", "target")  # of details that can hold the ID of the object


def audit_log_values_with_global_ids(stored: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return values of an audit log entry with global IDs; `user_id` becomes `user`."""
    if stored is None:
        return None
    values = {}
    for stored_name, value in stored.items():
        name = stored_name.removesuffix("_id")
        kind, separator, row_id = str(value).partition(":")
        if name == "scope" and separator and kind in SCOPE_TYPES and row_id.isdecimal():
            values[name] = f"{kind}:{global_ids.encode(SCOPE_TYPES[kind], int(row_id))}"
        elif name in TYPE_BY_NAME:
            values[name] = _encode_all(TYPE_BY_NAME[name], value)
        else:
            values[stored_name] = value
    return values


def _encode_all(type_name: str, value: Any) -> Any:
    """Return the global ID of a row ID, or those of a list. Other values stay."""
    if isinstance(value, list):
        return [_encode_all(type_name, item) for item in value]
    return global_ids.encode(type_name, value) if isinstance(value, int) else value


def security_event_detail_with_global_ids(
    action: SecurityEventAction, detail: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Return the detail of a security event with the global ID of its object."""
    prefixes = [prefix for prefix in TYPE_BY_ACTION_PREFIX if action.startswith(prefix)]
    if not detail or not prefixes:
        return detail
    type_name = TYPE_BY_ACTION_PREFIX[prefixes[0]]
    return detail | {
        name: global_ids.encode(type_name, int(detail[name]))
        for name in OBJECT_NAMES
        if str(detail.get(name)).isdecimal()
    }
