"""Test filters of message lists, and the search text in filters."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from mail.search import index_worker
from models.errors import InvalidInput
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from resolvers.mailboxes.create import NewMailboxes, create_mailboxes
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages import loaders as message_loaders
from resolvers.messages import message_import
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.bulk.flags import change_flags
from resolvers.messages.bulk.row_changes import load_rows_in_transaction, move_to_deleted
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.listing import MessageListing
from resolvers.messages.message_import import NewMessage
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to, raw_message
from tests.support.case_loop import each_case
from tests.support.mail import multipart_message
from tests.support.operations.message_pages import MESSAGE_PAGE_QUERY, find_subjects
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_counters")


@pytest.fixture
async def ada_with_messages(ada: GraphQLClient, clock: ManualClock) -> GraphQLClient:
    """Four messages: an old seen one in Work, a large one with a file, a reply, and a plain one."""
    await create_mailboxes(client_context(ada), NewMailboxes(["Work"]))
    old_raw = raw_message(
        "Old", From="Dän <dan@Example.net>", Cc='"O\'Neil, J\\"r" <joe@example.com>'
    )
    new_message = NewMessage(MailboxSelector(path="Work"), old_raw.decode(), is_flagged=True)
    await message_import.store_imported_message_and_load_if_readable(
        client_context(ada), new_message
    )
    clock.tick(days=10)
    await deliver_to(
        ada,
        multipart_message.build_message(multipart_message.ATTACHMENTS[6:7], subject="ÄRGER 100%_"),
    )
    clock.tick(hours=1)
    first = await deliver_to(ada, "Question")
    reference = raw_message("Question").split(b"Message-ID: ")[1].split(b"\r\n")[0].decode()
    clock.tick(hours=1)
    reply = raw_message("Re: Question", body="yes", In_Reply_To=reference)
    await deliver_to(ada, reply + b"x" * 3000)
    async with client_context(ada).write_session(ada.user.id) as session:
        question_rows = await load_rows_in_transaction(session, [first.message_id])
        changes = FlagChanges.from_flag_names({"answered": True}, added=["$Label1", "Grün"])
        await change_flags(client_context(ada), session, question_rows, changes)
    return ada


SUBJECTS = ["Old", "Question", "Re: Question", "ÄRGER 100%_"]
FILTER_CASES: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [0, 1, 2, 3]),
    ({"from": "CAROL"}, [1, 2, 3]),
    ({"from": "dÄn"}, [0]),
    ({"from": "dan@example.NET"}, [0]),
    ({"toOrCc": "ada@EXAMPLE"}, [0, 1, 2, 3]),
    ({"toOrCc": "joe@"}, [0]),
    ({"toOrCc": "O'Neil, J\"r"}, [0]),
    ({"toOrCc": "null"}, []),
    ({"subject": "question"}, [1, 2]),
    ({"subject": "ärger"}, [3]),
    ({"subject": "ÄRGER"}, [3]),
    ({"subject": "%"}, [3]),
    ({"subject": "0%_"}, [3]),
    ({"subject": "Q_estion"}, []),
    ({"subject": "[ä]"}, []),
    ({"subject": "'; DROP TABLE messages; --"}, []),
    ({"to": "ada@"}, [0, 1, 2, 3]),
    ({"to": "joe@"}, []),
    ({"cc": "joe@EXAMPLE.com"}, [0]),
    ({"bcc": "joe@"}, []),
    ({"anyRecipient": "joe@"}, [0]),
    ({"anyRecipient": "ada@example.org"}, [0, 1, 2, 3]),
    ({"listId": "example"}, []),
    ({"not": {"listId": "example"}}, [0, 1, 2, 3]),
    ({"not": {"messageIdHeader": "none"}}, [0, 1, 2, 3]),
    ({"header": {"name": "in-reply-to"}}, [2]),
    ({"header": {"name": "Subject", "contains": "qUEST"}}, [1, 2]),
    ({"header": {"name": "cc", "contains": "o'neil"}}, [0]),
    ({"not": {"header": {"name": "Cc"}}}, [1, 2, 3]),
    ({"header": {"name": "Nowhere"}}, []),
    ({"body": "YES"}, [2]),
    ({"body": "yesx"}, []),
    ({"body": "xxx"}, [2]),
    ({"body": "question"}, []),
    ({"text": "question"}, [1, 2]),
    ({"text": "dan@example"}, [0]),
    ({"or": [{"body": "yes"}, {"header": {"name": "Cc"}}]}, [0, 2]),
    ({"not": {"body": "yes"}, "seen": False}, [1, 3]),
    ({"mailboxes": [{"path": "Work"}, {"specialUse": "SENT"}]}, [0]),
    ({"mailboxes": [{"path": "Work"}, {"specialUse": "INBOX"}]}, [0, 1, 2, 3]),
    ({"mailboxPatterns": ["W*"]}, [0]),
    ({"mailboxPatterns": ["%rk", "%OX"]}, [0, 1, 2, 3]),
    ({"mailboxPatterns": ["w*"]}, [0]),
    ({"mailboxPatterns": ["*"]}, [0, 1, 2, 3]),
    ({"not": {"mailboxPatterns": ["IN*X"]}}, [0]),
    ({"searchable": True}, [0, 1, 2, 3]),
    ({"searchable": False}, []),
    ({"mailbox": {"specialUse": "INBOX"}, "seqs": "1,3"}, [2, 3]),
    ({"mailbox": {"specialUse": "INBOX"}, "seqs": "*"}, [2]),
    ({"mailbox": {"specialUse": "INBOX"}, "seqs": "2:*"}, [1, 2]),
    ({"emailIds": ["0" * 32]}, []),
    ({"forwarded": False}, [0, 1, 2, 3]),
    ({"forwarded": True}, []),
    ({"savedSince": {"at": "2030-01-11T00:00:00Z"}}, [1, 2, 3]),
    ({"savedBefore": {"ago": "P1D"}}, [0]),
    ({"expiresBefore": {"at": "2040-01-01T00:00:00Z"}}, []),
    ({"not": {"expiresBefore": {"at": "2040-01-01T00:00:00Z"}}}, [0, 1, 2, 3]),
    ({"attachment": {"contentType": "X/y"}}, []),
    ({"not": {"attachment": {"filename": "."}}}, [0, 1, 2]),
    ({"modifiedSince": 0}, [0, 1, 2, 3]),
    ({"modifiedSince": 9007199254740991}, []),
    ({"mailbox": {"path": "/work"}}, [0]),
    ({"mailbox": {"path": "Work/"}}, [0]),
    ({"mailbox": {"path": "inbox"}}, [1, 2, 3]),
    ({"mailbox": {"specialUse": "INBOX"}, "uids": "1,3"}, [2, 3]),
    ({"mailbox": {"specialUse": "INBOX"}, "uids": "3:2"}, [1, 2]),
    ({"mailbox": {"specialUse": "INBOX"}, "uids": "2:*"}, [1, 2]),
    ({"mailbox": {"specialUse": "INBOX"}, "uids": "9:*"}, [2]),
    ({"mailbox": {"specialUse": "INBOX"}, "uids": "*"}, [2]),
    ({"mailbox": {"specialUse": "INBOX"}, "uids": "*:1"}, [1, 2, 3]),
    ({"mailbox": {"specialUse": "INBOX"}, "uids": " 1 , 1:1, 7"}, [3]),
    ({"seen": True}, [0]),
    ({"seen": False}, [1, 2, 3]),
    ({"flagged": True}, [0]),
    ({"flagged": False}, [1, 2, 3]),
    ({"answered": True}, [1]),
    ({"draft": True}, []),
    ({"deleted": False}, [0, 1, 2, 3]),
    ({"keyword": "$label1"}, [1]),
    ({"keyword": "grün"}, [1]),
    ({"keyword": "label1"}, []),
    ({"keyword": "%"}, []),
    ({"receivedSince": {"at": "2030-01-11T00:00:00Z"}}, [1, 2, 3]),
    ({"receivedSince": {"ago": "PT1H"}}, [1, 2]),
    ({"receivedBefore": {"at": "2030-01-11T02:00:00+01:00"}}, [0, 3]),
    ({"receivedBefore": {"ago": "P1D"}}, [0]),
    ({"sentSince": {"at": "2030-01-01T10:00:00Z"}}, [0, 1, 2]),
    ({"sentBefore": {"at": "2030-01-01T10:00:00Z"}}, []),
    ({"larger": "2 KB"}, [2]),
    ({"smaller": 2000, "larger": 100}, [0, 1, 3]),
    ({"hasAttachment": True}, [3]),
    ({"hasAttachment": False}, [0, 1, 2]),
    ({"seen": False, "subject": "e"}, [1, 2, 3]),
    ({"and": [{"seen": False}, {"subject": "Re"}]}, [2]),
    ({"and": []}, []),
    ({"or": [{"seen": True}, {"answered": True}]}, [0, 1]),
    ({"or": []}, []),
    ({"not": {"seen": False}}, [0]),
    ({"not": {"or": [{"seen": True}, {"not": {"subject": "question"}}]}}, [1, 2]),
    ({"query": "ärger", "hasAttachment": True}, [3]),
    ({"not": {"query": "question"}}, [0, 3]),
    ({"or": [{"query": "question"}, {"query": "arger"}]}, [1, 2, 3]),
]


async def test_message_list_is_filtered(ada_with_messages: GraphQLClient) -> None:
    for condition, expected in FILTER_CASES:
        assert await find_subjects(ada_with_messages, **condition) == [
            SUBJECTS[n] for n in expected
        ], condition


async def test_message_list_is_filtered_by_message_id_and_thread(
    ada_with_messages: GraphQLClient,
) -> None:
    (row,) = await select_rows(
        ada_with_messages.environment,
        "SELECT message_id, thread_id FROM messages WHERE subject = 'Question'",
    )
    assert await find_subjects(ada_with_messages, messageIdHeader=row[0]) == ["Question"]
    assert await find_subjects(ada_with_messages, messageIdHeader=row[0][1:]) == []
    assert await find_subjects(
        ada_with_messages, thread={"id": global_ids.encode("Thread", row[1])}
    ) == [
        "Question",
        "Re: Question",
    ]


async def test_thread_has_counts_and_participants(ada_with_messages: GraphQLClient) -> None:
    ((thread_id,),) = await select_rows(
        ada_with_messages.environment, "SELECT thread_id FROM messages WHERE subject = 'Question'"
    )
    document = """query ($id: ID!) { thread(by: {id: $id}) { subject messageCount unseenCount
        lastReceivedAt participants { name address } mailboxes { nodes { path } }
        messages(first: 1) { totalCount nodes { subject } pageInfo { hasNextPage } } } }"""
    answer = await ada_with_messages(document, id=global_ids.encode("Thread", thread_id))
    assert answer["thread"] == {
        "subject": "Question",
        "messageCount": 2,
        "unseenCount": 2,
        "lastReceivedAt": "2030-01-11T02:00:00Z",
        "participants": [{"name": "Carol", "address": "carol@example.com"}],
        "mailboxes": {"nodes": [{"path": "INBOX"}]},
        "messages": {
            "totalCount": 2, "nodes": [{"subject": "Question"}], "pageInfo": {"hasNextPage": True},
        },
    }  # fmt: skip


INVALID_FILTERS: list[dict[str, Any]] = [
    {"uids": "1"},
    {"mailbox": {"path": "A"}, "uids": "x"},
    {"mailbox": {"path": "A"}, "uids": "0"},
    {"mailbox": {"path": "A"}, "uids": "1:"},
    {"mailbox": {"path": "A"}, "uids": "1:2:3"},
    {"mailbox": {"path": "A"}, "uids": "4294967296"},
    {"mailbox": {"path": "A"}, "uids": "9" * 5000},
    {"mailbox": {"path": "A"}, "uids": ",".join("1" * 1001)},
    {"mailbox": {"path": "A"}, "uids": ",".join(f"{n}:{n + 1}" for n in range(1, 999, 3))},
    {"query": ""} | {"query": " ,. "},
    {"query": "x" * 1025},
    {"seqs": "1"},
    {"mailbox": {"path": "A"}, "seqs": "1:"},
    {"emailIds": ["12"]},
    {"emailIds": ["0" * 32] * 1001},
    {"mailboxPatterns": ["x" * 1001]},
    {"mailboxPatterns": ["x"] * 51},
    *({name: "x" * 1001} for name in ("subject", "text", "body", "messageIdHeader", "keyword")),
    {"header": {"name": "x" * 1001}},
    {"not": {"header": {"name": "x", "contains": "x" * 1001}}},
    {"attachment": {"contentType": "x" * 1001}},
    {"query": "a " * 40},
    {"receivedSince": {"ago": "P9999Y"}},
    {"not": {"not": {"not": {"not": {"not": {"not": {"not": {"not": {"not": {"seen": True}}}}}}}}}},
    {"or": [{"seen": True}] * 300},
    {},
    {"attachment": {}},
    {"and": [{}]},
    {"or": [{}, {"seen": True}]},
    {"not": {}},
    {"not": {"emailIds": []}},
    {"not": {"and": []}},
]


async def test_invalid_filter_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_FILTERS):
        with case as invalid_filter:
            answer = await ada.execute(MESSAGE_PAGE_QUERY, filter=invalid_filter)
            assert answer["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT"}


async def test_large_filter_is_accepted(ada: GraphQLClient) -> None:
    await deliver_to(ada)
    singles = ",".join(str(n) for n in range(1, 1999, 2))
    wide = ",".join(f"{n}:{n + 1}" for n in range(1, 700, 3))
    adjacent = ",".join(f"{n}:{n + 1}" for n in range(1, 999))
    for uids in (singles, wide, adjacent):
        assert await find_subjects(ada, mailbox={"path": "INBOX"}, uids=uids) == ["Hello"]
    assert await find_subjects(ada, **{"or": [{"subject": "x"}] * 120 + [{"subject": "hell"}]}) == [
        "Hello"
    ]


async def test_large_filter_applies_to_page_of_each_mailbox(ada: GraphQLClient) -> None:
    await create_mailboxes(client_context(ada), NewMailboxes([f"Box {n}" for n in range(40)]))
    await deliver_to(ada)
    document = """query ($filter: MessageFilter) { viewer { user { mailboxes(first: 50) { nodes {
        messages(filter: $filter) { nodes { subject } totalCount } } } } } }"""
    condition = {"or": [{"subject": character} for character in "hxyz" * 25]}
    user = (await ada(document, filter=condition or None))["viewer"]["user"]
    mailboxes = user["mailboxes"]["nodes"]
    assert [mailbox["messages"]["totalCount"] for mailbox in mailboxes] == [1] + [0] * 44


async def test_deleted_message_is_not_found(ada: GraphQLClient, environment: Environment) -> None:
    message_id = (await deliver_to(ada, "duck")).message_id
    await index_worker.index_next_batch_and_record_contacts(environment)
    async with client_context(ada).write_session(ada.user.id) as session:
        message_rows = await load_rows_in_transaction(session, [message_id])
        mailbox = await ada.load_mailbox()
        await move_to_deleted(
            client_context(ada), session, message_rows, {mailbox.id: mailbox.path}
        )
    assert await find_subjects(ada, query="duck") == []


async def test_damaged_message_does_not_stop_indexing(
    ada: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, "first")
    await deliver_to(ada, "second")
    first_update = update(Message).where(col(Message.subject) == "first")
    ((blob_id,),) = await select_rows(
        environment, "SELECT blob_id FROM messages WHERE subject = 'first'"
    )
    async with environment.write_session() as session:
        await session.exec(first_update.values(blob_id=7))
    assert await index_worker.index_next_batch_and_record_contacts(environment) == 2
    assert await find_subjects(ada, query="first") == ["first"]
    assert await find_subjects(ada, query="second") == ["second"]
    async with environment.write_session() as session:
        await session.exec(first_update.values(blob_id=blob_id))


odd_texts = st.text(
    alphabet=st.sampled_from("ab \"'*-():^&|!\\<>%_;{}[]+~äß北\u0300u1NOTAD"), max_size=30
)


async def test_random_search_text_never_fails(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, "a b ab")
    await deliver_to(bob, "a b ab")
    await index_worker.index_next_batch_and_record_contacts(environment)
    await deliver_to(ada, "b a ba")
    loop = asyncio.get_running_loop()
    ctx = client_context(ada)

    async def run_search(query: str) -> None:
        conditions = MessageConditions(query=query)
        listing = MessageListing(
            ada.user.id, PageRequest("received-"), frozenset({"user_id"}), conditions=conditions
        )
        try:
            (answer,) = await message_loaders.load_visible_message_pages(ctx, [listing])
        except InvalidInput:
            return
        assert {row.user_id for row in answer.rows} <= {ada.user.id}

    @given(odd_texts | st.text(max_size=20))
    @settings(
        max_examples=150,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    def check_search(query: str) -> None:
        if "\0" not in query and query.isprintable():
            asyncio.run_coroutine_threadsafe(run_search(query), loop).result()

    await asyncio.to_thread(check_search)


async def test_each_mailbox_reference_selects_the_same_messages(
    ada_with_messages: GraphQLClient,
) -> None:
    ada = ada_with_messages
    for path in ("INBOX", "Work", "Junk"):
        mailbox = (
            await ada(
                """query ($path: String!) { mailbox(by: {path: $path}) {
                  id path specialUse objectId messageCount } }""",
                path=path,
            )
        )["mailbox"]
        refs = [{name: mailbox[name]} for name in ("id", "path", "specialUse", "objectId")]
        for ref in refs:
            if None in ref.values():
                continue
            for condition in ({"mailbox": ref}, {"mailboxes": [ref]}):
                assert len(await find_subjects(ada, **condition)) == mailbox["messageCount"], ref
            flagged = await ada(
                """mutation ($input: MessageUpdateInput!) { messageUpdate(input: $input) {
                  updatedCount errors { message } } }""",
                input={"select": {"mailbox": ref}, "set": {"addFlags": [f"{next(iter(ref))}1"]}},
            )
            assert flagged["messageUpdate"] == {
                "updatedCount": mailbox["messageCount"],
                "errors": [],
            }, ref
        words = await find_subjects(ada, query=f"mailboxguid:{mailbox['objectId']}")
        assert len(words) == mailbox["messageCount"]
