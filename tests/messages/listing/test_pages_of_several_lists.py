"""Pages of many mailboxes or threads in one request: the same as one by one, in one statement."""

from dataclasses import dataclass
from typing import Any

import pytest

from models.store.keyset_pages import PageRequest
from resolvers.mailboxes.create import NewMailboxes, create_mailboxes
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages import message_import, unfiltered_pages
from resolvers.messages.listing import MessageListing
from resolvers.messages.loaders import load_visible_message_pages
from resolvers.messages.message_import import NewMessage
from resolvers.messages.message_orders import NEWEST_FIRST
from tests.conftest import GraphQLClient, ManualClock, client_context, raw_message
from tests.support.stores.counter_check import select_rows

MAILBOX_COUNT = 9
THREAD_COUNT = 4  # each has messages in several mailboxes
NESTED_MAILBOXES = """query ($first: Int, $after: String, $last: Int, $before: String,
    $orderBy: MessageOrder! = RECEIVED_AT_DESC) {
  viewer { user { mailboxes(first: 30) { nodes { path messages(first: $first, after: $after,
      last: $last, before: $before, orderBy: $orderBy) {
    nodes { preview } pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  } } } } } }"""
NESTED_THREADS = """query ($first: Int, $last: Int) { viewer { user {
  messages(first: 50) { nodes { thread { subject
    messages(first: $first, last: $last) {
      nodes { preview } pageInfo { hasNextPage hasPreviousPage } }
  } } } } } }"""


@dataclass
class StoredMessages:
    """The texts of the stored messages, which are unique, the oldest message first."""

    by_mailbox: dict[str, list[str]]
    by_thread: dict[str, list[str]]  # by subject


@pytest.fixture
async def stored(ada: GraphQLClient, clock: ManualClock) -> StoredMessages:
    """Messages in mailboxes: n in mailbox n."""
    paths = [f"Box {number}" for number in range(MAILBOX_COUNT)]
    messages = StoredMessages({path: [] for path in paths}, {})
    await create_mailboxes(client_context(ada), NewMailboxes(paths))
    for number in range(MAILBOX_COUNT):
        clock.tick(seconds=1)
        for path in paths[number + 1 :]:
            subject, text = f"thread {number % THREAD_COUNT}", f"{path} {number}"
            first = f"<{number % THREAD_COUNT}@example.com>"
            raw = raw_message(subject, body=text, References=first)
            await message_import.store_imported_message_and_load_if_readable(
                client_context(ada), NewMessage(MailboxSelector(path=path), raw.decode())
            )
            clock.tick(seconds=number % 2)  # some have the same time
            messages.by_mailbox[path].append(text)
            messages.by_thread.setdefault(subject, []).append(text)
    return messages


async def load_pages(ada: GraphQLClient, **variables: Any) -> dict[str, Any]:
    """Load a page of each mailbox of `stored`, by path."""
    mailboxes = (await ada(NESTED_MAILBOXES, **variables))["viewer"]["user"]["mailboxes"]["nodes"]
    return {node["path"]: node["messages"] for node in mailboxes if node["path"].startswith("Box")}


def texts_of(page: dict[str, Any]) -> list[str]:
    return [node["preview"] for node in page["nodes"]]


async def test_pages_of_all_mailboxes_have_their_own_messages(
    ada: GraphQLClient, stored: StoredMessages
) -> None:
    for path, page in (await load_pages(ada, first=3)).items():
        assert texts_of(page) == stored.by_mailbox[path][::-1][:3]
        assert page["pageInfo"]["hasNextPage"] is (len(stored.by_mailbox[path]) > 3)
    for path, page in (await load_pages(ada, last=2)).items():
        assert texts_of(page) == stored.by_mailbox[path][:2][::-1]
        assert page["pageInfo"]["hasPreviousPage"] is (len(stored.by_mailbox[path]) > 2)
    for path, page in (await load_pages(ada, first=4, orderBy="RECEIVED_AT_ASC")).items():
        assert texts_of(page) == stored.by_mailbox[path][:4]
    for page in (await load_pages(ada, first=0)).values():
        assert page["nodes"] == []


async def test_one_cursor_continues_all_mailboxes(
    ada: GraphQLClient, stored: StoredMessages
) -> None:
    newest = (await load_pages(ada, first=2))[f"Box {MAILBOX_COUNT - 1}"]["pageInfo"]
    after = await load_pages(ada, first=100, after=newest["endCursor"])
    before = await load_pages(ada, last=100, before=newest["endCursor"])
    ends = 0
    for path, oldest_first in stored.by_mailbox.items():
        found = texts_of(before[path]) + texts_of(after[path])
        ends += len(oldest_first) - len(found)  # only the row of the cursor is in neither
        if len(found) == len(oldest_first):
            assert found == oldest_first[::-1]
    assert ends == 1
    last = stored.by_mailbox[f"Box {MAILBOX_COUNT - 1}"]
    assert texts_of(after[f"Box {MAILBOX_COUNT - 1}"]) == last[:-2][::-1]


async def test_pages_of_all_threads_have_their_own_messages(
    ada: GraphQLClient, stored: StoredMessages
) -> None:
    count = sum(map(len, stored.by_thread.values()))
    for arguments in ({"first": 5}, {"last": 5}, {"last": 100}):
        (length,) = arguments.values()
        answer = await ada(NESTED_THREADS, **arguments)
        nodes = answer["viewer"]["user"]["messages"]["nodes"]
        assert len(nodes) == count
        for node in nodes:
            texts, page = stored.by_thread[node["thread"]["subject"]], node["thread"]["messages"]
            assert texts_of(page) == (texts[:length] if "first" in arguments else texts[-length:])
            has_more = page["pageInfo"][
                "hasNextPage" if "first" in arguments else "hasPreviousPage"
            ]
            assert has_more is (len(texts) > length)


@pytest.mark.parametrize("max_rows", [0, 1000])
async def test_all_mailboxes_are_read_by_one_statement(
    ada: GraphQLClient,
    stored: StoredMessages,
    statements: list[str],
    monkeypatch: pytest.MonkeyPatch,
    max_rows: int,
) -> None:
    """The thread of the event loop reads few rows, another thread reads many."""
    monkeypatch.setattr(unfiltered_pages, "MAX_PREPARED_ROWS", max_rows)
    del statements[:]
    pages = await load_pages(ada, first=2)
    assert {path: texts_of(page) for path, page in pages.items()} == {
        path: oldest_first[::-1][:2] for path, oldest_first in stored.by_mailbox.items()
    }
    (statement,) = [statement for statement in statements if "FROM messages" in statement]
    assert "LIMIT" in statement  # of each mailbox, although Python would cut the pages too


async def test_lists_of_different_length_have_their_own_messages(
    ada: GraphQLClient, stored: StoredMessages
) -> None:
    fields = "".join(
        f'box{number}: mailbox(by: {{path: "Box {number}"}}) {{ messages(first: {number - 1})'
        " { nodes { preview } pageInfo { hasNextPage } } } "
        for number in range(1, MAILBOX_COUNT)
    )
    user = (await ada(f"{{ viewer {{ user {{ {fields} }} }} }}"))["viewer"]["user"]
    for number in range(1, MAILBOX_COUNT):
        page = user[f"box{number}"]["messages"]
        assert texts_of(page) == stored.by_mailbox[f"Box {number}"][::-1][: number - 1]
        assert page["pageInfo"]["hasNextPage"]


@pytest.mark.usefixtures("stored")
async def test_lists_of_other_users_are_empty(ada: GraphQLClient, bob: GraphQLClient) -> None:
    rows = await select_rows(
        ada.environment,
        "SELECT DISTINCT mailbox_id, thread_id FROM messages WHERE user_id = :user",
        user=ada.user.id,
    )
    request = PageRequest(NEWEST_FIRST)
    for user_id in (ada.user.id, bob.user.id):  # the second one claims that they are bob's
        for index, name in enumerate(("mailbox_id", "thread_id")):
            listings = [
                MessageListing(user_id, request, frozenset({"id"}), **{name: list_id})
                for list_id in sorted({row[index] for row in rows})
            ]
            assert len(listings) > 1
            pages = await load_visible_message_pages(client_context(bob), listings)
            assert [list(page.rows) for page in pages] == [[]] * len(listings)
            own_pages = await load_visible_message_pages(client_context(ada), listings)
            assert any(page.rows for page in own_pages) is (user_id == ada.user.id)
