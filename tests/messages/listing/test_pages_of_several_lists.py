"""Pages of many mailboxes or threads in one request: the same as one by one, in one statement."""

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
THREAD_COUNT = 4  # each in every mailbox
NESTED_MAILBOXES = """query ($first: Int, $after: String, $last: Int, $before: String,
    $orderBy: MessageOrder! = RECEIVED_AT_DESC) {
  viewer { user { mailboxes(first: 30) { nodes { path messages(first: $first, after: $after,
      last: $last, before: $before, orderBy: $orderBy) {
    nodes { subject } pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  } } } } } }"""
NESTED_THREADS = """query ($first: Int, $last: Int) { viewer { user {
  messages(first: 50) { nodes { thread { subject
    messages(first: $first, last: $last) { nodes { subject } pageInfo { hasNextPage } }
  } } } } } }"""

Subjects = dict[str, list[str]]


@pytest.fixture
async def subjects(ada: GraphQLClient, clock: ManualClock) -> Subjects:
    """The subjects of each mailbox, the oldest message first: in mailbox n, n messages."""
    stored: Subjects = {f"Box {number}": [] for number in range(MAILBOX_COUNT)}
    await create_mailboxes(client_context(ada), NewMailboxes(list(stored)))
    for number in range(MAILBOX_COUNT):
        clock.tick(seconds=1)
        for path in list(stored)[number + 1 :]:
            subject = f"thread {number % THREAD_COUNT}"
            first = f"<{number % THREAD_COUNT}@example.com>"
            raw = raw_message(subject, body=f"{path} {number}", References=first)
            await message_import.store_imported_message_and_load_if_readable(
                client_context(ada), NewMessage(MailboxSelector(path=path), raw.decode())
            )
            clock.tick(seconds=number % 2)  # some have the same time
            stored[path].append(subject)
    return stored


async def load_pages(ada: GraphQLClient, **variables: Any) -> dict[str, Any]:
    mailboxes = (await ada(NESTED_MAILBOXES, **variables))["viewer"]["user"]["mailboxes"]["nodes"]
    return {node["path"]: node["messages"] for node in mailboxes if node["path"].startswith("Box")}


def subjects_of(page: dict[str, Any]) -> list[str]:
    return [node["subject"] for node in page["nodes"]]


async def test_pages_of_all_mailboxes_have_their_own_messages(
    ada: GraphQLClient, subjects: Subjects
) -> None:
    for path, page in (await load_pages(ada, first=3)).items():
        assert subjects_of(page) == subjects[path][::-1][:3]
        assert page["pageInfo"]["hasNextPage"] is (len(subjects[path]) > 3)
    for path, page in (await load_pages(ada, last=2)).items():
        assert subjects_of(page) == subjects[path][:2][::-1]
        assert page["pageInfo"]["hasPreviousPage"] is (len(subjects[path]) > 2)
    for path, page in (await load_pages(ada, first=4, orderBy="RECEIVED_AT_ASC")).items():
        assert subjects_of(page) == subjects[path][:4]
    for page in (await load_pages(ada, first=0)).values():
        assert page["nodes"] == []


async def test_one_cursor_continues_all_mailboxes(ada: GraphQLClient, subjects: Subjects) -> None:
    newest = (await load_pages(ada, first=2))[f"Box {MAILBOX_COUNT - 1}"]["pageInfo"]
    after = await load_pages(ada, first=100, after=newest["endCursor"])
    before = await load_pages(ada, last=100, before=newest["endCursor"])
    ends = 0
    for path, oldest_first in subjects.items():
        found = subjects_of(before[path]) + subjects_of(after[path])
        ends += len(oldest_first) - len(found)  # only the row of the cursor is in neither
        if len(found) == len(oldest_first):
            assert found == oldest_first[::-1]
    assert ends == 1
    last = subjects[f"Box {MAILBOX_COUNT - 1}"]
    assert subjects_of(after[f"Box {MAILBOX_COUNT - 1}"]) == last[:-2][::-1]


async def test_pages_of_all_threads_have_their_own_messages(
    ada: GraphQLClient, subjects: Subjects
) -> None:
    count_of = {
        f"thread {number}": sum(each.count(f"thread {number}") for each in subjects.values())
        for number in range(THREAD_COUNT)
    }
    for arguments, length in (({"first": 5}, 5), ({"last": 100}, 100)):
        answer = await ada(NESTED_THREADS, **arguments)
        nodes = answer["viewer"]["user"]["messages"]["nodes"]
        assert len(nodes) == sum(count_of.values())
        for node in nodes:
            thread = node["thread"]
            expected = min(length, count_of[thread["subject"]])
            assert subjects_of(thread["messages"]) == [thread["subject"]] * expected


@pytest.mark.parametrize("max_rows", [0, 1000])
async def test_all_mailboxes_are_read_by_one_statement(
    ada: GraphQLClient,
    subjects: Subjects,
    statements: list[str],
    monkeypatch: pytest.MonkeyPatch,
    max_rows: int,
) -> None:
    """On the loop's thread or, if they can be many, in another one."""
    monkeypatch.setattr(unfiltered_pages, "MAX_PREPARED_ROWS", max_rows)
    del statements[:]
    pages = await load_pages(ada, first=2)
    assert {path: subjects_of(page) for path, page in pages.items()} == {
        path: oldest_first[::-1][:2] for path, oldest_first in subjects.items()
    }
    assert len([statement for statement in statements if "FROM messages" in statement]) == 1


async def test_lists_of_different_length_are_read_separately(
    ada: GraphQLClient, subjects: Subjects
) -> None:
    fields = "".join(
        f'box{number}: mailbox(by: {{path: "Box {number}"}}) {{ messages(first: {number - 1})'
        " { nodes { subject } pageInfo { hasNextPage } } } "
        for number in range(1, MAILBOX_COUNT)
    )
    user = (await ada(f"{{ viewer {{ user {{ {fields} }} }} }}"))["viewer"]["user"]
    for number in range(1, MAILBOX_COUNT):
        page = user[f"box{number}"]["messages"]
        assert subjects_of(page) == subjects[f"Box {number}"][::-1][: number - 1]
        assert page["pageInfo"]["hasNextPage"]


@pytest.mark.usefixtures("subjects")
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
