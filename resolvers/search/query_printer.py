"""Print search filters in the syntax that `resolvers/search/query_parser.py` parses."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from models.mailboxes.tables import SpecialUse
from resolvers.search.query_keys import (
    ENUM_FIELDS,
    FLAG_FIELDS,
    LIST_FIELDS,
    NUMBER_FIELDS,
    TEXT_FIELDS,
    TIME_FIELDS,
    FilterFields,
)
from resolvers.search.query_parser import parse_search_query

_UNQUOTED_VALUE = re.compile(r"[^\s()\":,\\-][^\s()\":,\\]*")
_KEY_BY_TEXT_FIELD = {
    field: key for key, field in reversed(TEXT_FIELDS.items()) if field != "query"
}
_KEY_BY_TIME_FIELD = {field: key for key, field in reversed(TIME_FIELDS.items())}
_KEY_BY_PLAIN_FIELD = {field: key for key, field in NUMBER_FIELDS.items()} | {
    field: key for key, (field, _) in ENUM_FIELDS.items()
}
_TERM_FOR_TRUE = {field: f"is:{key}" for key, field in FLAG_FIELDS.items()} | {
    "hasAttachment": "has:attachment"
}
_TERM_FOR_FALSE = {field: f"{key}:no" for key, field in FLAG_FIELDS.items()} | {
    "seen": "is:unseen", "hasAttachment": "attachment:no",
}  # fmt: skip


def query_from_fields(fields: FilterFields, now: datetime) -> str:
    """Return a filter, given by its JSON fields, as text of the search syntax."""
    return " ".join(_terms_from_fields(fields, now)) or "ALL"


def _terms_from_fields(fields: FilterFields, now: datetime) -> Iterator[str]:
    """Yield the terms of a filter's fields."""
    for name, value in fields.items():
        match name:
            case "and":
                yield from _terms_from_conjunction(value, now)
            case "or":
                yield _term_from_alternatives(value, now)
            case "not":
                yield _term_from_negation(value, now)
            case "query":
                yield value if _parses_as_plain_words(value, now) else f"query:{_quote_text(value)}"
            case _:
                yield from _terms_from_field(name, value)


def _parses_as_plain_words(text: str, now: datetime) -> bool:
    """True if words mean the same at the top level, in brackets and in a list."""
    plain, inside = parse_search_query(text, now), parse_search_query(f"({text})", now)
    listed = parse_search_query(f"or:({text})", now)
    return (plain.fields, plain.problems, inside.fields, listed.fields) == (
        {"query": text}, [], {"and": [plain.fields]}, {"or": [plain.fields]},
    )  # fmt: skip


def _terms_from_conjunction(filters: list[FilterFields], now: datetime) -> Iterator[str]:
    """Yield the terms of filters that must all match."""
    if not filters:
        yield "and:()"
    for filter_ in filters:
        # `(a OR b)` would be parsed as the alternatives without `and`
        inside = query_from_fields(filter_, now)
        yield f"and:({inside})" if set(filter_) == {"or"} else f"({inside})"


def _term_from_alternatives(filters: list[FilterFields], now: datetime) -> str:
    """Return the term for filters of which at least one must match."""
    if len(filters) < 2:  # noqa: PLR2004 - fewer than two need `or:`
        return f"or:({' '.join(query_from_fields(filter_, now) for filter_ in filters)})"
    return f"({' OR '.join(query_from_fields(filter_, now) for filter_ in filters)})"


def _term_from_negation(fields: FilterFields, now: datetime) -> str:
    """Return the term for a filter that must not match."""
    inside = query_from_fields(fields, now)
    if len(fields) == 1 and not set(fields) & {"and", "or", "not", "query", *LIST_FIELDS.values()}:
        return f"-{inside}" if not {"attachment"} & set(fields) else f"-({inside})"
    return f"-({inside})"


def _terms_from_field(name: str, value: Any) -> Iterator[str]:
    """Yield the terms of one field."""
    if name in _KEY_BY_TEXT_FIELD:
        yield f"{_KEY_BY_TEXT_FIELD[name]}:{_quoted_if_needed(value)}"
    elif name in _KEY_BY_TIME_FIELD:
        yield f"{_KEY_BY_TIME_FIELD[name]}:{_time_value(value)}"
    elif name in _KEY_BY_PLAIN_FIELD:
        yield f"{_KEY_BY_PLAIN_FIELD[name]}:{value}"
    elif name in _TERM_FOR_TRUE:
        yield _TERM_FOR_TRUE[name] if value else _TERM_FOR_FALSE[name]
    elif name in ("mailbox", "thread"):
        yield _term_from_mailbox(value) if name == "mailbox" else _term_from_thread(value)
    elif name == "mailboxes":
        yield f"mailboxes:({' , '.join(map(_term_from_mailbox, value))})" if value else "or:()"
    elif name == "header":
        part = value.get("contains")
        term = value["name"] if part is None else f"{value['name']}: {part}"
        yield f"header:{_quoted_if_needed(term)}"
    elif name == "attachment":
        yield from _terms_from_attachment(value)
    else:
        key = next(key for key, field in LIST_FIELDS.items() if field == name)
        yield from (f"{key}:{_quoted_if_needed(item)}" for item in value)
        if not value:
            yield "or:()"


def _term_from_mailbox(mailbox: Mapping[str, str]) -> str:
    if "specialUse" in mailbox:
        return f"in:{SpecialUse(mailbox['specialUse']).lower()}"
    if "path" in mailbox:
        return f"mailbox:{_quoted_if_needed(mailbox['path'])}"
    if "objectId" in mailbox:
        return f"mailboxguid:{mailbox['objectId']}"
    return f"mailboxid:{mailbox['id']}"


def _term_from_thread(thread: Mapping[str, str]) -> str:
    return f"thread:{_quoted_if_needed(thread['id'])}"


def _terms_from_attachment(attachment: Mapping[str, str]) -> Iterator[str]:
    if not attachment:
        yield "attachment:any"
    for name, key in (("filename", "filename"), ("contentType", "filetype")):
        if name in attachment:
            yield f"{key}:{_quoted_if_needed(attachment[name])}"


def _time_value(time_bound: Mapping[str, str]) -> str:
    """Return a time bound as value of a key, as short as possible."""
    if "ago" in time_bound:
        return time_bound["ago"]
    return time_bound["at"].removesuffix("T00:00:00Z")


def _quoted_if_needed(text: str) -> str:
    """Return a text, in quotation marks if the parser needs them."""
    return text if _UNQUOTED_VALUE.fullmatch(text) else _quote_text(text)


def _quote_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
