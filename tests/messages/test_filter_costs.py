"""Test that lists with any condition read few rows of an account with 50,000 messages.

The conditions are those of `MessageFilter` and the words of the search language, so that a new
one is covered. Their values match no message, or as few as there are: this is the longest search.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from graphql import GraphQLInputField, get_named_type
from sqlalchemy import text

from graph.schema import schema as strawberry_schema
from graph.types import global_ids
from resolvers.pagination import MAX_TESTED_ROWS
from resolvers.search import query_keys
from resolvers.search.query_parser import fields_from_valid_query
from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.large_account import (
    SelectCostRecorder,
    copy_message,
    record_select_costs,
)

MESSAGE_COUNT = 50_000  # more than twice the rows that a page may read
FIRST_ID = 1 << 40
MAX_ROWS_BY_INDEX = 2_000  # PostgreSQL sorts the 500 unseen messages
MAX_ROWS_IN_STEPS = 2 * MAX_TESTED_ROWS  # the end of a step, and the rows of the step
MAX_ROWS_READ_FOR_TEXT = 3_000  # MAX_READ_MESSAGES, and the rows of the page

ANY_PART = "a part of a text has no index in list order"
RANGE = "an index by this value doesn't have the order of the list"
MOST = "in most accounts, most messages fulfill it"
MAILBOXES = "several mailboxes have no common index in list order"
SEARCHED_IN_STEPS = {  # conditions without index, and why; a page tests MAX_TESTED_ROWS messages
    **dict.fromkeys(
        ("from", "to", "toOrCc", "cc", "bcc", "anyRecipient", "subject", "listId", "attachment"),
        ANY_PART,
    ),
    **dict.fromkeys(
        ("larger", "smaller", "modifiedSince", "sentSince", "sentBefore", "savedSince"), RANGE
    ),
    **dict.fromkeys(("savedBefore", "expiresBefore"), RANGE),
    **dict.fromkeys(("searchable", "hasAttachment", "tier"), MOST),
    **dict.fromkeys(("mailboxes", "mailboxPatterns"), MAILBOXES),
    "uids": "a large set is tested on the messages of its mailbox",
    "submissionStates": "the submissions are in another table",
}
COUNTS_MAILBOX = ("seqs",)  # sequence numbers are counted along the UIDs of the mailbox
READS_TEXT = ("text", "body", "header")  # at most MAX_READ_MESSAGES, else LIMIT_REACHED
GROUPS = ("and", "or", "not")  # of other conditions

INBOX = {"path": "INBOX"}
VALUES: dict[str, list[Any]] = {  # of conditions whose type doesn't give a value
    "query": ["zebra", "hello -duck"],
    "header": [{"name": "X-None", "contains": "zebra"}],
    "messageIdHeader": ["<none@example.org>"],
    "mailbox": [INBOX, {"path": "Empty"}],
    "mailboxes": [[{"path": "Empty"}], [INBOX, {"path": "Empty"}]],
    "mailboxPatterns": [["None*"], ["*"]],
    "thread": [{"id": global_ids.encode("Thread", FIRST_ID + 7)}],
    "uids": ["1500,1502", "1:*"],
    "seqs": ["5,7", "1:*"],
    "emailIds": [[f"{FIRST_ID + 9:032x}"]],
    "attachment": [{"filename": "zebra"}, {"contentType": "video/zebra"}],
    "tier": ["COLD", "HOT"],
    "submissionStates": [["SCHEDULED"], ["SENT"]],
    "larger": [10**9],
    "smaller": [1],
    "modifiedSince": [10**9],
}
TIME_VALUES = {"Since": {"at": "2100-01-01T00:00:00Z"}, "Before": {"at": "1990-01-01T00:00:00Z"}}
WORD_VALUES = {  # of keys of the search language, if "zebra" is not allowed
    **dict.fromkeys((*query_keys.TIME_FIELDS, *query_keys.DAY_FIELDS), "1990-01-01"),
    **dict.fromkeys(query_keys.NUMBER_FIELDS, "1000000000"),
    **dict.fromkeys(query_keys.FLAG_FIELDS, "yes"),
    **dict.fromkeys(("uid", "seq"), "5"),
    **dict.fromkeys(("in", "mailbox", "folder"), "INBOX"),
    "hasattachment": "yes",
    "is": "flagged",
    "has": "attachment",
    "thread": global_ids.encode("Thread", FIRST_ID + 7),
    "emailid": "0" * 32,
    "submission": "scheduled",
    "tier": "cold",
}
NEEDS_MAILBOX = ("uids", "seqs")
SCOPES = {
    "account": "query ($f: MessageFilter!) { viewer { user { messages(first: 20, filter: $f) "
    "{ nodes { id } pageInfo { hasNextPage } } } } }",
    "mailbox": 'query ($f: MessageFilter!) { viewer { user { mailbox(by: {path: "INBOX"}) { '
    "messages(first: 20, filter: $f) { nodes { id } pageInfo { hasNextPage } } } } } }",
}


class FilterCase(NamedTuple):
    """A filter with one condition, and the names of the conditions that it consists of."""

    filter: dict[str, Any]
    conditions: frozenset[str]

    @property
    def max_rows(self) -> int:
        """The highest number of rows that a statement of its page reads."""
        if self.conditions & set(READS_TEXT):
            return MAX_ROWS_READ_FOR_TEXT
        if self.conditions & set(COUNTS_MAILBOX):
            return 2 * MESSAGE_COUNT
        if self.conditions & set(SEARCHED_IN_STEPS):
            return MAX_ROWS_IN_STEPS
        return MAX_ROWS_BY_INDEX


def values_of_field(name: str, field: GraphQLInputField) -> list[Any]:
    """Return the values of a condition to test."""
    if name in VALUES:
        return VALUES[name]
    kind = get_named_type(field.type).name
    if kind == "Boolean":
        return [True, False]
    if kind == "String":
        return ["zebra"]
    assert kind == "PastTimeInput", f"add a value of the new condition {name}"
    return list(TIME_VALUES.values())


def filter_cases() -> Iterator[FilterCase]:
    """Yield each condition of MessageFilter alone."""
    filter_type: Any = strawberry_schema._schema.type_map["MessageFilter"]  # noqa: SLF001
    for name, field in filter_type.fields.items():
        if name not in GROUPS:
            for value in values_of_field(name, field):
                extra = {"mailbox": INBOX} if name in NEEDS_MAILBOX else {}
                yield FilterCase({name: value, **extra}, frozenset({name}))


def word_cases() -> Iterator[FilterCase]:
    """Yield each word of the search language alone; of words with one meaning, only one."""
    words = [f"is:{state}" for state in query_keys.STATE_CONDITIONS]
    words += [f"{key}:{WORD_VALUES.get(key, 'zebra')}" for key in sorted(query_keys.KNOWN_KEYS)]
    for name, key in query_keys.DOVEADM_KEYS.items():
        if name == "ALL":  # no condition
            continue
        plain = {"GUID": "emailid", "INTHREAD": "thread"}.get(name, name.lower())
        values = [WORD_VALUES.get(plain, "zebra")] * key.value_count
        words.append(" ".join([name, *values]))
    words_by_meaning = {
        repr(fields_from_valid_query(word, datetime.now(UTC), ["query"])): word for word in words
    }
    for word in words_by_meaning.values():
        extra = {"mailbox": INBOX} if word.lower().startswith(("uid", "seq")) else {}
        names = condition_names(fields_from_valid_query(word, datetime.now(UTC), ["query"]))
        yield FilterCase({"query": word, **extra}, frozenset(names))


def condition_names(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the conditions in a filter."""
    for name, value in fields.items():
        yield name
        for part in value if name in ("and", "or") else [value] if name == "not" else []:
            yield from condition_names(part)


@pytest.fixture
async def large_account(ada: GraphQLClient) -> GraphQLClient:
    """Return an account with 50,000 messages; one of 100 is unseen."""
    await deliver_to(ada, "Hello duck")
    await copy_message(ada, MESSAGE_COUNT, base=FIRST_ID)
    async with ada.environment.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    return ada


async def find_expensive_pages(
    client: GraphQLClient, recorder: SelectCostRecorder, case: FilterCase
) -> list[str]:
    problems = []
    for scope, document in SCOPES.items():
        costs = await recorder.count_rows_read(client.execute(document, f=case.filter))
        rows, sql = max(((rows, sql) for sql, rows in costs.items()), default=(0, ""))
        if rows > case.max_rows:
            problems.append(f"{case.filter} in {scope}: {rows} rows\n{sql}")
    return problems


async def test_page_with_one_condition_reads_few_rows(large_account: GraphQLClient) -> None:
    with record_select_costs(large_account.environment) as recorder:
        problems = [
            problem
            for case in (*filter_cases(), *word_cases())
            for problem in await find_expensive_pages(large_account, recorder, case)
        ]
    assert not problems, "\n\n".join(problems)
