"""Export and import of an account's filters."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mail.filters.filter_compiler import GROUP_NAMES, MAX_DEPTH
from mail.recipients.forward_targets import MASKED_TEXT
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.filters import loaders as filter_loaders
from resolvers.filters import mutations as filter_mutations
from resolvers.filters.loaders import mailbox_ids_in_action
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.users import custom_data

QUERY_TYPES = {
    "from": str, "to": str, "subject": str, "listId": str, "text": str, "hasAttachment": bool,
    "larger": int, "smaller": int, "header": dict, "regex": dict, "all": list, "any": list,
    "not": list, "query": str,
}  # fmt: skip
ACTION_TYPES = {
    "seen": bool, "flag": bool, "delete": bool, "spam": bool, "mailbox": str, "copyTo": list,
    "forwardTo": list, "keywords": list, "removeKeywords": list, "reply": dict, "stop": bool,
}  # fmt: skip
FILTER_TYPES = {
    "name": str, "position": int, "active": bool, "query": dict, "action": dict, "metadata": dict,
}  # fmt: skip

FilterRecord = Mapping[str, Any]


async def export_filters(ctx: Context, user_id: int) -> list[dict[str, Any]]:
    """Return the filters of a user in their order, in the form of the export file.

    Mailboxes are given by path. Webhooks and the passwords of relays are left out.
    """
    rows = await filter_loaders.load_visible_filters_of_user(ctx, user_id)
    mailboxes = sorted({key for row in rows for key in mailbox_ids_in_action(row.action)})
    paths = dict(
        zip(
            mailboxes,
            await ctx.load_many(filter_loaders.load_mailbox_paths, mailboxes),
            strict=True,
        )
    )
    return [
        {
            "name": row.name,
            "position": row.position,
            "active": row.active,
            "query": _exported_query(row.query),
            "action": _exported_action(
                filter_loaders.action_with_targets(row.action, row.forward_to), paths
            ),
            "metadata": row.public_metadata,
        }
        for row in rows
    ]


def _exported_query(query: FilterRecord) -> dict[str, Any]:
    """Return a query as in the input; of a search text only the text."""
    inner = {
        name: [_exported_query(value) for value in query[name]]
        for name in GROUP_NAMES
        if name in query
    }
    text = {"query": query["query"]["text"]} if "query" in query else {}
    return {**query, **inner, **text}


def _exported_action(
    action: FilterRecord, path_by_mailbox: Mapping[int, str | None]
) -> dict[str, Any]:
    exported = {name: value for name, value in action.items() if name in ACTION_TYPES}
    if "mailbox" in action:
        exported["mailbox"] = path_by_mailbox[action["mailbox"]]
    if "copyTo" in action:
        exported["copyTo"] = [path_by_mailbox[key] for key in action["copyTo"]]
    return exported


async def import_filter_returning_targets_without_password(
    ctx: Context, record: FilterRecord, mailbox_paths: Collection[str]
) -> list[str]:
    """Create a filter from an exported record, unless the user has an equal one.

    Returns the targets that are left out, since the file has no passwords. Raises InvalidInput,
    NotFound or LimitReached.
    """
    query, action = _require_query_and_action(record)
    targets = action.pop("forwardTo", None) or []
    bare = [target for target in targets if f":{MASKED_TEXT}@" in target]
    if len(bare) < len(targets):
        action["forwardTo"] = [target for target in targets if target not in bare]
    if {**record, "action": action} in await export_filters(ctx, require_user_id(ctx)):
        return bare
    action_values = dict(action)
    for name in ("mailbox", "copyTo"):
        if value := action_values.get(name):
            action_values[name] = _require_selectors_of_known_paths(
                value, mailbox_paths, ["action", name]
            )
    plain = {name: record[name] for name in ("name", "position", "active") if name in record}
    values = {
        **plain,
        "public_metadata": custom_data.validate_custom_data(
            record.get("metadata"), ["metadata"], ctx.environment.options.metadata_max_size
        ),
        "query": query,
        "action": action_values,
    }
    await filter_mutations.create_filter(ctx, None, values)
    return bare


def _require_query_and_action(record: FilterRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a copy of query and action of an exported record.

    Raises InvalidInput if a value has the wrong type, or a field is unknown.
    """
    _require_types(record, FILTER_TYPES, [])
    query, action = dict(record.get("query") or {}), dict(record.get("action") or {})
    _require_query_types(query, ["query"], 0)
    require_action_types(action, ["action"])
    return query, action


def _require_selectors_of_known_paths(
    path_or_paths: str | list[str], mailbox_paths: Collection[str], input_path: Sequence[str]
) -> Any:
    for path in [path_or_paths] if isinstance(path_or_paths, str) else path_or_paths:
        if path not in mailbox_paths:
            raise InvalidInput(
                "The mailbox does not exist.",
                constraint=ValidationConstraint.UNKNOWN,
                path=input_path,
            )
    return (
        MailboxSelector(path=path_or_paths)
        if isinstance(path_or_paths, str)
        else [MailboxSelector(path=path) for path in path_or_paths]
    )


def _require_types(
    record: FilterRecord, type_by_name: Mapping[str, type], input_path: Sequence[str]
) -> None:
    """Raise InvalidInput for an unknown field, or a value of the wrong type other than None."""
    for name, value in record.items():
        kind = type_by_name.get(name)
        if kind is None:
            raise InvalidInput(
                "Unknown field.",
                constraint=ValidationConstraint.UNKNOWN,
                path=[*input_path, name],
            )
        has_right_type = value is None or isinstance(value, kind)
        if not has_right_type or (kind is int and isinstance(value, bool)):
            raise InvalidInput(
                "The value has the wrong type.",
                constraint=ValidationConstraint.TYPE,
                path=[*input_path, name],
            )


def _require_query_types(query: Any, input_path: Sequence[str], depth: int) -> None:
    if not isinstance(query, dict) or depth > MAX_DEPTH:
        raise InvalidInput(
            "The value has the wrong type.", constraint=ValidationConstraint.TYPE, path=input_path
        )
    _require_types(query, QUERY_TYPES, input_path)
    for name, required_key, other_key in (("header", "key", "value"), ("regex", "pattern", "key")):
        if (part := query.get(name)) is not None:
            _require_types(part, {required_key: str, other_key: str}, [*input_path, name])
            if not isinstance(part.get(required_key), str):
                raise InvalidInput(
                    f"The field {required_key} is required.",
                    constraint=ValidationConstraint.TYPE,
                    path=[*input_path, name],
                )
    for name in GROUP_NAMES:
        for value in query.get(name) or ():
            _require_query_types(value, [*input_path, name], depth + 1)


def require_action_types(action: FilterRecord, input_path: Sequence[str]) -> None:
    """Raise InvalidInput if an action has a value of the wrong type or an unknown field."""
    _require_types(action, ACTION_TYPES, input_path)
    for name, value in action.items():
        if isinstance(value, list) and not all(isinstance(value, str) for value in value):
            raise InvalidInput(
                "The value has the wrong type.",
                constraint=ValidationConstraint.TYPE,
                path=[*input_path, name],
            )
    _require_types(
        action.get("reply") or {}, dict.fromkeys(("subject", "text", "html"), str), input_path
    )
