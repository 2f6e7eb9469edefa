"""Test lists with conditions that no index answers: pages end early, and lead to all matches."""

from collections.abc import Callable, Collection, Mapping
from itertools import chain, product
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from models.runtime.environment import Environment
from resolvers import pagination
from resolvers.pagination import MAX_TESTED_ROWS
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.accounts.large_account import copy_message

MESSAGE_COUNT = 25_000
FIRST_ID = 1 << 40
LARGE_NUMBERS = (3, 4_000, 14_000, 24_990)  # of the large messages, the oldest first
FILTER = {"larger": 10**6}
SMALL_COUNT = 24
MATCHES_OF_TWO_ACCOUNTS: tuple[tuple[Collection[int], Collection[int]], ...] = (
    ((3,), range(12, 25)),  # numbers of the large messages
    ((24, 1), (24, 23, 12, 1)),
    (range(1, 25, 3), (7,)),
)
SORT_KEYS: Mapping[str, Callable[[int], tuple[int, int]]] = {  # of a message, by its number
    "RECEIVED_AT_DESC": lambda number: (0, -number),
    "RECEIVED_AT_ASC": lambda number: (0, number),
    "SEEN_ASC": lambda number: (is_seen(number), -number),
    "SEEN_DESC": lambda number: (not is_seen(number), -number),
}
PAGES = """query ($f: MessageFilter, $users: UserSelection, $first: Int, $after: String, $last: Int,
  $before: String, $order: MessageOrder! = RECEIVED_AT_DESC) {
  messages(filter: $f, users: $users, first: $first, after: $after, last: $last, before: $before,
    orderBy: $order) {
    totalCount nodes { size } edges { cursor }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }"""


async def fill_account(client: GraphQLClient, base: int) -> None:
    """Insert messages into an account. The sizes of the large ones tell them apart."""
    await deliver_to(client, "Hello duck")
    await copy_message(client, MESSAGE_COUNT, base=base)
    async with client.environment.database.engine.begin() as connection:
        for number in LARGE_NUMBERS:
            statement = "UPDATE messages SET size = :size WHERE id = :id"
            values = {"size": 2 * 10**6 + number + base % 997, "id": base + number}
            await connection.execute(text(statement), values)


@pytest.fixture
async def filled_ada(ada: GraphQLClient) -> GraphQLClient:
    await fill_account(ada, FIRST_ID)
    return ada


def large_sizes(base: int = FIRST_ID) -> list[int]:
    return [2 * 10**6 + number + base % 997 for number in LARGE_NUMBERS]


async def read_all_pages(
    client: GraphQLClient, *, backward: bool = False, page_size: int = 2, **arguments: Any
) -> list[list[int]]:
    """Read pages until there is none, and return the sizes of the messages of each page."""
    count, cursor = ("last", "before") if backward else ("first", "after")
    pages: list[list[int]] = []
    position = None
    while True:
        given = {count: page_size, cursor: position, "f": FILTER, **arguments}
        page = (await client(PAGES, **given))["messages"]
        info = page["pageInfo"]
        assert len(page["nodes"]) <= page_size
        pages.append([node["size"] for node in page["nodes"]])
        if not info["hasPreviousPage" if backward else "hasNextPage"]:
            return pages
        assert position != info["startCursor" if backward else "endCursor"]
        position = info["startCursor" if backward else "endCursor"]


async def test_pages_lead_to_all_matches_in_both_directions(filled_ada: GraphQLClient) -> None:
    newest_first = large_sizes()[::-1]
    pages = await read_all_pages(filled_ada)
    assert list(chain.from_iterable(pages)) == newest_first
    assert len(pages) <= MESSAGE_COUNT // MAX_TESTED_ROWS + len(newest_first)
    pages = await read_all_pages(filled_ada, order="RECEIVED_AT_ASC")
    assert list(chain.from_iterable(pages)) == newest_first[::-1]
    pages = await read_all_pages(filled_ada, backward=True)
    assert [size for page in pages for size in page[::-1]] == newest_first[::-1]


async def test_pages_in_an_order_of_one_mailbox_lead_to_all_matches(
    filled_ada: GraphQLClient,
) -> None:
    conditions = {**FILTER, "mailbox": {"path": "INBOX"}}
    for order, backward, expected in (
        ("SIZE_ASC", False, large_sizes()),
        ("SIZE_DESC", False, large_sizes()[::-1]),
        ("SIZE_DESC", True, large_sizes()),
        ("DATE_ASC", False, large_sizes()),
    ):
        pages = await read_all_pages(filled_ada, backward=backward, f=conditions, order=order)
        rows = [size for page in pages for size in (page[::-1] if backward else page)]
        assert rows == expected, order


async def test_page_without_matches_has_a_cursor(filled_ada: GraphQLClient) -> None:
    page = (await filled_ada(PAGES, f={"subject": "zebra"}, first=20))["messages"]
    assert page["nodes"] == []
    assert page["totalCount"] == 0
    assert page["pageInfo"]["hasNextPage"]
    page_count = 1
    while page["pageInfo"]["hasNextPage"]:
        end = page["pageInfo"]["endCursor"]
        page = (await filled_ada(PAGES, f={"subject": "zebra"}, first=20, after=end))["messages"]
        page_count += 1
    assert page_count == MESSAGE_COUNT // MAX_TESTED_ROWS + 1
    assert page["pageInfo"]["endCursor"] is None


@pytest.mark.usefixtures("filled_ada")
async def test_pages_of_several_accounts_keep_the_order(
    environment: Environment,
    http: httpx.AsyncClient,
    root: GraphQLClient,
) -> None:
    other_base = FIRST_ID + 10 * MESSAGE_COUNT
    eve = await make_client(environment, http, "eve")
    await fill_account(eve, other_base)
    users = {"usernames": ["ada", "eve"]}
    pages = await read_all_pages(root, users=users)
    sizes = list(chain.from_iterable(pages))
    assert sorted(sizes) == sorted([*large_sizes(), *large_sizes(other_base)])
    ages = [(size - 2 * 10**6) // 1000 for size in sizes]
    assert ages == sorted(ages, reverse=True)


def is_seen(number: int) -> bool:
    """True if the message with this number is seen, in the accounts with few messages."""
    return number % 3 > 0


async def set_sizes_and_flags(client: GraphQLClient, base: int, large: Collection[int]) -> None:
    """Make these messages of an account large. The last two digits of a size are the number."""
    statement = text("UPDATE messages SET size = :size, seen = :seen WHERE id = :id")
    parameters = [
        {
            "id": base + number,
            "size": (2 * 10**6 if number in large else 1000) + base % 1000 + number,
            "seen": is_seen(number),
        }
        for number in range(1, SMALL_COUNT + 1)
    ]
    async with client.environment.database.engine.begin() as connection:
        await connection.execute(statement, parameters)


async def test_pages_of_accounts_with_different_matches_lead_to_each_match_once(
    ada: GraphQLClient, root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagination, "STEP_LENGTHS", (3, 5))  # rows: few messages need many steps
    bases = {FIRST_ID - FIRST_ID % 1000: ada}
    bases[next(iter(bases)) + 10_100] = await make_client(root.environment, root.http, "eve")
    for base, client in bases.items():
        await deliver_to(client, "Hello duck")
        await copy_message(client, SMALL_COUNT, base=base)
    for matches in MATCHES_OF_TWO_ACCOUNTS:
        expected: list[int] = []
        for (base, client), large in zip(bases.items(), matches, strict=True):
            await set_sizes_and_flags(client, base, large)
            expected += (2 * 10**6 + base % 1000 + number for number in large)
        for order, backward, page_size in product(SORT_KEYS, (False, True), (1, 4)):
            pages = await read_all_pages(
                root,
                backward=backward,
                page_size=page_size,
                order=order,
                users={"usernames": ["ada", "eve"]},
            )
            sizes = list(chain.from_iterable(reversed(pages) if backward else pages))
            case = (matches, order, backward, page_size)
            assert sorted(sizes) == sorted(expected), case
            sort_keys = [SORT_KEYS[order](size % 100) for size in sizes]
            assert sort_keys == sorted(sort_keys), case


async def test_counters_count_all_unseen_messages(filled_ada: GraphQLClient) -> None:
    async with filled_ada.environment.database.engine.begin() as connection:
        await connection.execute(
            text(
                "UPDATE mailboxes SET message_count = (SELECT count(*) FROM messages m WHERE"
                " m.mailbox_id = mailboxes.id), unseen_count = (SELECT count(*) FROM messages m"
                " WHERE m.mailbox_id = mailboxes.id AND NOT m.seen)"
            )
        )
    unseen_count = MESSAGE_COUNT // 100 + 1  # and the delivered one
    for filter_, count in (
        ({"seen": False}, unseen_count),
        ({"query": "is:unseen"}, unseen_count),
        ({"seen": False, "mailbox": {"path": "INBOX"}}, unseen_count),
        ({"seen": False, "mailbox": {"path": "inbox"}}, unseen_count),
        ({"seen": False, "mailbox": {"path": "Nowhere"}}, 0),
        ({"mailbox": {"path": "INBOX"}}, MESSAGE_COUNT + 1),
        ({"seen": True}, MESSAGE_COUNT + 1 - unseen_count),
        ({"and": [{"seen": False}, {"seen": True}]}, 0),
    ):
        page = (await filled_ada(PAGES, f=filter_, first=1))["messages"]
        assert page["totalCount"] == count, filter_
        assert bool(page["nodes"]) is bool(count), filter_
