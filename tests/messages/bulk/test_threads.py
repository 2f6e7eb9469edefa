"""Test threads: grouping of messages, and changes of whole threads."""

from dataclasses import replace
from typing import Any

import pytest

from graph.execution.resolver_plans import PLAN_COUNTERS
from graph.types import global_ids
from mail.maintenance import snooze_worker
from mail.storage import thread_assignment
from models.events.event_types import EventType
from models.users.roles import Role, Scope
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_api_key, raw_message
from tests.support.operations.bulk_operations import run_message_mutation
from tests.support.operations.mailbox_operations import create_mailboxes
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

THREAD_UPDATE = """
mutation ($input: ThreadUpdateInput!) { threadUpdate(input: $input) {
  threads { id muted messageCount unseenCount }
  task { state totalCount } undo { token } journalCursor
  errors { __typename code path message ... on ValidationError { constraint } } } }
"""
MESSAGES_QUERY = """
{ viewer { user { messages(first: 50, orderBy: RECEIVED_AT_ASC) { nodes {
  id subject imap { flags } seen snoozedUntil mailbox { path }
  thread { id subject muted messageCount unseenCount participants { address }
           mailboxes { nodes { path } } } } } } } }
"""
UNDO_MUTATION = """
mutation ($token: String!) { undo(input: {token: $token}) {
  restoredCount errors { code } } }
"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


def thread_message(name: str, *parents: str, subject: str = "Pond") -> bytes:
    """Return a raw message whose Message-ID is its name and whose References name its parents."""
    references = " ".join(f"<{parent}@x.example>" for parent in parents)
    headers = {"Message_ID": f"<{name}@x.example>", "References": references}
    return raw_message(subject, body=name, From=f"{name}@x.example", **headers)


async def load_messages(client: GraphQLClient) -> list[Any]:
    messages: list[Any] = (await client(MESSAGES_QUERY))["viewer"]["user"]["messages"]["nodes"]
    return messages


async def update_threads(client: GraphQLClient, *thread_ids: str, **fields: Any) -> Any:
    refs = [{"id": thread_id} for thread_id in thread_ids]
    return (await client(THREAD_UPDATE, input={"threads": refs, "set": fields}))["threadUpdate"]


async def load_thread(client: GraphQLClient, nth: int = 0) -> Any:
    return (await load_messages(client))[nth]["thread"]


@pytest.fixture
async def user_with_threads(ada: GraphQLClient, clock: ManualClock) -> GraphQLClient:
    """A user with two threads, of three messages and of one."""
    for raw in (
        thread_message("a"),
        thread_message("b", "a"),
        thread_message("c", "b"),
        thread_message("z", subject="Other"),
    ):
        await deliver_to(ada, raw)
        clock.tick(seconds=1)
    return ada


async def test_thread_has_participants_mailboxes_and_counts(
    user_with_threads: GraphQLClient,
) -> None:
    thread = await load_thread(user_with_threads)
    assert thread["participants"] == [{"address": f"{name}@x.example"} for name in "abc"]
    assert thread["mailboxes"]["nodes"] == [{"path": "INBOX"}]
    figures = (thread["messageCount"], thread["unseenCount"], thread["muted"])
    assert figures == (3, 3, False)


THREAD_MAILBOXES_QUERY = """
query ($by: ThreadRef!, $first: Int, $after: String, $last: Int, $before: String) {
  thread(by: $by) { participantCount mailboxes(
    first: $first, after: $after, last: $last, before: $before
  ) { nodes { path } totalCount pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }
}
"""


async def test_mailboxes_of_thread_are_paged(
    user_with_threads: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_mailboxes(user_with_threads, "A", "B")
    thread = {"id": (await load_thread(user_with_threads))["id"]}
    ids = [node["id"] for node in (await load_messages(user_with_threads))]
    for message_id, path in zip(ids[1:3], ("A", "B"), strict=True):
        await run_message_mutation(
            user_with_threads, "messageMove", select={"ids": [message_id]}, to={"path": path}
        )

    async def load_page(**arguments: Any) -> Any:
        data = await user_with_threads(THREAD_MAILBOXES_QUERY, by=thread, **arguments)
        page = data["thread"]["mailboxes"]
        assert (page["totalCount"], data["thread"]["participantCount"]) == (3, 3)
        return [node["path"] for node in page["nodes"]], page["pageInfo"]

    paths, info = await load_page(first=2)
    assert (paths, info["hasNextPage"]) == (["INBOX", "A"], True)
    paths, info = await load_page(first=2, after=info["endCursor"])
    assert (paths, info["hasNextPage"]) == (["B"], False)
    paths, info = await load_page(last=2)
    assert (paths, info["hasPreviousPage"]) == (["A", "B"], True)
    paths, info = await load_page(last=2, before=info["startCursor"])
    assert (paths, info["hasPreviousPage"]) == (["INBOX"], False)
    assert (await bob(THREAD_MAILBOXES_QUERY, by=thread))["thread"] is None


THREAD_MESSAGES_QUERY = """
query ($by: ThreadRef!, $filter: MessageFilter, $orderBy: MessageOrder!, $after: String) {
  thread(by: $by) { messages(filter: $filter, orderBy: $orderBy, first: 2, after: $after) {
    nodes { from { address } } totalCount pageInfo { hasNextPage endCursor } } } }
"""


async def test_messages_of_thread_have_a_filter(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    for nth, name in enumerate("abcdef"):  # two messages of each time
        await deliver_to(ada, thread_message(name, *(["a"] if nth else [])))
        clock.tick(seconds=nth % 2)
    await deliver_to(ada, thread_message("z", subject="Other"))
    by = {"id": (await load_thread(ada))["id"]}
    for condition, names in (
        (None, "abcdef"),
        ({"seen": False}, "abcdef"),
        ({"seen": True}, ""),
        ({"query": "pond"}, "abcdef"),
        ({"from": "e@x.example"}, "e"),
        ({"not": {"from": "b@x.example"}}, "acdef"),
        ({"mailbox": {"path": "INBOX"}}, "abcdef"),
        ({"mailbox": {"path": "Sent"}}, ""),
        ({"subject": "Other"}, ""),
    ):
        for order in ("RECEIVED_AT_ASC", "RECEIVED_AT_DESC"):
            found, after, has_next = "", None, True
            while has_next:
                page = (
                    await ada(
                        THREAD_MESSAGES_QUERY,
                        by=by, filter=condition, orderBy=order, after=after,
                    )
                )["thread"]["messages"]  # fmt: skip
                found += "".join(node["from"]["address"][0] for node in page["nodes"])
                has_next, after = page["pageInfo"]["hasNextPage"], page["pageInfo"]["endCursor"]
                assert page["totalCount"] == len(names)
            assert found == (names if order == "RECEIVED_AT_ASC" else names[::-1]), condition
        hidden = await bob(
            THREAD_MESSAGES_QUERY, by=by, filter=condition, orderBy="RECEIVED_AT_ASC"
        )
        assert hidden == {"thread": None}


async def test_thread_returns_the_first_250_participants(ada: GraphQLClient) -> None:
    await deliver_to(ada, thread_message("a"))
    for number in range(251):
        await deliver_to(ada, thread_message(f"n{number}", "a"))
    document = """{ viewer { user { messages(first: 1) { nodes {
      thread { participantCount participants { address } } } } } } }"""
    thread = (await ada(document))["viewer"]["user"]["messages"]["nodes"][0]["thread"]
    assert (thread["participantCount"], len(thread["participants"])) == (252, 250)
    assert thread["participants"][:2] == [
        {"address": "a@x.example"},
        {"address": "n0@x.example"},
    ]


async def test_thread_update_changes_all_messages_and_is_undone(
    user_with_threads: GraphQLClient,
) -> None:
    first_id = (await load_thread(user_with_threads))["id"]
    second_id = (await load_thread(user_with_threads, 3))["id"]
    answer = await update_threads(
        user_with_threads, first_id, second_id, seen=True, addFlags=["work"], muted=True
    )
    assert answer["errors"] == []
    assert [(item["id"], item["muted"], item["unseenCount"]) for item in answer["threads"]] == [
        (first_id, True, 0), (second_id, True, 0),
    ]  # fmt: skip
    assert [node["imap"]["flags"] for node in await load_messages(user_with_threads)] == [
        ["\\Seen", "work"]
    ] * 4
    undone = (await user_with_threads(UNDO_MUTATION, token=answer["undo"]["token"]))["undo"]
    assert (undone["restoredCount"], undone["errors"]) == (4, [])
    assert [node["imap"]["flags"] for node in await load_messages(user_with_threads)] == [[]] * 4
    assert [(await load_thread(user_with_threads, nth))["muted"] for nth in (0, 3)] == [
        False,
        False,
    ]


async def test_muting_writes_one_journal_entry_and_is_undone(
    user_with_threads: GraphQLClient,
) -> None:
    thread = (await load_thread(user_with_threads))["id"]
    last = await load_stream_position(user_with_threads.environment, user_with_threads.user.id)
    answer = await update_threads(user_with_threads, thread, muted=True)
    await update_threads(user_with_threads, thread, muted=True)
    thread_id = global_ids.decode("Thread", thread)
    assert await load_journal_entries(
        user_with_threads.environment, user_with_threads.user.id, last
    ) == [(EventType.THREAD_UPDATED, [thread_id])]
    await user_with_threads(UNDO_MUTATION, token=answer["undo"]["token"])
    assert (await load_thread(user_with_threads))["muted"] is False


async def test_new_message_of_muted_thread_is_marked_seen(user_with_threads: GraphQLClient) -> None:
    await update_threads(
        user_with_threads, (await load_thread(user_with_threads))["id"], muted=True
    )
    await deliver_to(user_with_threads, thread_message("d", "c"))
    await deliver_to(user_with_threads, thread_message("y", "z", subject="Other"))
    subject_by_seen = {
        node["imap"]["flags"] == ["\\Seen"]: node["subject"]
        for node in (await load_messages(user_with_threads))[4:]
    }
    assert subject_by_seen == {True: "Pond", False: "Other"}
    thread = await load_thread(user_with_threads)
    assert (thread["messageCount"], thread["unseenCount"]) == (4, 3)


async def test_thread_is_snoozed_and_returns_whole(
    user_with_threads: GraphQLClient, clock: ManualClock
) -> None:
    thread = (await load_thread(user_with_threads))["id"]
    until = "2030-01-02T00:00:00Z"
    answer = await update_threads(user_with_threads, thread, snoozedUntil=until)
    assert answer["errors"] == []
    assert [node["mailbox"]["path"] for node in await load_messages(user_with_threads)] == [
        *["Snoozed"] * 3,
        "INBOX",
    ]
    clock.tick(days=2)
    await snooze_worker.unsnooze_due_messages(user_with_threads.environment)
    assert [node["subject"] for node in await load_messages(user_with_threads)] == [
        "Other",
        "Pond",
        "Pond",
        "Pond",
    ]


async def test_large_thread_update_runs_as_task(user_with_threads: GraphQLClient) -> None:
    thread = (await load_thread(user_with_threads))["id"]
    options = user_with_threads.environment.options
    object.__setattr__(user_with_threads.environment, "options", replace(options, bulk_max_items=2))
    answer = await update_threads(user_with_threads, thread, flagged=True, muted=True)
    assert (answer["task"], answer["undo"]) == ({"state": "QUEUED", "totalCount": 3}, None)
    assert answer["threads"][0]["muted"] is True
    while await tasks.run_next_task(user_with_threads.environment):
        pass
    assert [node["imap"]["flags"] for node in (await load_messages(user_with_threads))[:3]] == [
        ["\\Flagged"]
    ] * 3


async def test_muting_large_thread_needs_no_task_and_is_undone(
    user_with_threads: GraphQLClient,
) -> None:
    thread = (await load_thread(user_with_threads))["id"]
    options = user_with_threads.environment.options
    object.__setattr__(user_with_threads.environment, "options", replace(options, bulk_max_items=2))
    answer = await update_threads(user_with_threads, thread, muted=True)
    assert (answer["errors"], answer["task"], answer["threads"][0]["muted"]) == ([], None, True)
    assert not await select_rows(user_with_threads.environment, "SELECT id FROM tasks")
    undone = (await user_with_threads(UNDO_MUTATION, token=answer["undo"]["token"]))["undo"]
    assert (undone["restoredCount"], undone["errors"]) == (0, [])
    assert (await load_thread(user_with_threads))["muted"] is False


@pytest.mark.parametrize(
    ("arguments", "path", "constraint"),
    [
        ({"set": {}}, ["set"], "REQUIRED"),
        ({"threads": [], "set": {"muted": True}}, ["threads"], "REQUIRED"),
        ({"set": {"addFlags": ["a b"]}}, ["set", "addFlags", "0"], "PATTERN"),
        ({"set": {"snoozedUntil": "2029-01-01T00:00:00Z"}}, ["set", "snoozedUntil"], "MIN"),
    ],
)
async def test_invalid_thread_update_changes_nothing(
    user_with_threads: GraphQLClient, arguments: dict[str, Any], path: list[str], constraint: str
) -> None:
    thread = (await load_thread(user_with_threads))["id"]
    last = await load_stream_position(user_with_threads.environment, user_with_threads.user.id)
    answer = (
        await user_with_threads(THREAD_UPDATE, input={"threads": [{"id": thread}], **arguments})
    )["threadUpdate"]
    assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(path, constraint)]
    assert (
        await load_stream_position(user_with_threads.environment, user_with_threads.user.id) == last
    )


async def test_thread_update_accepts_duplicate_ids_up_to_limit(
    user_with_threads: GraphQLClient,
) -> None:
    thread = (await load_thread(user_with_threads))["id"]
    answer = await update_threads(user_with_threads, thread, thread, muted=True)
    assert ([item["id"] for item in answer["threads"]], answer["errors"]) == ([thread], [])
    over_limit = await update_threads(user_with_threads, *[thread] * 251, muted=False)
    assert [(e["path"], e["constraint"]) for e in over_limit["errors"]] == [(["threads"], "RANGE")]
    assert (await load_thread(user_with_threads))["muted"] is True


async def test_thread_of_another_user_is_not_found(
    user_with_threads: GraphQLClient, bob: GraphQLClient
) -> None:
    foreign_id = (await load_thread(user_with_threads))["id"]
    unknown_id = global_ids.encode("Thread", 1)
    await deliver_to(bob, thread_message("q"))
    own_id = (await load_thread(bob))["id"]
    last = await load_stream_position(user_with_threads.environment, user_with_threads.user.id)
    for wrong_id in (foreign_id, unknown_id):
        answer = await update_threads(bob, own_id, wrong_id, muted=True, seen=True)
        assert [(e["code"], e["path"]) for e in answer["errors"]] == [
            ("NOT_FOUND", ["threads", "1"])
        ]
    assert (await load_thread(bob))["muted"] is False
    assert (
        await load_stream_position(user_with_threads.environment, user_with_threads.user.id) == last
    )
    assert (await bob("query ($id: ID!) { node(id: $id) { id } }", id=foreign_id))["node"] is None


async def test_read_only_key_cannot_update_thread(user_with_threads: GraphQLClient) -> None:
    thread = (await load_thread(user_with_threads))["id"]
    secret = await make_api_key(
        user_with_threads.environment,
        "eyes",
        user_id=user_with_threads.user.id,
        role=Role.USER,
        scopes=[Scope.MAIL_READ],
    )
    reader = GraphQLClient(
        user_with_threads.http, user_with_threads.environment, user_with_threads.user, secret
    )
    answer = await update_threads(reader, thread, muted=True)
    assert [error["code"] for error in answer["errors"]] == ["FORBIDDEN"]


async def test_late_parent_merges_threads(ada: GraphQLClient, clock: ManualClock) -> None:
    await deliver_to(ada, thread_message("root"))
    clock.tick(seconds=1)
    await deliver_to(ada, thread_message("leaf", "middle"))
    first_thread, second_thread = await load_thread(ada, 0), await load_thread(ada, 1)
    assert first_thread["id"] != second_thread["id"]
    await update_threads(ada, second_thread["id"], muted=True)
    clock.tick(seconds=1)
    last = await load_stream_position(ada.environment, ada.user.id)
    await deliver_to(ada, thread_message("middle", "root"))
    messages = await load_messages(ada)
    assert {node["thread"]["id"] for node in messages} == {first_thread["id"]}
    assert (messages[0]["thread"]["messageCount"], messages[0]["thread"]["muted"]) == (3, True)
    # it was added to a muted thread
    assert [node["seen"] for node in messages] == [False, False, True]
    journal_entries = await load_journal_entries(ada.environment, ada.user.id, last)
    keys = [
        global_ids.decode("Thread", first_thread["id"]),
        global_ids.decode("Thread", second_thread["id"]),
    ]
    assert [kind for kind, _ in journal_entries] == [
        EventType.MESSAGE_RECEIVED,
        EventType.THREAD_MERGED,
    ]
    assert journal_entries[1][1] == keys
    await deliver_to(ada, thread_message("more", "leaf"))
    assert {node["thread"]["id"] for node in await load_messages(ada)} == {first_thread["id"]}
    assert (
        await ada("query ($id: ID!) { thread(by: {id: $id}) { id } }", id=second_thread["id"])
    ) == {"thread": None}


async def test_large_thread_is_not_merged(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_assignment, "MAX_MERGED_MESSAGES", 2)
    for raw in (thread_message("a"), thread_message("b", "a"), thread_message("leaf", "middle")):
        await deliver_to(ada, raw)
    await deliver_to(ada, thread_message("middle", "a"))
    assert len({node["thread"]["id"] for node in await load_messages(ada)}) == 2


async def test_threads_of_two_users_are_not_merged(ada: GraphQLClient, bob: GraphQLClient) -> None:
    for client in (ada, bob):
        await deliver_to(client, thread_message("root"))
        await deliver_to(client, thread_message("leaf", "middle"))
    await deliver_to(ada, thread_message("middle", "root"))
    assert len({node["thread"]["id"] for node in await load_messages(ada)}) == 1
    assert len({node["thread"]["id"] for node in await load_messages(bob)}) == 2


async def test_other_subject_starts_new_thread(ada: GraphQLClient) -> None:
    await deliver_to(ada, thread_message("a"))
    await deliver_to(ada, thread_message("b", "a", subject="Re: [list] Pond"))
    await deliver_to(ada, thread_message("c", "a", subject="AW: Fwd: Pond"))
    await deliver_to(ada, thread_message("d", "a", subject="Something else"))
    assert sorted(
        await select_rows(ada.environment, "SELECT count(*) FROM messages GROUP BY thread_id")
    ) == [
        (1,),
        (3,),
    ]


THREAD_IDS_QUERY = "{ viewer { user { messages(first: 50) { nodes { id threadId %s } } } } }"


async def test_thread_id_is_read_from_the_message_row(
    user_with_threads: GraphQLClient, statements: list[str]
) -> None:
    messages = await load_messages(user_with_threads)
    PLAN_COUNTERS.fallback.clear()
    for document in (THREAD_IDS_QUERY % "", THREAD_IDS_QUERY % "thread { __typename id }"):
        for _ in range(3):  # parsed, then compiled, then run by its plan
            del statements[:]
            page = (await user_with_threads(document))["viewer"]["user"]["messages"]["nodes"]
            assert len([sent for sent in statements if "FROM messages" in sent]) == 1
            assert not any("threads" in sent for sent in statements)
            assert [item["threadId"] for item in page[::-1]] == [
                item["thread"]["id"] for item in messages
            ]
            for item in page:
                expected = {"__typename": "Thread", "id": item["threadId"]}
                assert item.get("thread", expected) == expected
    assert not PLAN_COUNTERS.fallback
