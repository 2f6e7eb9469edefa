"""Test pages of searches in a large account: every query plan returns the same."""

import random
from datetime import timedelta
from itertools import product
from typing import Any, NamedTuple

import pytest
from sqlalchemy import insert, select, update

from mail.search.tokenizer import index_values, message_words
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import select_columns
from tests.conftest import GraphQLClient, ManualClock, deliver_to, raw_message
from tests.support.case_loop import each_case

MESSAGE_COUNT = 1700
UNINDEXED_COUNT = 20  # messages that are not indexed yet; their words are those of the body
PAGE_SIZE = 97
PAGE_QUERY = """
query ($filter: MessageFilter, $orderBy: MessageOrder!, $first: Int, $after: String, $last: Int,
       $before: String) {
  messages(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last,
           before: $before) {
    nodes { subject } pageInfo { startCursor endCursor hasNextPage hasPreviousPage } } }
"""
MAILBOX_PAGE_QUERY = """
query ($filter: MessageFilter, $first: Int) { viewer { user { mailbox(by: {specialUse: INBOX}) {
  messages(filter: $filter, first: $first) { nodes { subject } } } } } }
"""


class ListedMessage(NamedTuple):
    """A message for the reference implementation. Sorts like a list that begins with the oldest."""

    listed_at: Any
    id: int
    subject: str
    words: set[str]
    seen: bool
    flagged: bool


@pytest.fixture
async def messages(ada: GraphQLClient, clock: ManualClock) -> list[ListedMessage]:
    """Many messages, oldest first. IDs are not in order of time, and many have the same time."""
    await deliver_to(ada, raw_message("Like", body="most tenth"))
    (template,) = await ada.environment.database.read(select(*select_columns(Message)))
    generator = random.Random(3)  # noqa: S311
    start, dialect = clock(), ada.environment.database.dialect
    rows, words, listed = [], [], []
    for nth in range(MESSAGE_COUNT):
        minute = 500 if nth % 4 == 0 else generator.randrange(900)
        own_words = {
            word for word, part in (("most", 0.8), ("tenth", 0.1)) if generator.random() < part
        }
        own_words |= {"some"} if nth % 340 == 7 else set()
        columns: dict[str, Any] = {
            "id": ada.environment.new_id(),
            "uid": nth + 2,
            "subject": f"N{nth}",
        }
        columns |= {
            "listed_at": start + timedelta(minutes=minute),
            "indexed": nth >= UNINDEXED_COUNT,
        }
        columns |= {"seen": generator.random() < 0.9, "flagged": minute < 3}
        rows.append({**dict(zip(template._fields, template, strict=True)), **columns})
        if columns["indexed"]:
            index_row = index_values(dialect, ada.user.id, message_words(" ".join(own_words)))
            words.append({"id": columns["id"], **index_row})
        else:
            own_words = {"most", "tenth"}
        at, key, subject = (columns[name] for name in ("listed_at", "id", "subject"))
        listed.append(
            ListedMessage(at, key, subject, own_words, columns["seen"], columns["flagged"])
        )
    async with ada.environment.write_session() as session:
        connection = await session.connection()
        archive_update = update(Message).values(deleted_at=start, mailbox_id=None, indexed=True)
        await connection.execute(archive_update)
        await connection.execute(insert(Message), rows)
        await connection.run_sync(text_index.insert_messages, words)
    return sorted(listed)


FILTERS: list[tuple[dict[str, Any], Any]] = [
    ({"query": "most"}, lambda message: "most" in message.words),
    (
        {"query": "most -tenth"},
        lambda message: "most" in message.words and "tenth" not in message.words,
    ),
    ({"query": "some"}, lambda message: "some" in message.words),
    ({"query": "tenth", "seen": True}, lambda message: "tenth" in message.words and message.seen),
    (
        {"and": [{"query": "mos*"}, {"not": {"seen": True}}]},
        lambda message: "most" in message.words and not message.seen,
    ),
    (
        {"query": "most", "subject": "7"},
        lambda message: "most" in message.words and "7" in message.subject,
    ),
    (
        {"query": "some", "seen": False},
        lambda message: "some" in message.words and not message.seen,
    ),
]


async def read_all_pages(
    client: GraphQLClient, variables: dict[str, Any], *, is_forward: bool
) -> list[str]:
    """Read all pages of a search, from the first one or from the last one."""
    count, cursor, has_more_key, cursor_key = (
        ("first", "after", "hasNextPage", "endCursor")
        if is_forward
        else ("last", "before", "hasPreviousPage", "startCursor")
    )
    paged_subjects: list[str] = []
    position: dict[str, Any] = {}
    while True:
        page = (await client(PAGE_QUERY, **variables, **position, **{count: PAGE_SIZE}))["messages"]
        subjects = [node["subject"] for node in page["nodes"]]
        paged_subjects = (
            [*paged_subjects, *subjects] if is_forward else [*subjects, *paged_subjects]
        )
        if not page["pageInfo"][has_more_key]:
            return paged_subjects
        position = {cursor: page["pageInfo"][cursor_key]}


async def test_search_pages_are_complete(ada: GraphQLClient, messages: list[ListedMessage]) -> None:
    for case in each_case(product(FILTERS, ["RECEIVED_AT_DESC", "RECEIVED_AT_ASC"])):
        with case as ((filter_, matches), order):
            expected = [message.subject for message in messages if matches(message)]
            expected = expected[::-1] if order == "RECEIVED_AT_DESC" else expected
            assert expected or filter_ == {"query": "some", "seen": False}
            variables = {"filter": filter_, "orderBy": order}
            assert await read_all_pages(ada, variables, is_forward=True) == expected
            assert await read_all_pages(ada, variables, is_forward=False) == expected


async def test_search_finds_old_messages_behind_many_others(
    ada: GraphQLClient, messages: list[ListedMessage]
) -> None:
    old_subjects = [
        message.subject for message in messages if message.flagged and "most" in message.words
    ]
    variables: dict[str, Any] = {"filter": {"query": "most", "flagged": True}}
    for count in (1, 2):
        page = (await ada(PAGE_QUERY, **variables, orderBy="RECEIVED_AT_DESC", first=count))[
            "messages"
        ]
        assert [node["subject"] for node in page["nodes"]] == old_subjects[::-1][:count]
        assert page["pageInfo"]["hasNextPage"]
    newest = [message.subject for message in messages if "most" in message.words][::-1]
    mailbox = (await ada(MAILBOX_PAGE_QUERY, filter={"query": "most"}, first=9))["viewer"]["user"][
        "mailbox"
    ]
    assert [node["subject"] for node in mailbox["messages"]["nodes"]] == newest[:9]
