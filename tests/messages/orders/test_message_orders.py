"""Test lists of one mailbox by date, sender, size and subject, and the table of sort keys."""

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from graph.types import global_ids
from graph.types.global_ids import encode
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from resolvers.mailboxes.create import NewMailboxes, create_mailboxes
from tests.conftest import GraphQLClient, client_context, deliver_to, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import mailbox_global_id, share_mailbox
from tests.support.operations.bulk_operations import (
    inbox_selection,
    run_message_mutation,
    undo_mutation,
    user_selection,
)
from tests.support.operations.message_sources import save_draft
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_counters")

PAGE = """query ($path: String!, $filter: MessageFilter, $order: MessageOrder!, $first: Int,
  $after: String, $last: Int, $before: String) {
  viewer { user { mailbox(by: {path: $path}) { messages(filter: $filter, orderBy: $order,
    first: $first, after: $after, last: $last, before: $before) {
    totalCount nodes { id subject }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } } } } }"""
FILTERED_LIST = """query ($filter: MessageFilter, $order: MessageOrder!, $users: UserSelection) {
  messages(filter: $filter, orderBy: $order, users: $users) { nodes { subject } } }"""
COUNTED_LIST = FILTERED_LIST.replace("nodes {", "totalCount nodes {")
INBOX_OF_ADA = """query ($order: MessageOrder!) { user(by: {username: "ada"}) {
  mailbox(by: {path: "INBOX"}) {
    messages(orderBy: $order) { nodes { id } edges { cursor } } } } }"""
THREAD_LIST = """query ($order: MessageOrder!) { viewer { user { messages(first: 1) { nodes {
  thread { messages(orderBy: $order) { nodes { id } } } } } } } }"""
RESTORE = """mutation ($id: ID!) {
  deletedMessageRestore(input: {select: {ids: [$id]}}) { errors { code } } }"""
DELETED = "{ viewer { user { deletedMessages(first: 9) { nodes { id } } } } }"
ORDERS = ("DATE", "FROM", "SIZE", "SUBJECT")
IN_INBOX = {"mailbox": {"path": "INBOX"}}

LETTERS = {"Re: beta": "a", "Alpha": "b", "[list] Beta": "c", "gamma": "d"}
# The messages by their letters. Equal ones are in the order of delivery.
SORTED_LETTERS = {"DATE": "bcad", "FROM": "bdac", "SIZE": "adcb", "SUBJECT": "bacd"}


async def deliver_messages(client: GraphQLClient) -> None:
    """Deliver four messages. The last one has no Date, and its sender has no name."""
    zoe, june = "=?utf-8?q?Zo=C3=AB?= <zoe@example.com>", "Fri, 01 Jun 2029 10:00:00 +0000"
    for subject, sender, date, length in (
        ("Re: beta", zoe, "Sat, 01 Dec 2029 10:00:00 +0000", 500),
        ("Alpha", "adam <adam@example.com>", june, 3000),
        ("[list] Beta", "ZOE <other@example.com>", june, 2000),
        ("gamma", "bob@example.com", "", 1000),
    ):
        body = "\r\n".join(["x" * 48] * (length // 50))
        await deliver_to(client, raw_message(subject, body=body, From=sender, Date=date))


@pytest.fixture
async def reader(ada: GraphQLClient) -> GraphQLClient:
    await create_mailboxes(client_context(ada), NewMailboxes(["Work"]))
    await deliver_messages(ada)
    return ada


async def load_page(client: GraphQLClient, order: str, path: str = "INBOX", **pages: Any) -> Any:
    answer = await client(PAGE, path=path, order=order, **pages)
    return answer["viewer"]["user"]["mailbox"]["messages"]


def letters_of(page: Any) -> str:
    return "".join(LETTERS[node["subject"]] for node in page["nodes"])


async def sorted_letters(client: GraphQLClient, path: str = "INBOX") -> list[str]:
    """Return the letters of a mailbox in each ascending order."""
    return [letters_of(await load_page(client, f"{order}_ASC", path)) for order in ORDERS]


def expected_letters(letters: str) -> list[str]:
    """Return the letters in each ascending order."""
    return ["".join(c for c in SORTED_LETTERS[order] if c in letters) for order in ORDERS]


@pytest.mark.parametrize("order", ORDERS)
async def test_order_has_two_directions(reader: GraphQLClient, order: str) -> None:
    ascending = SORTED_LETTERS[order]
    assert letters_of(await load_page(reader, f"{order}_ASC")) == ascending
    assert letters_of(await load_page(reader, f"{order}_DESC")) == ascending[::-1]


@pytest.mark.parametrize("direction", ["ASC", "DESC"])
@pytest.mark.parametrize("order", ORDERS)
async def test_pages_continue_at_equal_keys(
    reader: GraphQLClient, order: str, direction: str
) -> None:
    name = f"{order}_{direction}"
    expected = SORTED_LETTERS[order][:: 1 if direction == "ASC" else -1]
    listed, cursor = "", None
    while len(listed) < len(expected):
        page = await load_page(reader, name, first=1, after=cursor)
        listed, cursor = listed + letters_of(page), page["pageInfo"]["endCursor"]
        assert page["pageInfo"]["hasNextPage"] is (len(listed) < len(expected))
        assert page["totalCount"] == len(expected)
    assert listed == expected
    listed, cursor = "", None
    while len(listed) < len(expected):
        page = await load_page(reader, name, last=1, before=cursor)
        listed, cursor = letters_of(page) + listed, page["pageInfo"]["startCursor"]
        assert page["pageInfo"]["hasPreviousPage"] is (len(listed) < len(expected))
    assert listed == expected


async def test_cursor_of_another_order_is_refused(reader: GraphQLClient) -> None:
    after = (await load_page(reader, "SIZE_ASC", first=1))["pageInfo"]["endCursor"]
    for order in ("SIZE_DESC", "DATE_ASC", "RECEIVED_AT_ASC"):
        answer = await reader.execute(PAGE, path="INBOX", order=order, first=1, after=after)
        assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


@pytest.mark.parametrize("order", ORDERS)
async def test_filters_can_be_combined_with_orders(reader: GraphQLClient, order: str) -> None:
    added = {"addFlags": ["Blue"], "flagged": True}
    await run_message_mutation(reader, "messageUpdate", select=inbox_selection("2:4"), set=added)
    expected = "".join(c for c in SORTED_LETTERS[order] if c in "bcd")
    in_inbox: dict[str, Any] = {"uids": "2,3,4", **IN_INBOX}
    for conditions in ({"keyword": "blue"}, {"flagged": True}, in_inbox):
        page = await load_page(reader, f"{order}_ASC", filter=conditions)
        assert (letters_of(page), page["totalCount"]) == (expected, 3)
        filtered = await reader(
            FILTERED_LIST, order=f"{order}_ASC", filter={**conditions, **IN_INBOX}
        )
        assert letters_of(filtered["messages"]) == expected
    page = await load_page(reader, f"{order}_DESC", filter={"query": "subject:beta"})
    assert letters_of(page) == "".join(c for c in SORTED_LETTERS[order][::-1] if c in "ac")
    nowhere = {"mailbox": {"path": "Nowhere"}}
    answer = await reader(FILTERED_LIST, order=f"{order}_ASC", filter=nowhere)
    assert answer["messages"]["nodes"] == []


@pytest.mark.parametrize("order", ORDERS)
async def test_order_requires_one_mailbox(
    reader: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, order: str
) -> None:
    name = f"{order}_DESC"
    two_users = user_selection(reader, bob)
    for answer in (
        await reader.execute(FILTERED_LIST, order=name),
        await reader.execute(FILTERED_LIST, order=name, filter={"seen": False}),
        await reader.execute(THREAD_LIST, order=name),
        await root.execute(FILTERED_LIST, order=name, users=two_users, filter=IN_INBOX),
    ):
        assert answer["errors"][0]["message"].startswith("This order requires a list of one")


async def test_orders_follow_moves_copies_deletion_and_undo(reader: GraphQLClient) -> None:
    assert await sorted_letters(reader) == expected_letters("abcd")
    moved = await run_message_mutation(
        reader, "messageMove", select=inbox_selection("1:2"), to={"path": "Work"}
    )
    assert await sorted_letters(reader) == expected_letters("cd")
    assert await sorted_letters(reader, "Work") == expected_letters("ab")
    await undo_mutation(reader, moved)
    assert await sorted_letters(reader) == expected_letters("abcd")
    assert await sorted_letters(reader, "Work") == ["", "", "", ""]

    await run_message_mutation(
        reader, "messageCopy", select=inbox_selection("3:4"), to={"path": "Work"}
    )
    assert await sorted_letters(reader, "Work") == expected_letters("cd")
    await run_message_mutation(reader, "messageDelete", select=inbox_selection("3"))
    assert await sorted_letters(reader) == expected_letters("abd")
    (deleted,) = (await reader(DELETED))["viewer"]["user"]["deletedMessages"]["nodes"]
    assert (await reader(RESTORE, id=deleted["id"]))["deletedMessageRestore"]["errors"] == []
    assert await sorted_letters(reader) == expected_letters("abcd")


async def test_imported_message_is_sorted(reader: GraphQLClient) -> None:
    raw = raw_message("Aardvark", From="Aaron <a@example.com>", Date="").decode()
    answer = await run_message_mutation(
        reader, "messageImport", mailbox={"path": "INBOX"}, raw=raw,
        receivedAt="2001-01-01T00:00:00Z",
    )  # fmt: skip
    assert answer["errors"] == []
    for order in ("DATE", "FROM", "SUBJECT"):
        page = await load_page(reader, f"{order}_ASC", first=1)
        assert page["nodes"][0]["subject"] == "Aardvark", order


async def test_saved_draft_is_sorted_by_its_new_subject(ada: GraphQLClient) -> None:
    first = await save_draft(ada, subject="Beta")
    await save_draft(ada, subject="Gamma")
    draft = {"id": first["message"]["id"]}
    assert (await save_draft(ada, draft=draft, subject="Zeta"))["errors"] == []
    page = await load_page(ada, "SUBJECT_ASC", "Drafts")
    assert [node["subject"] for node in page["nodes"]] == ["Gamma", "Zeta"]
    assert (await save_draft(ada, draft=draft, subject="Alpha"))["errors"] == []
    page = await load_page(ada, "SUBJECT_ASC", "Drafts")
    assert [node["subject"] for node in page["nodes"]] == ["Alpha", "Gamma"]


async def test_keys_are_folded_and_cut_to_64_bytes(ada: GraphQLClient) -> None:
    await deliver_to(ada, raw_message(f"AW: =?utf-8?q?{'X' * 63}=D0=96y?="))  # 63 and 2 bytes
    sender = "=?utf-8?q?=C3=85?= <carol@example.com>"
    await deliver_to(ada, raw_message("Fwd: =?utf-8?q?=C3=98re?=", From=sender))
    rows = await select_rows(
        ada.environment, "SELECT subject_key, sender_key FROM message_sort_keys ORDER BY id"
    )
    assert rows == [("x" * 63, "carol"), ("ore", "a")]


async def test_other_users_see_nothing(reader: GraphQLClient, bob: GraphQLClient) -> None:
    inbox_id = mailbox_global_id((await reader.load_mailbox()).id)
    foreign_inbox = """query ($id: ID!, $order: MessageOrder!) {
      mailbox(by: {id: $id}) { messages(orderBy: $order) { nodes { id } } } }"""
    filtered = {"mailbox": {"id": inbox_id}}
    for order in ORDERS:
        name = f"{order}_ASC"
        assert (await bob(foreign_inbox, id=inbox_id, order=name))["mailbox"] is None
        answer = await bob(FILTERED_LIST, order=name, filter=filtered)
        assert answer["messages"]["nodes"] == []
    assert await share_mailbox(reader, bob, "READ", path="INBOX") == []
    for order in ORDERS:
        answer = await bob(foreign_inbox, id=inbox_id, order=f"{order}_ASC")
        assert len(answer["mailbox"]["messages"]["nodes"]) == 4


@pytest.mark.usefixtures("reader")
async def test_only_root_sorts_mail_of_others_by_subject(
    environment: Environment, http: httpx.AsyncClient, root: GraphQLClient
) -> None:
    chief = await make_domain_admin(environment, http, "chief", [AdminPermission.IMPERSONATE])
    for order in ("DATE_ASC", "FROM_ASC", "SIZE_ASC"):
        mailbox = (await chief(INBOX_OF_ADA, order=order))["user"]["mailbox"]
        assert len(mailbox["messages"]["nodes"]) == 4
    answer = await chief.execute(INBOX_OF_ADA, order="SUBJECT_ASC")
    assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}
    mailbox = (await root(INBOX_OF_ADA, order="SUBJECT_ASC"))["user"]["mailbox"]
    assert len(mailbox["messages"]["nodes"]) == 4


async def test_root_leaves_an_entry_even_if_a_sorted_page_is_empty(
    reader: GraphQLClient, root: GraphQLClient
) -> None:
    """The cursor of a search that ends without a match can have the beginning of a subject."""
    inbox_id = mailbox_global_id((await reader.load_mailbox()).id)
    users = {"ids": [encode("User", reader.user.id)]}
    filtered = {"mailbox": {"id": inbox_id}, "subject": "unknown"}
    answer = await root(FILTERED_LIST, order="SUBJECT_ASC", filter=filtered, users=users)
    assert answer["messages"]["nodes"] == []
    log = await reader("{ viewer { user { securityLog { nodes { action } } } } }")
    assert {"action": "MESSAGES_READ"} in log["viewer"]["user"]["securityLog"]["nodes"]


async def test_page_of_root_by_subject_is_logged_once_and_its_mailbox_looked_up_once(
    reader: GraphQLClient, root: GraphQLClient, statements: list[str]
) -> None:
    event_counts = "SELECT count FROM security_events WHERE user_id = :u AND action = :a"
    for read_count, order in enumerate(("SUBJECT", "SUBJECT", "DATE"), 1):
        del statements[:]
        answer = await root(
            COUNTED_LIST, order=f"{order}_ASC", filter=IN_INBOX, users=user_selection(reader)
        )
        assert letters_of(answer["messages"]) == SORTED_LETTERS[order]
        assert answer["messages"]["totalCount"] == 4
        lookups = [s for s in statements if "fold_text(mailboxes.path)" in s]
        assert order == "DATE" or len(lookups) == 1
        rows = await select_rows(
            reader.environment, event_counts, u=reader.user.id, a="MESSAGES_READ"
        )
        assert rows == [(read_count,)], order


async def test_administrator_with_the_right_read_sorts_a_shared_mailbox_by_subject(
    reader: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    chief = await make_domain_admin(environment, http, "chief", [AdminPermission.IMPERSONATE])
    inbox_id = mailbox_global_id((await reader.load_mailbox()).id)
    arguments: dict[str, Any] = {
        "order": "SUBJECT_ASC",
        "filter": {"mailbox": {"id": inbox_id}},
        "users": {"ids": [encode("User", reader.user.id)]},
    }
    answer = await chief.execute(FILTERED_LIST, **arguments)
    assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}
    assert await share_mailbox(reader, chief, "READ", path="INBOX") == []
    nodes = (await chief(FILTERED_LIST, **arguments))["messages"]["nodes"]
    assert len(nodes) == 4


async def test_statement_count_does_not_depend_on_message_count(
    ada: GraphQLClient, statements: list[str]
) -> None:
    counts = []
    for message_count in (1, 20):
        for number in range(message_count):
            await deliver_to(ada, f"Number {message_count} {number}")
        await load_page(ada, "SIZE_ASC", first=50)
        del statements[:]
        await load_page(ada, "SIZE_ASC", first=50)
        counts.append(len(statements))
    assert counts[0] == counts[1]


async def test_delivery_writes_one_row_and_flags_write_none(
    ada: GraphQLClient, statements: list[str]
) -> None:
    await deliver_to(ada, "one")
    del statements[:]
    await deliver_to(ada, "two")
    inserts = [s for s in statements if "INSERT INTO message_sort_keys" in s]
    assert len(inserts) == 1
    del statements[:]
    flags = {"seen": True, "addFlags": ["Blue"]}
    await run_message_mutation(ada, "messageUpdate", select=inbox_selection("1:2"), set=flags)
    assert not [statement for statement in statements if "message_sort_keys" in statement]


async def test_sort_keys_are_deleted_with_the_message(reader: GraphQLClient) -> None:
    async with reader.environment.database.engine.begin() as connection:
        result = await connection.execute(text("SELECT min(id) FROM messages"))
        message_id = result.scalar_one()
    node_id = global_ids.encode("Message", message_id)
    payload = await run_message_mutation(
        reader, "messageDelete", select={"ids": [node_id]}, permanent=True
    )
    assert payload["errors"] == []
    rows = await select_rows(
        reader.environment, "SELECT id FROM message_sort_keys WHERE id = :id", id=message_id
    )
    assert rows == []
