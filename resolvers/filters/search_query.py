"""Search texts as filter tests: the language of `messages(query:)` for messages being delivered."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mail.filters.sieve_to_conditions import NEVER, Query, merged
from models.errors import Invalid
from resolvers.search.query_keys import Fields
from resolvers.search.query_parser import read

_NOW = datetime(
    1970, 1, 1, tzinfo=UTC
)  # terms with a time are refused, so the value doesn't matter
_WORD = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))')
LATER = "this is not known when a message is delivered"
NO_TEST = "filters can't test this: use from:, to:, cc:, subject:, list:, header: or body:"
_LATER = frozenset(
    ("mailbox", "mailboxes", "mailboxMasks", "searchable", "thread", "uids", "seqs", "guids",
     "seen", "flagged", "answered", "draft", "deleted", "forwarded", "keyword", "receivedSince",
     "receivedBefore", "savedSince", "savedBefore", "expiresBefore", "modifiedSince", "snoozed",
     "submissionStates")
)  # fmt: skip
_HEADERS = {"toOnly": "To", "cc": "Cc", "bcc": "Bcc", "messageId": "Message-ID"}


def tests_of(text: str, path: Sequence[str]) -> Query:
    """Convert a search text to filter tests.

    Raises InvalidInput if the text has a problem ("syntax"), or a term that can't be tested when a
    message is delivered ("unsupported").
    """
    if not text.strip():
        raise Invalid("at least 1 character; null for no such test", constraint="length", path=path)
    found = read(text, _NOW)
    if found.problems:
        words = "; ".join(map(str, found.problems[:5]))
        raise Invalid(words, constraint="syntax", path=path)
    refused = read(text, _NOW, _check).problems
    if refused:
        terms = "; ".join(f"{one.term[:40]!r} at {one.position}: {one.message}" for one in refused)
        raise Invalid(terms, constraint="unsupported", path=path)
    return _query(found.fields)


def _check(fields: Fields) -> None:
    for name in fields:
        if name in _LATER:
            raise Invalid(LATER, constraint="unsupported")
        if name not in _TESTS or (name == "attachment" and fields[name]):
            raise Invalid(NO_TEST, constraint="unsupported")


def _query(fields: Fields) -> Query:
    return merged(_TESTS[name](name, value) for name, value in fields.items())


def _same(name: str, value: Any) -> Query:
    return {name: value}


def _text(_name: str, value: str) -> Query:
    return {"text": value}


def _in_header(name: str, value: str) -> Query:
    return {"header": {"key": _HEADERS[name], "value": value}}


def _header(_name: str, value: Mapping[str, str]) -> Query:
    return {"header": {"key": value["name"], "value": value.get("contains")}}


def _has_file(_name: str, _value: Any) -> Query:
    return {"hasAttachment": True}


def _larger(_name: str, value: int) -> Query:
    return {"size": value} if value else {}


def _smaller(_name: str, value: int) -> Query:
    return {"size": -value} if value else NEVER


def _words(_name: str, value: str) -> Query:
    return merged(_each_word(value))


def _each_word(text: str) -> Iterator[Query]:
    for minus, phrase, word in _WORD.findall(text):
        part = phrase or word.removesuffix("*")
        if part.strip():
            places = {"any": [{name: part} for name in ("subject", "from", "to", "text")]}
            yield {"not": [places]} if minus else places


def _all(_name: str, value: Sequence[Fields]) -> Query:
    return merged(map(_query, value)) if value else NEVER


def _any(_name: str, value: Sequence[Fields]) -> Query:
    return {"any": [_query(one) for one in value]} if value else NEVER


def _not(_name: str, value: Fields) -> Query:
    return {"not": [_query(value)]}


_TESTS: dict[str, Callable[[str, Any], Query]] = {
    **dict.fromkeys(("from", "to", "subject", "listId", "hasAttachment"), _same),
    **dict.fromkeys(_HEADERS, _in_header),
    "body": _text, "header": _header, "attachment": _has_file,
    "larger": _larger, "smaller": _smaller, "query": _words,
    "and": _all, "or": _any, "not": _not,
}  # fmt: skip
