"""Test the archive of deleted messages: lists, filters and restoring."""

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from graph.types import global_ids
from mail.maintenance import housekeeping
from mail.search import index_worker
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import rename
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.delete import MailboxDeletion
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.mailboxes.rename import MailboxRename
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import (
    execute_mutation,
    try_update_users,
    user_global_id,
)
from tests.support.operations.bulk_operations import (
    inbox_selection,
    list_messages,
    load_mailbox_path_by_subject,
    run_message_mutation,
)
from tests.support.operations.message_pages import find_subjects
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)
from tests.support.stores.query_plans import record_query_plans

FIELDS = """id subject mailboxPath mailbox { path } deletedAt expiresAt size preview seen deleted
  from { address } to { address } hasAttachments contentType { value } user { username }"""
ARCHIVE_QUERY = """
query (
  $filter: MessageFilter, $orderBy: DeletedMessageOrder! = DELETED_AT_DESC, $first: Int,
  $after: String
) {
  viewer { user { deletedMessages(
    filter: $filter, orderBy: $orderBy, first: $first, after: $after
  ) { nodes { SHOWN } totalCount pageInfo { hasNextPage endCursor } } } }
}
""".replace("SHOWN", FIELDS)
RESTORED_FIELDS = "restored { mailbox { path } message { id subject imap { uid flags } } }"
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def archive_owner(ada: GraphQLClient, clock: ManualClock) -> GraphQLClient:
    """Ada, who deleted a, b and c, one per minute; b from a mailbox that was renamed later."""
    for subject in "abc":
        await deliver_to(ada, subject)
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Keep/Here"]))
    move = {"select": inbox_selection("2"), "to": {"path": "Keep/Here"}}
    assert (await run_message_mutation(ada, "messageMove", **move))["errors"] == []
    for select in (inbox_selection("1"), {"mailbox": {"path": "Keep/Here"}}, inbox_selection("3")):
        assert (await run_message_mutation(ada, "messageDelete", select=select))[
            "deletedCount"
        ] == 1
        clock.tick(minutes=1)
    await rename.rename_mailbox(
        client_context(ada), MailboxRename(MailboxSelector(path="Keep"), "Kept")
    )
    return ada


async def load_archive(client: GraphQLClient, **arguments: Any) -> Any:
    return (await client(ARCHIVE_QUERY, **arguments))["viewer"]["user"]["deletedMessages"]


def join_subjects(answer: Any) -> str:
    return "".join(node["subject"] for node in answer["nodes"])


async def restore_by_subject(client: GraphQLClient, *subjects: str, **arguments: Any) -> Any:
    """Restore the messages with these subjects, in their order."""
    ids_by_subject = {node["subject"]: node["id"] for node in (await load_archive(client))["nodes"]}
    message_ids = [ids_by_subject[subject] for subject in subjects]
    return await execute_mutation(
        client,
        "deletedMessageRestore",
        RESTORED_FIELDS,
        select={"ids": message_ids},
        **arguments,
    )


async def test_deleted_messages_are_listed_newest_first(archive_owner: GraphQLClient) -> None:
    answer = await load_archive(archive_owner)
    assert (join_subjects(answer), answer["totalCount"]) == ("cba", 3)
    first, second, _ = answer["nodes"]
    assert (second["mailboxPath"], second["mailbox"]) == ("Keep/Here", {"path": "Kept/Here"})
    assert first["mailbox"] == {"path": "INBOX"}
    assert first["deletedAt"] == "2030-01-01T00:02:00Z"
    assert first["expiresAt"] == "2030-01-26T00:02:00Z"
    assert first["from"] == {"address": "carol@example.com"}
    assert first["user"] == {"username": "ada"}
    assert join_subjects(await load_archive(archive_owner, orderBy="DELETED_AT_ASC")) == "abc"
    first_page = await load_archive(archive_owner, first=2)
    assert (join_subjects(first_page), first_page["pageInfo"]["hasNextPage"]) == ("cb", True)
    assert (
        join_subjects(
            await load_archive(archive_owner, first=2, after=first_page["pageInfo"]["endCursor"])
        )
        == "a"
    )


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"subject": "b"}, "b"),
        ({"query": "b"}, "b"),
        ({"query": "there"}, "cba"),
        ({"mailbox": {"path": "INBOX"}}, "ca"),
        ({"mailbox": {"path": "Kept/Here"}}, "b"),
        ({"mailbox": {"path": "Keep/Here"}}, ""),
        ({"not": {"subject": "b"}}, "ca"),
        ({"hasAttachment": True}, ""),
    ],
)
async def test_deleted_messages_are_found_by_filters(
    archive_owner: GraphQLClient, condition: dict[str, Any], expected: str
) -> None:
    for _ in range(2):  # before and after text indexing
        answer = await load_archive(archive_owner, filter=condition or None)
        assert (join_subjects(answer), answer["totalCount"]) == (expected, len(expected))
        await index_worker.index_next_batch_and_record_contacts(archive_owner.environment)


async def test_archive_hides_drafts_and_messages_due_for_purge(
    archive_owner: GraphQLClient, clock: ManualClock
) -> None:
    draft = {"subject": "draft", "text": "x"}
    sent = await execute_mutation(archive_owner, "draftSave", "message { id }", set=draft)
    await run_message_mutation(
        archive_owner, "messageDelete", select={"ids": [sent["message"]["id"]]}
    )
    draft_id = global_ids.encode(
        "DeletedMessage", global_ids.decode("Message", sent["message"]["id"])
    )
    assert join_subjects(await load_archive(archive_owner)) == "cba"
    restored = await execute_mutation(
        archive_owner,
        "deletedMessageRestore",
        RESTORED_FIELDS,
        select={"ids": [draft_id]},
    )
    assert [error["code"] for error in restored["errors"]] == ["NOT_FOUND"]
    keys = [node["id"] for node in (await load_archive(archive_owner))["nodes"]]
    clock.tick(days=25)
    answer = await load_archive(archive_owner)
    assert (join_subjects(answer), answer["totalCount"]) == ("", 0)
    restored = await execute_mutation(
        archive_owner, "deletedMessageRestore", RESTORED_FIELDS, select={"ids": keys}
    )
    assert [error["code"] for error in restored["errors"]] == ["NOT_FOUND"]
    await housekeeping.run_housekeeping_round(archive_owner.environment)
    assert await select_rows(archive_owner.environment, "SELECT id FROM messages") == []


async def test_restored_messages_return_to_their_mailboxes(archive_owner: GraphQLClient) -> None:
    await index_worker.index_next_batch_and_record_contacts(archive_owner.environment)
    last = await load_stream_position(archive_owner.environment, archive_owner.user.id)
    answer = await restore_by_subject(archive_owner, "b", "a")
    assert answer["errors"] == []
    assert [
        (item["mailbox"]["path"], item["message"]["imap"]["uid"]) for item in answer["restored"]
    ] == [
        ("Kept/Here", 2),
        ("INBOX", 4),
    ]
    assert [
        kind
        for kind, _ in await load_journal_entries(
            archive_owner.environment, archive_owner.user.id, last
        )
    ] == [EventType.MESSAGE_RESTORED] * 2
    assert await load_mailbox_path_by_subject(archive_owner) == {"a": "INBOX", "b": "Kept/Here"}
    assert await find_subjects(archive_owner, query="b") == ["b"]
    assert await find_subjects(archive_owner, query="b", seen=False) == ["b"]
    assert join_subjects(await load_archive(archive_owner)) == "c"


async def test_message_is_restored_to_given_mailbox_or_inbox(archive_owner: GraphQLClient) -> None:
    assert (await restore_by_subject(archive_owner, "c", mailbox={"path": "Kept"}))["errors"] == []
    await mailbox_delete.delete_mailboxes(
        client_context(archive_owner), MailboxDeletion([MailboxSelector(path="Kept/Here")])
    )
    assert (await restore_by_subject(archive_owner, "b"))["restored"][0]["mailbox"] == {
        "path": "INBOX"
    }
    assert await load_mailbox_path_by_subject(archive_owner) == {"b": "INBOX", "c": "Kept"}
    (error,) = (await restore_by_subject(archive_owner, "a", mailbox={"path": "Nowhere"}))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["mailbox"])


async def test_restore_finds_recreated_mailbox_by_path(ada: GraphQLClient) -> None:
    await deliver_to(ada, "a")
    for _ in range(2):
        await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Keep"]))
        select: dict[str, Any] = {"all": True}
        await run_message_mutation(ada, "messageMove", select=select, to={"path": "Keep"})
        await mailbox_delete.delete_mailboxes(
            client_context(ada), MailboxDeletion([MailboxSelector(path="Keep")])
        )
        await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Keep"]))
        assert (await load_archive(ada))["nodes"][0]["mailbox"] is None
        assert (await restore_by_subject(ada, "a"))["restored"][0]["mailbox"] == {"path": "Keep"}
        await run_message_mutation(ada, "messageMove", select=select, to={"path": "INBOX"})
        await mailbox_delete.delete_mailboxes(
            client_context(ada), MailboxDeletion([MailboxSelector(path="Keep")])
        )


async def test_restore_clears_deleted_flag(ada: GraphQLClient) -> None:
    await deliver_to(ada, "a")
    await run_message_mutation(
        ada, "messageUpdate", select=inbox_selection("1"), set={"deleted": True, "addFlags": ["x"]}
    )
    await run_message_mutation(ada, "messageDelete", select=inbox_selection("1"))
    assert (await load_archive(ada))["nodes"][0]["deleted"] is True
    assert (await restore_by_subject(ada, "a"))["restored"][0]["message"]["imap"]["flags"] == ["x"]


async def test_restore_is_all_or_nothing(
    archive_owner: GraphQLClient, environment: Environment
) -> None:
    keys = [node["id"] for node in (await load_archive(archive_owner))["nodes"]]
    missing_id = global_ids.encode("DeletedMessage", 7)
    answer = await execute_mutation(
        archive_owner,
        "deletedMessageRestore",
        RESTORED_FIELDS,
        select={"ids": [keys[0], missing_id]},
    )
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [
        ("NOT_FOUND", ["select", "ids", "1"])
    ]
    async with environment.write_session() as session:
        await (await session.connection()).execute(text("UPDATE users SET quota = 400"))
    answer = await restore_by_subject(archive_owner, "a", "b", "c")
    assert [error["code"] for error in answer["errors"]] == ["QUOTA_EXCEEDED"]
    assert await list_messages(archive_owner) == []
    assert join_subjects(await load_archive(archive_owner)) == "cba"
    assert (await restore_by_subject(archive_owner, "a"))["errors"] == []
    async with environment.write_session() as session:
        await (await session.connection()).execute(text("UPDATE users SET quota = NULL"))


TIME_RANGE = {"since": "2030-01-01T00:01:00Z", "before": "2030-01-01T12:00:00Z"}


async def restore_time_range(client: GraphQLClient, **fields: Any) -> Any:
    period = {name: fields.pop(name, time) for name, time in TIME_RANGE.items()}
    return await execute_mutation(
        client,
        "deletedMessageRestore",
        "task { kind state totalCount user { username } } restored { mailbox { path } }",
        select={"period": period},
        **fields,
    )


async def test_deleted_messages_restore_returns_messages_of_time_range(
    archive_owner: GraphQLClient,
) -> None:
    answer = await restore_time_range(archive_owner)
    assert answer["errors"] == []
    assert answer["task"] == {
        "kind": "DELETED_MESSAGES_RESTORE", "state": "QUEUED", "totalCount": 2,
        "user": {"username": "ada"},
    }  # fmt: skip
    assert await list_messages(archive_owner) == []
    assert await tasks.run_next_task(archive_owner.environment)
    assert await load_mailbox_path_by_subject(archive_owner) == {"b": "Kept/Here", "c": "INBOX"}
    assert await select_rows(archive_owner.environment, "SELECT state, done_count FROM tasks") == [
        ("SUCCEEDED", 2)
    ]


@pytest.mark.parametrize(
    ("language", "path"),
    [
        ("en", "Restored (2030-01-01)"),
        ("de-AT", "Wiederhergestellt (2030-01-01)"),
        ("cy", "Restored (2030-01-01)"),
    ],
)
async def test_deleted_messages_restore_into_new_mailbox(
    archive_owner: GraphQLClient, language: str, path: str
) -> None:
    assert (await try_update_users(archive_owner, language=language))[1] == []
    for subject in ("c", "b"):
        start = "2030-01-01T00:02:00Z" if subject == "c" else TIME_RANGE["since"]
        assert (await restore_time_range(archive_owner, since=start, destination="NEW_MAILBOX"))[
            "errors"
        ] == []
        assert await tasks.run_next_task(archive_owner.environment)
    assert await load_mailbox_path_by_subject(archive_owner) == {"b": path, "c": path}


async def test_deleted_messages_restore_task_stops_at_quota(
    archive_owner: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.messages.deleted_messages.MESSAGES_PER_STEP", 1)
    async with environment.write_session() as session:
        await (await session.connection()).execute(text("UPDATE users SET quota = 300"))
    assert (await restore_time_range(archive_owner))["errors"] == []
    assert await tasks.run_next_task(environment)
    ((state, done_count, error),) = await select_rows(
        environment, "SELECT state, done_count, error FROM tasks"
    )
    assert (state, done_count) == ("FAILED", 1)
    assert "of 300 bytes are used." in error
    assert await load_mailbox_path_by_subject(archive_owner) == {"b": "Kept/Here"}
    async with environment.write_session() as session:
        await (await session.connection()).execute(text("UPDATE users SET quota = NULL"))


async def test_deleted_messages_restore_with_reversed_time_range_is_refused(
    archive_owner: GraphQLClient,
) -> None:
    (error,) = (await restore_time_range(archive_owner, before=TIME_RANGE["since"]))["errors"]
    assert (error["code"], error["path"], error["constraint"]) == (
        "VALIDATION",
        ["select", "period", "before"],
        "RANGE",
    )
    validated = await restore_time_range(archive_owner, options={"validateOnly": True})
    assert validated["errors"] == []
    assert await select_rows(archive_owner.environment, "SELECT id FROM tasks") == []


async def test_members_that_a_selection_does_not_use_are_refused(
    archive_owner: GraphQLClient,
) -> None:
    ids = [node["id"] for node in (await load_archive(archive_owner))["nodes"]]
    by_id, by_period = {"ids": ids}, {"period": TIME_RANGE}
    cases: list[tuple[dict[str, Any], str, Any]] = [
        (by_id, "user", {"username": "ada"}),
        (by_id, "destination", "NEW_MAILBOX"),
        (by_period, "mailbox", {"path": "INBOX"}),
    ]
    for select, name, value in cases:
        fields = {"select": select, name: value}
        answer = await execute_mutation(
            archive_owner, "deletedMessageRestore", RESTORED_FIELDS, **fields
        )
        assert [(error["code"], error["path"]) for error in answer["errors"]] == [
            ("VALIDATION", [name])
        ]
    assert join_subjects(await load_archive(archive_owner)) == "cba"


async def test_archive_of_another_user_is_hidden(
    archive_owner: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    message_id = (await load_archive(archive_owner))["nodes"][0]["id"]
    strangers = [bob, await make_domain_admin(environment, http, "unlicensed")]
    for client in strangers:
        assert (await client("query ($id: ID!) { node(id: $id) { id } }", id=message_id))[
            "node"
        ] is None
        document = "query ($u: UserRef) { user(by: $u) { deletedMessages { totalCount } } }"
        user = (await client(document, u={"id": user_global_id(archive_owner)}))["user"]
        assert user is None or user["deletedMessages"]["totalCount"] == 0
        answer = await execute_mutation(
            client,
            "deletedMessageRestore",
            RESTORED_FIELDS,
            select={"ids": [message_id]},
        )
        assert [error["code"] for error in answer["errors"]] == ["NOT_FOUND"]
        answer = await restore_time_range(client, user={"id": user_global_id(archive_owner)})
        assert answer["errors"][0]["code"] in ("NOT_FOUND", "FORBIDDEN")
        path = f"/rest/archive/{message_id}/message.eml"
        assert (await http.get(path, headers=client.headers)).status_code == 404
    assert join_subjects(await load_archive(archive_owner)) == "cba"
    assert await select_rows(environment, "SELECT id FROM tasks") == []


async def test_admin_sees_archive_metadata_and_restores_messages(
    archive_owner: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
    root: GraphQLClient,
) -> None:
    permissions = [AdminPermission.IMPERSONATE]
    domain_admin = await make_domain_admin(environment, http, "chief", permissions)
    for client in (domain_admin, await make_client(environment, http, "over", role=Role.ADMIN)):
        document = "query ($u: UserRef) { user(by: $u) { deletedMessages { nodes { id %s } } } }"
        metadata = await client(document % "size", u={"id": user_global_id(archive_owner)})
        assert len(metadata["user"]["deletedMessages"]["nodes"]) == 3
        answer = await client.execute(document % "subject", u={"id": user_global_id(archive_owner)})
        assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}
        nodes = answer["data"]["user"]["deletedMessages"]["nodes"]
        assert [(bool(node["id"]), node["subject"]) for node in nodes] == [(True, None)] * 3
        answer = await client.execute(
            document % "sourceUrl", u={"id": user_global_id(archive_owner)}
        )
        assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}
        nodes = answer["data"]["user"]["deletedMessages"]["nodes"]
        assert [node["sourceUrl"] for node in nodes] == [None] * 3
        message_id = metadata["user"]["deletedMessages"]["nodes"][0]["id"]
        path = f"/rest/archive/{message_id}/message.eml"
        assert (await http.get(path, headers=client.headers)).status_code == 403
    assert (await restore_time_range(domain_admin, user={"id": user_global_id(archive_owner)}))[
        "errors"
    ] == []
    (task,) = (await domain_admin("{ tasks { nodes { id state } } }"))["tasks"]["nodes"]
    assert await tasks.run_next_task(environment)
    task_query = "query ($id: ID!) { task(by: {id: $id}) { state doneCount } }"
    finished = await domain_admin(task_query, id=task["id"])
    assert finished["task"] == {"state": "SUCCEEDED", "doneCount": 2}
    other_admin = await make_domain_admin(environment, http, "deputy", permissions)
    assert await other_admin(task_query, id=task["id"]) == {"task": None}
    assert await load_mailbox_path_by_subject(archive_owner) == {"b": "Kept/Here", "c": "INBOX"}
    (entry,) = (
        await root('{ auditLog(filter: {mutation: "deletedMessageRestore"}) { nodes { actor } } }')
    )["auditLog"]["nodes"]
    assert entry["actor"] == "chief"


async def test_deleted_message_source_is_served_by_signed_url(
    archive_owner: GraphQLClient, clock: ManualClock
) -> None:
    answer = await archive_owner("{ viewer { user { deletedMessages { nodes { sourceUrl } } } } }")
    url = answer["viewer"]["user"]["deletedMessages"]["nodes"][0]["sourceUrl"]
    response = await archive_owner.http.get(url)
    assert (response.status_code, response.headers["content-type"]) == (200, "message/rfc822")
    assert b"Subject: c\r\n" in response.content
    partial = await archive_owner.http.get(url, headers={"Range": "bytes=0-4"})
    assert (partial.status_code, partial.content) == (206, response.content[:5])
    await restore_by_subject(archive_owner, "c")
    assert (await archive_owner.http.get(url)).status_code == 404
    clock.tick(minutes=21)
    assert (await archive_owner.http.get(url)).status_code == 401


async def test_archives_of_many_users_are_read_by_one_indexed_statement(
    archive_owner: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
    statements: list[str],
) -> None:
    over = await make_client(environment, http, "over", role=Role.ADMIN)
    document = "{ users(first: 50) { nodes { deletedMessages { nodes { id size } } } } }"

    async def count_statements() -> int:
        del statements[:]
        await over(document)
        return len(statements)

    await count_statements()
    expected = await count_statements()
    for n in range(20):
        await make_client(environment, http, f"u{n:02}")
    assert await count_statements() == expected
    with record_query_plans(environment) as plans:
        own_archive = "{ viewer { user { deletedMessages(first: 2) { nodes { id } } } } }"
        plan = await plans.explain_select(archive_owner(own_archive), "messages")
    if environment.database.dialect == "sqlite":
        assert "messages_deleted" in plan, plan
        assert "TEMP B-TREE" not in plan, plan


async def test_restore_statement_count_is_independent_of_message_count(
    ada: GraphQLClient, statements: list[str], clock: ManualClock
) -> None:
    counts = []
    for message_count in (1, 20):
        for n in range(message_count):
            await deliver_to(ada, f"{message_count} {n}")
        await run_message_mutation(ada, "messageDelete", select={"mailbox": {"path": "INBOX"}})
        keys = [node["id"] for node in (await load_archive(ada))["nodes"]]
        del statements[:]
        assert (
            await execute_mutation(
                ada, "deletedMessageRestore", RESTORED_FIELDS, select={"ids": keys}
            )
        )["errors"] == []
        counts.append(len(statements))
        clock.tick(days=1)
    assert counts[0] == counts[1]
