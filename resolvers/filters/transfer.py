"""Export and import of an account's filters."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mail.filters.filter_compiler import GROUPS, NESTED
from mail.recipients.forward_targets import HIDDEN
from models.errors import Invalid
from resolvers.access import own
from resolvers.context import Context
from resolvers.filters import loaders as filter_loaders
from resolvers.filters import mutations as filter_mutations
from resolvers.filters.loaders import used
from resolvers.mailboxes.loaders import Named

QUERY = {
    "from": str, "to": str, "subject": str, "listId": str, "text": str, "hasAttachment": bool,
    "size": int, "header": dict, "regex": dict, "all": list, "any": list, "not": list,
    "query": str,
}  # fmt: skip
ACTION = {
    "seen": bool, "flag": bool, "delete": bool, "spam": bool, "mailbox": str, "copyTo": list,
    "targets": list, "labels": list, "removeLabels": list, "reply": dict, "stop": bool,
}  # fmt: skip
FILTER = {
    "name": str, "order": int, "active": bool, "query": dict, "action": dict, "metaData": dict,
}  # fmt: skip

Entry = Mapping[str, Any]


async def exported(ctx: Context, user_id: int) -> list[dict[str, Any]]:
    """Return the filters of a user in their order, in the form of the export file.

    Mailboxes are given by path. Webhooks and the passwords of relays are left out.
    """
    rows = await filter_loaders.all_of(ctx, user_id)
    mailboxes = sorted({key for row in rows for key in used(row.action)})
    paths = dict(zip(mailboxes, await ctx.load_all(filter_loaders.paths, mailboxes), strict=True))
    return [
        {
            "name": row.name,
            "order": row.order,
            "active": row.active,
            "query": _query(row.query),
            "action": _action(filter_loaders.whole(row.action, row.targets), paths),
            "metaData": row.meta_data,
        }
        for row in rows
    ]


def _query(query: Entry) -> dict[str, Any]:
    """Return a query as in the input; of a search text only the text."""
    inner = {name: [_query(one) for one in query[name]] for name in GROUPS if name in query}
    text = {"query": query["query"]["text"]} if "query" in query else {}
    return {**query, **inner, **text}


def _action(action: Entry, paths: Mapping[int, str | None]) -> dict[str, Any]:
    found = {name: value for name, value in action.items() if name in ACTION}
    if "mailbox" in action:
        found["mailbox"] = paths[action["mailbox"]]
    if "copyTo" in action:
        found["copyTo"] = [paths[key] for key in action["copyTo"]]
    return found


async def bring(ctx: Context, entry: Entry, boxes: Collection[str]) -> list[str]:
    """Create a filter from an exported record, unless the user has an equal one.

    Returns the targets that are left out, since the file has no passwords. Raises InvalidInput,
    NotFound or LimitReached.
    """
    _check(entry, FILTER, [])
    query, action = entry.get("query") or {}, dict(entry.get("action") or {})
    _check_query(query, ["query"], 0)
    _check_action(action, ["action"])
    targets = action.pop("targets", None) or []
    bare = [one for one in targets if f":{HIDDEN}@" in one]
    if len(bare) < len(targets):
        action["targets"] = [one for one in targets if one not in bare]
    if {**entry, "action": action} in await exported(ctx, own(ctx)):
        return bare
    given = dict(action)
    for name in ("mailbox", "copyTo"):
        if value := given.get(name):
            given[name] = _named(value, boxes, ["action", name])
    plain = {name: entry[name] for name in ("name", "order", "active") if name in entry}
    values = {**plain, "meta_data": entry.get("metaData"), "query": query, "action": given}
    await filter_mutations.create(ctx, None, values)
    return bare


def _named(value: str | list[str], boxes: Collection[str], path: Sequence[str]) -> Any:
    for one in [value] if isinstance(value, str) else value:
        if one not in boxes:
            raise Invalid("there is no such folder", constraint="unknown", path=path)
    return Named(path=value) if isinstance(value, str) else [Named(path=one) for one in value]


def _check(entry: Entry, kinds: Mapping[str, type], path: Sequence[str]) -> None:
    """Raise InvalidInput if a value has the wrong type. None is allowed everywhere."""
    for name, value in entry.items():
        kind = kinds.get(name)
        right = value is None or (kind is not None and isinstance(value, kind))
        if not right or (kind is int and isinstance(value, bool)):
            raise Invalid("not what it must be", constraint="type", path=[*path, name])


def _check_query(query: Any, path: Sequence[str], depth: int) -> None:
    if not isinstance(query, dict) or depth > NESTED:
        raise Invalid("not what it must be", constraint="type", path=path)
    _check(query, QUERY, path)
    for name, needed, other in (("header", "key", "value"), ("regex", "pattern", "key")):
        if (part := query.get(name)) is not None:
            _check(part, {needed: str, other: str}, [*path, name])
            if not isinstance(part.get(needed), str):
                raise Invalid(f"it has no {needed}", constraint="type", path=[*path, name])
    for name in GROUPS:
        for one in query.get(name) or ():
            _check_query(one, [*path, name], depth + 1)


def _check_action(action: Entry, path: Sequence[str]) -> None:
    _check(action, ACTION, path)
    for name, value in action.items():
        if isinstance(value, list) and not all(isinstance(one, str) for one in value):
            raise Invalid("not what it must be", constraint="type", path=[*path, name])
    _check(action.get("reply") or {}, dict.fromkeys(("subject", "text", "html"), str), path)
