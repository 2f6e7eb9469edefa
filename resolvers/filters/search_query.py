"""Search texts as filter tests: the language of `messages(query:)` for messages being delivered."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mail.filters.sieve_to_conditions import NEVER_TRUE, QueryForm, query_requiring_all
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint
from resolvers.search.query_keys import FilterFields
from resolvers.search.query_parser import parse_search_query

# terms with a time are refused, so the value doesn't matter
_ANY_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_WORD_PATTERN = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))')
NOT_AT_DELIVERY_MESSAGE = "The term can't be tested when a message is delivered."
NO_TEST_MESSAGE = (
    "A filter can't test this: use from:, to:, cc:, subject:, list:, header: or body:."
)
_FIELDS_NOT_AT_DELIVERY = frozenset(
    ("mailbox", "mailboxes", "mailboxPatterns", "searchable", "thread", "uids", "seqs", "emailIds",
     "seen", "flagged", "answered", "draft", "deleted", "forwarded", "keyword", "receivedSince",
     "receivedBefore", "savedSince", "savedBefore", "expiresBefore", "modifiedSince", "snoozed",
     "submissionStates")
)  # fmt: skip
_HEADER_BY_FIELD = {"to": "To", "cc": "Cc", "bcc": "Bcc", "messageIdHeader": "Message-ID"}


def filter_tests_from_search_text(search_text: str, input_path: Sequence[str]) -> QueryForm:
    """Convert a search text to filter tests.

    Raises InvalidInput if the text has a problem ("syntax"), or a term that can't be tested when a
    message is delivered ("unsupported").
    """
    if not search_text.strip():
        raise InvalidInput(
            "Must have at least 1 character. Null removes the test.",
            constraint=ValidationConstraint.LENGTH,
            path=input_path,
        )
    query = parse_search_query(search_text, _ANY_TIME)
    if query.problems:
        error_text = " ".join(map(str, query.problems[:5]))
        raise InvalidInput(error_text, constraint=ValidationConstraint.SYNTAX, path=input_path)
    refused = parse_search_query(search_text, _ANY_TIME, _require_testable_at_delivery).problems
    if refused:
        terms = " ".join(
            f"{problem.term[:40]!r} at position {problem.position}: {problem.message}"
            for problem in refused
        )
        raise InvalidInput(terms, constraint=ValidationConstraint.UNSUPPORTED, path=input_path)
    return _query_from_fields(query.fields)


def _require_testable_at_delivery(fields: FilterFields) -> None:
    for name in fields:
        if name in _FIELDS_NOT_AT_DELIVERY:
            raise InvalidInput(NOT_AT_DELIVERY_MESSAGE, constraint=ValidationConstraint.UNSUPPORTED)
        if name not in _TEST_BUILDERS or (name == "attachment" and fields[name]):
            raise InvalidInput(NO_TEST_MESSAGE, constraint=ValidationConstraint.UNSUPPORTED)


def _query_from_fields(fields: FilterFields) -> QueryForm:
    return query_requiring_all(_TEST_BUILDERS[name](name, value) for name, value in fields.items())


def _test_of_same_name(name: str, value: Any) -> QueryForm:
    return {name: value}


def _to_or_cc_test(_name: str, value: str) -> QueryForm:
    return {"to": value}


def _body_test(_name: str, value: str) -> QueryForm:
    return {"text": value}


def _named_header_test(name: str, value: str) -> QueryForm:
    return {"header": {"key": _HEADER_BY_FIELD[name], "value": value}}


def _header_test(_name: str, value: Mapping[str, str]) -> QueryForm:
    return {"header": {"key": value["name"], "value": value.get("contains")}}


def _attachment_test(_name: str, _value: Any) -> QueryForm:
    return {"hasAttachment": True}


def _larger_test(_name: str, value: int) -> QueryForm:
    return {"larger": value} if value else {}


def _smaller_test(_name: str, value: int) -> QueryForm:
    return {"smaller": value} if value else NEVER_TRUE


def _words_test(_name: str, value: str) -> QueryForm:
    return query_requiring_all(_test_of_each_word(value))


def _test_of_each_word(search_text: str) -> Iterator[QueryForm]:
    for minus, phrase, plain_word in _WORD_PATTERN.findall(search_text):
        part = phrase or plain_word.removesuffix("*")
        if part.strip():
            tests_by_field = {"any": [{name: part} for name in ("subject", "from", "to", "text")]}
            yield {"not": [tests_by_field]} if minus else tests_by_field


def _all_test(_name: str, value: Sequence[FilterFields]) -> QueryForm:
    return query_requiring_all(map(_query_from_fields, value)) if value else NEVER_TRUE


def _any_test(_name: str, value: Sequence[FilterFields]) -> QueryForm:
    return {"any": [_query_from_fields(item) for item in value]} if value else NEVER_TRUE


def _not_test(_name: str, value: FilterFields) -> QueryForm:
    return {"not": [_query_from_fields(value)]}


_TEST_BUILDERS: dict[str, Callable[[str, Any], QueryForm]] = {
    **dict.fromkeys(("from", "subject", "listId", "hasAttachment"), _test_of_same_name),
    "toOrCc": _to_or_cc_test,
    **dict.fromkeys(_HEADER_BY_FIELD, _named_header_test),
    "body": _body_test, "header": _header_test, "attachment": _attachment_test,
    "larger": _larger_test, "smaller": _smaller_test, "query": _words_test,
    "and": _all_test, "or": _any_test, "not": _not_test,
}  # fmt: skip
