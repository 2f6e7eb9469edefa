"""Test message lists, their pages and filters, and single messages."""

import base64
from typing import Any

import pytest

from graph.types import global_ids
from mail.recipients import address_resolution
from mail.storage import received_messages
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.mailboxes.create import NewMailboxes, create_mailboxes
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages import message_import
from resolvers.messages.message_import import NewMessage
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    client_context,
    deliver_to,
    make_api_key,
    make_client,
    raw_message,
)
from tests.support.case_loop import each_case
from tests.support.mail import multipart_message
from tests.support.operations.message_pages import (
    MESSAGE_PAGE_QUERY,
    find_subjects,
    joined_subjects,
    load_message_page,
)
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_counters")


async def test_pages_are_complete_in_both_directions_while_mail_arrives(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for n in range(7):
        await deliver_to(ada, str(n))
        clock.tick(seconds=n % 2)  # two messages have the same time
    listed_subjects, page_info = "", {"hasNextPage": True, "endCursor": None}
    while page_info["hasNextPage"]:
        answer = await load_message_page(ada, first=2, after=page_info["endCursor"])
        listed_subjects, page_info = listed_subjects + joined_subjects(answer), answer["pageInfo"]
        clock.tick(seconds=1)
        await deliver_to(ada, "new" + listed_subjects)
    assert listed_subjects == "6543210"
    last_page = await load_message_page(ada, last=3)
    info = last_page["pageInfo"]
    assert (joined_subjects(last_page), info["hasPreviousPage"], info["hasNextPage"]) == (
        "210",
        True,
        False,
    )
    assert (
        joined_subjects(await load_message_page(ada, last=3, before=info["startCursor"])) == "543"
    )
    ascending = await load_message_page(ada, first=3, orderBy="RECEIVED_AT_ASC")
    assert joined_subjects(ascending) == "012"
    after = ascending["pageInfo"]["endCursor"]
    assert (
        joined_subjects(
            await load_message_page(ada, first=2, after=after, orderBy="RECEIVED_AT_ASC")
        )
        == "34"
    )
    assert (
        joined_subjects(
            await load_message_page(ada, last=2, before=after, orderBy="RECEIVED_AT_ASC")
        )
        == "01"
    )
    assert (await load_message_page(ada, first=0))["nodes"] == []


async def test_invalid_page_arguments_return_error_code(ada: GraphQLClient) -> None:
    await deliver_to(ada)
    own_cursor = (await load_message_page(ada))["pageInfo"]["endCursor"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"first": 251}, "BAD_PAGINATION"),
        ({"first": 1, "last": 1}, "BAD_PAGINATION"),
        ({"last": 1, "after": "x"}, "BAD_PAGINATION"),
        ({"first": 1, "after": "bm9uc2Vuc2U"}, "BAD_CURSOR"),
        ({"first": 1, "after": "mine", "filter": {"seen": True}}, "BAD_CURSOR"),
        ({"first": 1, "after": "mine", "orderBy": "RECEIVED_AT_ASC"}, "BAD_CURSOR"),
    ]
    for case in each_case(cases):
        with case as (arguments, code):
            answer = await ada.execute(
                MESSAGE_PAGE_QUERY,
                **{
                    name: own_cursor if value == "mine" else value
                    for name, value in arguments.items()
                },
            )
            assert answer["errors"][0]["extensions"] == {"code": code}


async def test_cursor_stays_valid_with_relative_date_filter(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for n in range(3):
        await deliver_to(ada, str(n))
        clock.tick(seconds=1)
    condition = {"receivedSince": {"ago": "P1D"}}
    first = await load_message_page(ada, first=2, filter=condition or None)
    clock.tick(seconds=1)
    rest = await load_message_page(
        ada, first=2, filter=condition, after=first["pageInfo"]["endCursor"]
    )
    assert joined_subjects(first) + joined_subjects(rest) == "210"


async def test_total_count_of_mailbox_is_read_from_counter(
    ada: GraphQLClient, statements: list[str]
) -> None:
    for n in range(3):
        await deliver_to(ada, str(n))
    del statements[:]
    document = "{ viewer { user { mailboxes { nodes { messages(first: 0) { totalCount } } } } } }"
    mailboxes = (await ada(document))["viewer"]["user"]["mailboxes"]["nodes"]
    assert [mailbox["messages"]["totalCount"] for mailbox in mailboxes] == [3, 0, 0, 0, 0]
    assert not any("count(" in statement for statement in statements)


async def test_list_reads_only_requested_columns(ada: GraphQLClient, statements: list[str]) -> None:
    await deliver_to(ada)
    del statements[:]
    await ada("{ viewer { user { messages { nodes { subject } } } } }")
    (message_select,) = [statement for statement in statements if "FROM messages" in statement]
    assert "messages.subject" in message_select
    assert "from_address" not in message_select
    assert "mime_structure" not in message_select


async def test_one_query_reads_several_pages_of_a_mailbox(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for n in range(5):
        clock.tick(seconds=1)
        await deliver_to(ada, str(n))
    answer = await ada(
        """{ viewer { user { mailbox(by: {specialUse: INBOX}) {
            a: messages(first: 1) { edges { node { subject } } }
            b: messages(last: 2) { nodes { subject seen } }
            c: messages(first: 2, orderBy: RECEIVED_AT_ASC) { nodes { subject } } } } } }"""
    )
    mailbox = answer["viewer"]["user"]["mailbox"]
    assert [edge["node"]["subject"] for edge in mailbox["a"]["edges"]] == ["4"]
    assert (joined_subjects(mailbox["b"]), joined_subjects(mailbox["c"])) == ("10", "01")


NESTED_QUERY = """{ viewer { user { mailboxes(first: 30) { nodes {
  path user { username } parent { path }
  messages(first: 5) { totalCount nodes { subject imap { flags } attachments { filename }
    mailbox { path } user { username }
    thread { subject messageCount unseenCount lastReceivedAt participants { address }
      mailboxes { nodes { path } }
      messages(first: 3) { totalCount nodes { subject mailbox { path } } } } } }
  unseen: messages(filter: {seen: false, subject: "e"}) {
    totalCount nodes { subject text } } } } } } }"""


async def test_list_statement_count_is_independent_of_length(
    ada: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements() -> int:
        del statements[:]
        await ada(NESTED_QUERY)
        return len([statement for statement in statements if "api_keys" not in statement])

    async def store_messages(path: str, count: int) -> None:
        for n in range(count):
            raw = raw_message(f"{path} {n} e", body=str(n)).decode()
            await message_import.store_imported_message_and_load_if_readable(
                client_context(ada), NewMessage(MailboxSelector(path=path), raw, is_seen=False)
            )

    await create_mailboxes(client_context(ada), NewMailboxes(["Box/in it"]))
    await store_messages("Box", 1)
    expected = await count_statements()
    await create_mailboxes(client_context(ada), NewMailboxes([f"Box/{n}" for n in range(20)]))
    for n in range(20):
        await store_messages(f"Box/{n}", 1)
    await store_messages("Box", 19)
    assert await count_statements() == expected


async def test_message_of_another_user_is_null(ada: GraphQLClient, bob: GraphQLClient) -> None:
    message_id = (await deliver_to(ada)).message_id
    ((thread_id, uid, mailbox_id),) = await select_rows(
        ada.environment,
        "SELECT thread_id, uid, mailbox_id FROM messages WHERE id = :key",
        key=message_id,
    )
    document = """query ($ref: MessageRef!, $id: ID!, $thread: ID!) {
        message(by: $ref) { subject } node(id: $id) { id }
        thread(by: {id: $thread}) { subject } }"""
    message_global_id = global_ids.encode("Message", message_id)
    thread_global_id = global_ids.encode("Thread", thread_id)
    refs: list[dict[str, Any]] = [
        {"id": message_global_id},
        {"emailId": f"{message_id:032X}"},
        {"uid": {"mailbox": {"id": global_ids.encode("Mailbox", mailbox_id)}, "uid": uid}},
    ]
    for ref in refs:
        arguments = {"ref": ref, "id": message_global_id, "thread": thread_global_id}
        own = await ada(document, **arguments)
        assert (own["message"], own["thread"]) == ({"subject": "Hello"}, {"subject": "Hello"})
        foreign = await bob(document, **arguments)
        assert foreign == {"message": None, "node": None, "thread": None}


async def test_missing_message_is_null(ada: GraphQLClient) -> None:
    cases: list[dict[str, Any]] = [
        {"emailId": "0" * 31 + "7"},
        {"emailId": "f" * 32},
        {"uid": {"mailbox": {"path": "INBOX"}, "uid": 99}},
        {"uid": {"mailbox": {"path": "INBOX"}, "uid": -1}},
        {"uid": {"mailbox": {"path": "Nowhere"}, "uid": 1}},
    ]
    for case in each_case(cases):
        with case as ref:
            document = "query ($ref: MessageRef!) { message(by: $ref) { subject } }"
            assert await ada(document, ref=ref) == {"message": None}


async def test_malformed_message_reference_is_refused(ada: GraphQLClient) -> None:
    cases: list[dict[str, Any]] = [{"emailId": "x"}, {"emailId": "g" * 32}, {"id": "msg_nonsense"}]
    for case in each_case(cases):
        with case as reference:
            answer = await ada.execute(
                "query ($ref: MessageRef!) { message(by: $ref) { id } }", ref=reference
            )
            assert answer["errors"][0]["extensions"] == {"code": "BAD_ID"}


async def test_nodes_are_returned_in_requested_order(
    ada: GraphQLClient, statements: list[str]
) -> None:
    message_ids = [(await deliver_to(ada, str(n))).message_id for n in range(3)]
    node_ids = [
        global_ids.encode("Message", message_id)
        for message_id in (message_ids[2], 7, message_ids[0], message_ids[2])
    ]
    node_ids.insert(1, global_ids.encode("Mailbox", (await ada.load_mailbox()).id))
    document = """query ($ids: [ID!]!) { nodes(ids: $ids) { __typename
        ... on Message { subject } ... on Mailbox { path } } }"""
    del statements[:]
    assert (await ada(document, ids=node_ids))["nodes"] == [
        {"__typename": "Message", "subject": "2"},
        {"__typename": "Mailbox", "path": "INBOX"},
        None,
        {"__typename": "Message", "subject": "0"},
        {"__typename": "Message", "subject": "2"},
    ]
    assert len([statement for statement in statements if "api_keys" not in statement]) == 2


MARK_SEEN_QUERY = (
    "query ($id: ID!) { message(by: {id: $id}, markAsSeen: true) { seen imap { flags modseq } } }"
)


async def test_message_is_marked_seen_only_on_request(ada: GraphQLClient) -> None:
    inserted = await deliver_to(ada)
    message_id = global_ids.encode("Message", inserted.message_id)
    unmarked = await ada("query ($id: ID!) { message(by: {id: $id}) { seen text } }", id=message_id)
    assert unmarked["message"]["seen"] is False
    for _ in range(2):
        marked = (await ada(MARK_SEEN_QUERY, id=message_id))["message"]
        assert marked == {
            "seen": True,
            "imap": {"flags": ["\\Seen"], "modseq": inserted.modseq + 1},
        }
    assert (await ada.load_mailbox()).unseen_count == 0


async def test_read_only_key_cannot_mark_seen(ada: GraphQLClient, environment: Environment) -> None:
    message_id = global_ids.encode("Message", (await deliver_to(ada)).message_id)
    for name, extra in (
        ("only", {"read_only": True, "scopes": [Scope.FULL]}),
        ("scope", {"scopes": [Scope.MAIL_READ]}),
    ):
        secret = await make_api_key(environment, name, user_id=ada.user.id, role=Role.USER, **extra)
        answer = await GraphQLClient(ada.http, environment, ada.user, secret).execute(
            MARK_SEEN_QUERY, id=message_id
        )
        assert answer["errors"][0]["extensions"] == {"code": "FORBIDDEN"}
    assert (await ada.load_mailbox()).unseen_count == 1


ALL_FIELDS_QUERY = """query ($id: ID!) { message(by: {id: $id}) {
  text html rawHeader header(name: "x-twice") headers { name value }
  rawSource(maxBytes: 16777216) bodyPart(section: "HEADER") contentType { value params }
  mimeStructure { section contentType { value } parts { section contentType { value } filename
    parts { section contentType { value } } } }
  hasAttachments attachmentCount attachments { filename contentType size section inline contentId }
  from { name address } to { name address } size preview mailingList { listId }
  envelope { from recipients { value } }
  sourceUrl encrypted metadata emailId } }"""


async def test_rich_message_has_all_fields(ada: GraphQLClient) -> None:
    inserted = await deliver_to(ada, multipart_message.MULTIPART_MESSAGE)
    message = (await ada(ALL_FIELDS_QUERY, id=global_ids.encode("Message", inserted.message_id)))[
        "message"
    ]
    assert message["text"] == multipart_message.PLAIN_TEXT
    html = message["html"]
    assert "evil" not in html
    assert "far.example" not in html
    assert message["header"] == ["one", "zwölf"]
    assert message["rawHeader"] == message["bodyPart"]
    assert base64.b64decode(message["rawSource"]) == multipart_message.MULTIPART_MESSAGE
    assert message["contentType"] == {
        "value": "multipart/mixed", "params": {"boundary": "out"},
    }  # fmt: skip
    parts = message["mimeStructure"]["parts"]
    assert [part["section"] for part in parts] == [str(n) for n in range(1, 10)]
    assert [part["contentType"]["value"] for part in parts[0]["parts"]] == [
        "text/plain", "text/html",
    ]  # fmt: skip
    assert message["attachmentCount"] == len(message["attachments"]) == 8
    large = message["attachments"][0]
    assert (large["filename"], large["size"]) == ("large.pdf", 3 << 20)
    assert message["from"] == {"name": "Carol", "address": "carol@example.com"}
    assert (message["size"], message["mailingList"]) == (
        len(multipart_message.MULTIPART_MESSAGE),
        None,
    )
    recipients = [{"value": "ada@example.org"}]
    assert message["envelope"] == {"from": "carol@example.com", "recipients": recipients}
    assert message["emailId"] == f"{inserted.message_id:032x}"


async def test_message_lists_of_two_users_are_separate(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    dora = await make_client(environment, ada.http, "dora")
    for n in range(3):
        await deliver_to(ada, f"ada {n}")
        await deliver_to(dora, f"dora {n}")
        clock.tick(seconds=1)
    assert await find_subjects(ada) == ["ada 0", "ada 1", "ada 2"]
    assert await find_subjects(dora, query="dora") == ["dora 0", "dora 1", "dora 2"]
    assert await find_subjects(ada, **{"or": [{"query": "dora"}, {"subject": "dora"}]}) == []
    mailbox = {"id": global_ids.encode("Mailbox", (await dora.load_mailbox()).id)}
    assert await find_subjects(ada, mailbox=mailbox) == []
    assert await find_subjects(ada, mailbox=mailbox, uids="1:*") == []


async def test_envelope_has_recipient_as_given_and_normalized(ada: GraphQLClient) -> None:
    message = await received_messages.parse_storable_message(raw_message("Pond news"))
    recipient = await address_resolution.load_recipient_below_limits(
        ada.environment, "A.da+news@Example.org"
    )
    inserted = await received_messages.store_once_for_recipient(
        ada.environment, message, recipient, "carol@example.com"
    )
    message_id = global_ids.encode("Message", inserted.message_id)
    document = """query ($id: ID!) { message(by: {id: $id}) {
        envelope { from recipients { value formatted } } } }"""
    assert (await ada(document, id=message_id))["message"]["envelope"] == {
        "from": "carol@example.com",
        "recipients": [{"value": "A.da+news@Example.org", "formatted": "ada@example.org"}],
    }
