"""Pages of searches in a large account: whatever way leads to them, they are the same."""

import random
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from sqlalchemy import insert, select, update

from mail.search.tokenizer import index_values, message_words
from models.messages.tables import Message
from models.search import text_index
from models.store.columns import select_columns
from tests.conftest import Client, Clock, raw_message, receive

MANY = 1700
WAITING = 20  # that are not in the index yet; they have the words of the body
COUNT = 97  # of a page
PAGE = """
query ($filter: MessageFilter, $orderBy: MessageOrder!, $first: Int, $after: String, $last: Int,
       $before: String) {
  messages(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last,
           before: $before) {
    nodes { subject } pageInfo { startCursor endCursor hasNextPage hasPreviousPage } } }
"""
BOX = """
query ($filter: MessageFilter, $first: Int) { viewer { user { mailbox(by: {specialUse: INBOX}) {
  messages(filter: $filter, first: $first) { nodes { subject } } } } } }
"""


class Letter(NamedTuple):
    """What a slow filter looks at; they are sorted as a list is that begins with the oldest."""

    at: Any
    id: int
    subject: str
    words: set[str]
    seen: bool
    flagged: bool


@pytest.fixture
async def letters(ada: Client, clock: Clock) -> list[Letter]:
    """Many messages, the oldest first: keys in no order of time, and many at the same time."""
    await receive(ada, raw_message("Like", body="most tenth"))
    (like,) = await ada.world.database.read(select(*select_columns(Message)))
    dice = random.Random(3)  # noqa: S311
    begin, dialect = clock(), ada.world.database.dialect
    rows, words, made = [], [], []
    for nth in range(MANY):
        minute = 500 if nth % 4 == 0 else dice.randrange(900)
        said = {word for word, part in (("most", 0.8), ("tenth", 0.1)) if dice.random() < part}
        said |= {"some"} if nth % 340 == 7 else set()
        own: dict[str, Any] = {"id": ada.world.new_id(), "uid": nth + 2, "subject": f"N{nth}"}
        own |= {"listed_at": begin + timedelta(minutes=minute), "indexed": nth >= WAITING}
        own |= {"seen": dice.random() < 0.9, "flagged": minute < 3}
        rows.append({**dict(zip(like._fields, like, strict=True)), **own})
        if own["indexed"]:
            found = index_values(dialect, ada.user.id, message_words(" ".join(said)))
            words.append({"id": own["id"], **found})
        else:
            said = {"most", "tenth"}
        at, key, subject = (own[name] for name in ("listed_at", "id", "subject"))
        made.append(Letter(at, key, subject, said, own["seen"], own["flagged"]))
    async with ada.world.write_session() as session:
        connection = await session.connection()
        away = update(Message).values(archived_at=begin, mailbox_id=None, indexed=True)
        await connection.execute(away)
        await connection.execute(insert(Message), rows)
        await connection.execute(text_index.insert_statement(dialect), words)
    return sorted(made)


FILTERS: list[tuple[dict[str, Any], Any]] = [
    ({"query": "most"}, lambda one: "most" in one.words),
    ({"query": "most -tenth"}, lambda one: "most" in one.words and "tenth" not in one.words),
    ({"query": "some"}, lambda one: "some" in one.words),
    ({"query": "tenth", "seen": True}, lambda one: "tenth" in one.words and one.seen),
    (
        {"and": [{"query": "mos*"}, {"not": {"seen": True}}]},
        lambda one: "most" in one.words and not one.seen,
    ),
    (
        {"query": "most", "subject": "7"},
        lambda one: "most" in one.words and "7" in one.subject,
    ),
    ({"query": "some", "seen": False}, lambda one: "some" in one.words and not one.seen),
]


@pytest.mark.parametrize(("given", "holds"), FILTERS)
@pytest.mark.parametrize("order", ["RECEIVED_DESC", "RECEIVED_ASC"])
async def test_all_pages_of_a_search_are_there(
    ada: Client, letters: list[Letter], given: dict[str, Any], holds: Any, order: str
) -> None:
    expected = [one.subject for one in letters if holds(one)]
    expected = expected[::-1] if order == "RECEIVED_DESC" else expected
    assert expected or given == {"query": "some", "seen": False}
    asked = {"filter": given, "orderBy": order}
    for count, cursor, more, at in (
        ("first", "after", "hasNextPage", "endCursor"),
        ("last", "before", "hasPreviousPage", "startCursor"),
    ):
        found: list[str] = []
        place: dict[str, Any] = {}
        while True:
            page = (await ada(PAGE, **asked, **place, **{count: COUNT}))["messages"]
            subjects = [node["subject"] for node in page["nodes"]]
            found = [*found, *subjects] if count == "first" else [*subjects, *found]
            if not page["pageInfo"][more]:
                break
            place = {cursor: page["pageInfo"][at]}
        assert found == expected


async def test_what_is_far_behind_is_found_too(ada: Client, letters: list[Letter]) -> None:
    old = [one.subject for one in letters if one.flagged and "most" in one.words]
    asked: dict[str, Any] = {"filter": {"query": "most", "flagged": True}}
    for count in (1, 2):
        page = (await ada(PAGE, **asked, orderBy="RECEIVED_DESC", first=count))["messages"]
        assert [node["subject"] for node in page["nodes"]] == old[::-1][:count]
        assert page["pageInfo"]["hasNextPage"]
    newest = [one.subject for one in letters if "most" in one.words][::-1]
    box = (await ada(BOX, filter={"query": "most"}, first=9))["viewer"]["user"]["mailbox"]
    assert [node["subject"] for node in box["messages"]["nodes"]] == newest[:9]
