"""Print search filters in the syntax that `resolvers/search/query_parser.py` parses."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from models.mailboxes.tables import SpecialUse
from resolvers.search.query_keys import FLAGS, LISTS, NUMBERS, TEXTS, TIMES, Fields
from resolvers.search.query_parser import read

_BARE = re.compile(r"[^\s()\":,\\-][^\s()\":,\\]*")
_FIELDS = {field: key for key, field in reversed(TEXTS.items()) if field != "query"}
_TIMES = {field: key for key, field in reversed(TIMES.items())}
_NUMBERS = {field: key for key, field in NUMBERS.items()}
_IS = {field: f"is:{key}" for key, field in FLAGS.items()} | {"hasAttachment": "has:attachment"}
_NO = {field: f"{key}:no" for key, field in FLAGS.items()} | {
    "seen": "is:unseen", "hasAttachment": "attachment:no",
}  # fmt: skip


def written(fields: Fields, now: datetime) -> str:
    """Return a filter, given by its JSON fields, as text of the search syntax."""
    return " ".join(_conditions(fields, now)) or "ALL"


def _conditions(fields: Fields, now: datetime) -> Iterator[str]:
    """Yield the terms of a filter's fields."""
    for name, value in fields.items():
        match name:
            case "and":
                yield from _all(value, now)
            case "or":
                yield _some(value, now)
            case "not":
                yield _none(value, now)
            case "query":
                yield value if _reads_as_itself(value, now) else f"query:{_quoted(value)}"
            case _:
                yield from _field(name, value)


def _reads_as_itself(text: str, now: datetime) -> bool:
    """True if words mean the same at the top level, in brackets and in a list."""
    plain, inside = read(text, now), read(f"({text})", now)
    listed = read(f"or:({text})", now)
    return (plain.fields, plain.problems, inside.fields, listed.fields) == (
        {"query": text}, [], {"and": [plain.fields]}, {"or": [plain.fields]},
    )  # fmt: skip


def _all(filters: list[Fields], now: datetime) -> Iterator[str]:
    """Yield the terms of filters that must all match."""
    if not filters:
        yield "and:()"
    for one in filters:
        # `(a OR b)` would be parsed as the alternatives without `and`
        inside = written(one, now)
        yield f"and:({inside})" if set(one) == {"or"} else f"({inside})"


def _some(filters: list[Fields], now: datetime) -> str:
    """Return the term for filters of which at least one must match."""
    if len(filters) < 2:  # noqa: PLR2004 - fewer than two need `or:`
        return f"or:({' '.join(written(one, now) for one in filters)})"
    return f"({' OR '.join(written(one, now) for one in filters)})"


def _none(one: Fields, now: datetime) -> str:
    """Return the term for a filter that must not match."""
    inside = written(one, now)
    if len(one) == 1 and not set(one) & {"and", "or", "not", "query", *LISTS.values()}:
        return f"-{inside}" if not {"attachment"} & set(one) else f"-({inside})"
    return f"-({inside})"


def _field(name: str, value: Any) -> Iterator[str]:
    """Yield the terms of one field."""
    if name in _FIELDS:
        yield f"{_FIELDS[name]}:{_value(value)}"
    elif name in _TIMES:
        yield f"{_TIMES[name]}:{_time(value)}"
    elif name in _NUMBERS:
        yield f"{_NUMBERS[name]}:{value}"
    elif name in _IS:
        yield _IS[name] if value else _NO[name]
    elif name == "mailbox":
        yield _mailbox(value)
    elif name == "mailboxes":
        yield f"mailboxes:({' , '.join(map(_mailbox, value))})" if value else "or:()"
    elif name == "header":
        part = value.get("contains")
        whole = value["name"] if part is None else f"{value['name']}: {part}"
        yield f"header:{_value(whole)}"
    elif name == "attachment":
        yield from _attachment(value)
    else:
        key = next(key for key, field in LISTS.items() if field == name)
        yield from (f"{key}:{_value(one)}" for one in value)
        if not value:
            yield "or:()"


def _mailbox(value: Mapping[str, str]) -> str:
    if "specialUse" in value:
        return f"in:{SpecialUse(value['specialUse']).lower()}"
    if "path" in value:
        return f"mailbox:{_value(value['path'])}"
    return f"mailboxguid:{value['guid']}" if "guid" in value else f"mailboxid:{value['id']}"


def _attachment(value: Mapping[str, str]) -> Iterator[str]:
    if not value:
        yield "attachment:any"
    for name, key in (("filename", "filename"), ("contentType", "filetype")):
        if name in value:
            yield f"{key}:{_value(value[name])}"


def _time(value: Mapping[str, str]) -> str:
    """Return a time bound as value of a key, as short as possible."""
    if "ago" in value:
        return value["ago"]
    return value["at"].removesuffix("T00:00:00Z")


def _value(text: str) -> str:
    """Return a text, in quotation marks if the parser needs them."""
    return text if _BARE.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
