"""Test lists of messages with the unseen messages first, or the seen ones first."""

from itertools import chain
from typing import Any

import pytest
from sqlalchemy import text

from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.large_account import copy_message
from tests.support.accounts.shared_mailboxes import mailbox_global_id
from tests.support.operations.bulk_operations import (
    inbox_selection,
    run_message_mutation,
    user_selection,
)
from tests.support.stores.query_plans import record_query_plans

PAGE = """query ($filter: MessageFilter, $users: UserSelection, $order: MessageOrder!, $first: Int,
  $after: String, $last: Int, $before: String) {
  messages(filter: $filter, users: $users, orderBy: $order, first: $first, after: $after,
    last: $last, before: $before) {
    totalCount nodes { subject seen } edges { cursor }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }"""
THREAD_PAGE = """query ($order: MessageOrder!) { messages(first: 1) { nodes {
  thread { messages(orderBy: $order) { nodes { subject seen } } } } } }"""
ORDERS = {"SEEN_ASC": (False, True), "SEEN_DESC": (True, False)}
SEEN_NUMBERS = {0, 3, 4, 8}
MESSAGE_COUNT = 10


@pytest.fixture
async def reader(ada: GraphQLClient) -> GraphQLClient:
    await deliver_numbered_messages(ada)
    return ada


async def deliver_numbered_messages(client: GraphQLClient) -> None:
    """Deliver messages with their numbers as subjects, and mark some of them as seen."""
    for number in range(MESSAGE_COUNT):
        await deliver_to(client, str(number))
    uids = ",".join(str(number + 1) for number in SEEN_NUMBERS)
    await run_message_mutation(
        client, "messageUpdate", select=inbox_selection(uids), set={"seen": True}
    )


def expected_numbers(order: str, numbers: range = range(MESSAGE_COUNT)) -> list[int]:
    """Return the numbers of the delivered messages in an order."""
    first, second = (
        [number for number in reversed(numbers) if (number in SEEN_NUMBERS) is seen]
        for seen in ORDERS[order]
    )
    return first + second


async def load_page(client: GraphQLClient, order: str, **arguments: Any) -> Any:
    return (await client(PAGE, order=order, **arguments))["messages"]


def numbers_of(page: Any) -> list[int]:
    return [int(node["subject"]) for node in page["nodes"]]


async def read_all_pages(
    client: GraphQLClient, order: str, size: int, *, backward: bool = False, **arguments: Any
) -> list[list[int]]:
    """Read all pages in the order of the requests. Each leads to the next by its cursor."""
    count, position = ("last", "before") if backward else ("first", "after")
    pages, cursor = [], None
    while True:
        given = {count: size, position: cursor, **arguments}
        page = await load_page(client, order, **given)
        info = page["pageInfo"]
        if page["edges"] and not backward:  # backward, the search can end before the first row
            assert page["edges"][0]["cursor"] == info["startCursor"]
        pages.append(numbers_of(page))
        if not info["hasPreviousPage" if backward else "hasNextPage"]:
            return pages
        cursor = info["startCursor" if backward else "endCursor"]


@pytest.mark.parametrize("order", ORDERS)
async def test_pages_of_each_size_have_all_messages_in_order(
    reader: GraphQLClient, order: str
) -> None:
    expected = expected_numbers(order)
    for size in range(1, MESSAGE_COUNT + 2):
        pages = await read_all_pages(reader, order, size)
        assert list(chain.from_iterable(pages)) == expected
        assert {len(page) for page in pages[:-1]} <= {size}
        assert pages[-1]
        pages = await read_all_pages(reader, order, size, backward=True)
        assert list(chain.from_iterable(reversed(pages))) == expected
        assert {len(page) for page in pages[:-1]} <= {size}


@pytest.mark.parametrize("order", ORDERS)
async def test_filters_searches_and_threads_have_the_order(
    reader: GraphQLClient, order: str
) -> None:
    expected = expected_numbers(order)
    for seen in (True, False):
        page = await load_page(reader, order, filter={"seen": seen})
        matches = [number for number in expected if (number in SEEN_NUMBERS) is seen]
        assert (numbers_of(page), page["totalCount"]) == (matches, len(matches))
        page = await load_page(reader, order, filter={"and": [{"seen": seen}]}, first=2)
        assert numbers_of(page) == matches[:2]
    searched = {"or": [{"query": "subject:3"}, {"query": "subject:7"}]}
    page = await load_page(reader, order, filter=searched)
    assert numbers_of(page) == [number for number in expected if number in {3, 7}]
    threads = await reader(THREAD_PAGE, order=order)
    (newest,) = threads["messages"]["nodes"]
    assert numbers_of(newest["thread"]["messages"]) == [MESSAGE_COUNT - 1]


@pytest.mark.parametrize("order", ORDERS)
async def test_lists_of_two_users_are_merged(
    reader: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, order: str
) -> None:
    await deliver_numbered_messages(bob)
    users = user_selection(reader, bob)
    for backward in (False, True):
        pages = await read_all_pages(root, order, 3, backward=backward, users=users)
        listed = list(chain.from_iterable(reversed(pages) if backward else pages))
        seen_of_listed = [number in SEEN_NUMBERS for number in listed]
        assert seen_of_listed == sorted(seen_of_listed, reverse=order == "SEEN_DESC")
        assert sorted(listed) == sorted(2 * list(range(MESSAGE_COUNT)))


async def test_pages_follow_the_flag(reader: GraphQLClient) -> None:
    page = await load_page(reader, "SEEN_ASC", first=1)
    assert numbers_of(page) == [9]
    await run_message_mutation(
        reader, "messageUpdate", select=inbox_selection("10"), set={"seen": True}
    )
    assert numbers_of(await load_page(reader, "SEEN_ASC", first=1)) == [7]
    rest = await load_page(reader, "SEEN_ASC", first=20, after=page["pageInfo"]["endCursor"])
    assert numbers_of(rest) == [7, 6, 5, 2, 1, 9, 8, 4, 3, 0]


async def test_cursors_of_other_orders_are_refused(reader: GraphQLClient) -> None:
    cursors = {}
    for order in (*ORDERS, "RECEIVED_AT_DESC"):
        cursors[order] = (await load_page(reader, order, first=1))["pageInfo"]["endCursor"]
    for order in ORDERS:
        for other, cursor in cursors.items():
            answer = await reader.execute(PAGE, order=order, first=1, after=cursor)
            assert ("errors" in answer) is (order != other)


async def test_other_users_see_nothing(reader: GraphQLClient, bob: GraphQLClient) -> None:
    inbox_id = mailbox_global_id((await reader.load_mailbox()).id)
    for order in ORDERS:
        page = await load_page(bob, order, filter={"mailbox": {"id": inbox_id}})
        assert page["nodes"] == []


async def test_searched_pages_lead_to_all_matches(ada: GraphQLClient) -> None:
    """A page of a condition without an index ends after the rows that are tested for it."""
    await deliver_to(ada, "0")
    await copy_message(ada, 25_000, base=1 << 40)
    async with ada.environment.database.engine.begin() as connection:
        for number, seen in ((3, True), (4000, False), (14_000, False), (24_990, True)):
            await connection.execute(
                text("UPDATE messages SET size = :size, seen = :seen, subject = :s WHERE id = :id"),
                {"size": 2 * 10**6, "seen": seen, "s": str(number), "id": (1 << 40) + number},
            )
    filters: dict[str, Any] = {"filter": {"larger": 10**6}}
    for order, expected in (
        ("SEEN_ASC", [14_000, 4000, 24_990, 3]),
        ("SEEN_DESC", [24_990, 3, 14_000, 4000]),
    ):
        pages = await read_all_pages(ada, order, 2, **filters)
        assert list(chain.from_iterable(pages)) == expected
        pages = await read_all_pages(ada, order, 2, backward=True, **filters)
        assert list(chain.from_iterable(reversed(pages))) == expected


async def test_unseen_messages_are_read_by_their_index(ada: GraphQLClient) -> None:
    await deliver_to(ada, "0")
    await copy_message(ada, 3000, base=1 << 40)
    async with ada.environment.database.engine.begin() as connection:
        await connection.execute(text("UPDATE messages SET seen = true WHERE id % 100 <> 0"))
        await connection.execute(text("ANALYZE"))
    with record_query_plans(ada.environment) as recorder:
        plans = await recorder.explain_selects(load_page(ada, "SEEN_ASC", first=20), "messages")
    assert any("messages_unseen" in plan for plan in plans), plans
    for plan in plans:
        assert "TEMP B-TREE" not in plan, plan


async def test_statement_count_does_not_depend_on_message_count(
    ada: GraphQLClient, statements: list[str]
) -> None:
    counts = []
    for message_count in (1, 20):
        for number in range(message_count):
            await deliver_to(ada, str(number))
        await load_page(ada, "SEEN_ASC", first=50)
        del statements[:]
        await load_page(ada, "SEEN_ASC", first=50)
        counts.append(len(statements))
    assert counts[0] == counts[1]
