"""Test messageCopy: shared bodies, quota, tasks and access."""

from typing import Any

import pytest
from sqlalchemy import update

from graph.types import global_ids
from mail.search import index_worker
from mail.storage.blobs import garbage_collector
from models.admin.tasks import Task
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.admin import tasks
from resolvers.messages.bulk import bulk_tasks
from tests.conftest import GraphQLClient, ManualClock, deliver_to, raw_message
from tests.support.accounts.user_operations import set_quota
from tests.support.operations.bulk_operations import (
    inbox_selection,
    list_message_ids,
    list_messages,
    load_mailbox_path_by_subject,
    run_message_mutation,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def load_message_rows(client: GraphQLClient) -> list[tuple[Any, ...]]:
    columns = "user_id, mailbox_id, subject"
    return await select_rows(client.environment, f"SELECT {columns} FROM messages ORDER BY 1, 2, 3")  # noqa: S608


async def load_used_bytes(environment: Environment, user: User) -> int:
    ((used_bytes,),) = await select_rows(
        environment,
        f"SELECT used FROM users WHERE id = {user.id}",  # noqa: S608
    )
    return int(used_bytes)


async def test_copy_has_same_content_but_new_id_and_uid(ada_with_mail: GraphQLClient) -> None:
    a, _, c = await list_message_ids(ada_with_mail)
    flags = {"flags": ["\\Seen", "x"], "metadata": {"a": 1}, "expiresAt": "2031-01-01T00:00:00Z"}
    await run_message_mutation(ada_with_mail, "messageUpdate", select={"ids": [c]}, set=flags)
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    answer = await run_message_mutation(
        ada_with_mail, "messageCopy", select={"ids": [c, a]}, to={"path": "Brief"}
    )
    assert (answer["copiedCount"], answer["errors"], answer["task"]) == (2, [], None)
    assert [(item["oldUid"], item["newUid"]) for item in answer["copied"]] == [(1, 1), (3, 2)]
    copy = answer["copied"][1]["message"]
    assert copy["id"] not in (a, c)
    assert copy["mailbox"] == {"path": "Brief", "messageCount": 2, "unseenCount": 1}
    assert (copy["imap"]["flags"], copy["expiresAt"]) == (["\\Seen", "x"], "2030-01-02T00:00:03Z")
    ((kind, added_ids),) = await load_journal_entries(
        ada_with_mail.environment, ada_with_mail.user.id, last
    )
    assert (kind, [global_ids.encode("Message", key) for key in added_ids]) == (
        EventType.MESSAGE_ADDED,
        [item["message"]["id"] for item in answer["copied"]],
    )
    document = """query ($id: ID!) { message(by: {id: $id}) {
        subject rawSource receivedAt metadata imap { modseq } thread { id messageCount } } }"""
    old, new = [(await ada_with_mail(document, id=key))["message"] for key in (c, copy["id"])]
    assert new.pop("imap")["modseq"] == last + 2
    assert old.pop("imap")["modseq"] < last + 1
    assert old == new
    assert (new["thread"]["messageCount"], new["metadata"]) == (2, {"a": 1})


async def test_copy_shares_body_which_stays_while_referenced(
    ada_with_mail: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await deliver_to(ada_with_mail, raw_message("long", body="0123456789" * 60_000))
    blobs = await select_rows(environment, "SELECT count(*) FROM blobs")
    answer = await run_message_mutation(
        ada_with_mail, "messageCopy", select={"filter": {"subject": "long"}}, to={"path": "Keep"}
    )
    key = answer["copied"][0]["message"]["id"]
    assert await select_rows(environment, "SELECT count(*) FROM blobs") == blobs
    await run_message_mutation(
        ada_with_mail, "messageDelete", select={"mailbox": {"path": "INBOX"}}, permanent=True
    )
    clock.tick(days=2)
    await garbage_collector.collect_garbage(environment, environment.object_store)
    document = "query ($id: ID!) { message(by: {id: $id}) { text } }"
    text = (await ada_with_mail(document, id=key))["message"]["text"]
    assert len(text.strip()) == 600_000


async def test_copy_is_found_by_text_search(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    await run_message_mutation(
        ada_with_mail, "messageCopy", select=inbox_selection("1"), to={"path": "Keep"}
    )
    document = """{ messages(filter: {query: "a", mailbox: {path: "Keep"}}) { totalCount } }"""
    assert (await ada_with_mail(document))["messages"]["totalCount"] == 1
    while await index_worker.index_next_batch_and_record_contacts(environment):
        pass
    assert (await ada_with_mail(document))["messages"]["totalCount"] == 1


async def test_mailbox_is_copied_into_itself_once(ada_with_mail: GraphQLClient) -> None:
    select = {"mailbox": {"path": "INBOX"}}
    answer = await run_message_mutation(
        ada_with_mail, "messageCopy", select=select, to={"path": "INBOX"}
    )
    assert [(item["oldUid"], item["newUid"]) for item in answer["copied"]] == [
        (1, 4),
        (2, 5),
        (3, 6),
    ]
    assert sorted(node["subject"] for node in await list_messages(ada_with_mail)) == list("aabbcc")


async def test_copy_over_quota_copies_nothing(
    ada_with_mail: GraphQLClient, small_bulk_client: GraphQLClient, environment: Environment
) -> None:
    used_bytes = await load_used_bytes(environment, ada_with_mail.user)
    for client, free_bytes in ((ada_with_mail, 1), (small_bulk_client, used_bytes - 1)):
        await set_quota(environment, ada_with_mail.user, used_bytes + free_bytes)
        arguments = {"select": {"all": True}, "to": {"path": "Keep"}}
        answer = await run_message_mutation(client, "messageCopy", **arguments)
        assert [(e["code"], e["used"], e["limit"]) for e in answer["errors"]] == [
            ("QUOTA_EXCEEDED", used_bytes, used_bytes + free_bytes)
        ]
        assert (answer["copiedCount"], answer["task"]) == (0, None)
    assert len(await load_message_rows(ada_with_mail)) == 3
    await set_quota(environment, ada_with_mail.user, 2 * used_bytes)
    assert (await run_message_mutation(ada_with_mail, "messageCopy", **arguments))[
        "copiedCount"
    ] == 3
    assert await load_used_bytes(environment, ada_with_mail.user) == 2 * used_bytes
    await set_quota(environment, ada_with_mail.user, None)


async def test_copy_task_copies_once_and_fails_over_quota(
    ada_with_mail: GraphQLClient,
    small_bulk_client: GraphQLClient,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = {"select": {"mailbox": {"path": "INBOX"}}, "to": {"path": "INBOX"}}
    assert (await run_message_mutation(small_bulk_client, "messageCopy", **arguments))["task"][
        "totalCount"
    ] == 3
    assert await tasks.run_next_task(environment)
    assert len(await load_message_rows(ada_with_mail)) == 6
    assert (await run_message_mutation(small_bulk_client, "messageCopy", **arguments))["task"][
        "totalCount"
    ] == 6
    used_bytes = await load_used_bytes(environment, ada_with_mail.user)
    await set_quota(environment, ada_with_mail.user, used_bytes + used_bytes // 3)
    monkeypatch.setattr(bulk_tasks, "MESSAGES_PER_STEP", 1)
    assert await tasks.run_next_task(environment)
    assert len(await load_message_rows(ada_with_mail)) == 8
    columns = "state, done_count, total_count, error"
    task_rows = await select_rows(
        environment,
        f"SELECT {columns} FROM tasks ORDER BY created_at, id",  # noqa: S608
    )
    assert task_rows[0] == ("SUCCEEDED", 3, 3, None)
    assert task_rows[1][:3] == ("FAILED", 2, 6)
    assert "The account is full: " in task_rows[1][3]
    await set_quota(environment, ada_with_mail.user, None)


async def test_cancelled_copy_task_keeps_copied_messages(
    ada_with_mail: GraphQLClient,
    small_bulk_client: GraphQLClient,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = {"select": inbox_selection("1:*"), "to": {"path": "Keep"}}
    task = (await run_message_mutation(small_bulk_client, "messageCopy", **arguments))["task"]["id"]
    monkeypatch.setattr(bulk_tasks, "MESSAGES_PER_STEP", 1)
    apply_chunk = bulk_tasks.apply_bulk_request_to_chunk_and_count

    async def apply_chunk_and_cancel(*arguments: Any) -> int:
        copied_count = await apply_chunk(*arguments)
        task_update = update(Task).where(Task.id == global_ids.decode("Task", task))  # type: ignore[arg-type]
        await arguments[1].exec(task_update.values(cancelled=True))
        return int(copied_count)

    monkeypatch.setattr(bulk_tasks, "apply_bulk_request_to_chunk_and_count", apply_chunk_and_cancel)
    assert await tasks.run_next_task(environment)
    assert await select_rows(environment, "SELECT state, done_count, total_count FROM tasks") == [
        ("CANCELLED", 1, 3)
    ]
    assert len(await load_message_rows(ada_with_mail)) == 4


async def test_copy_with_same_idempotency_key_runs_once(ada_with_mail: GraphQLClient) -> None:
    arguments = {
        "select": inbox_selection("1"),
        "to": {"path": "Keep"},
        "options": {"idempotencyKey": "k"},
    }
    first = await run_message_mutation(ada_with_mail, "messageCopy", **arguments)
    repeated = await run_message_mutation(ada_with_mail, "messageCopy", **arguments)
    assert (first["copied"], len(await list_message_ids(ada_with_mail))) == (repeated["copied"], 4)


@pytest.mark.parametrize(
    ("arguments", "code", "path"),
    [
        ({"select": inbox_selection("1"), "to": {"path": "Nowhere"}}, "NOT_FOUND", ["to"]),
        ({"select": {}, "to": {"path": "Keep"}}, "VALIDATION", ["select"]),
        ({"select": {"ids": [global_ids.encode("Message", 7)]}, "to": {"path": "Keep"}},
         "NOT_FOUND", ["select", "ids", "0"]),
    ],
)  # fmt: skip
async def test_invalid_copy_request_is_refused(
    ada_with_mail: GraphQLClient, arguments: dict[str, Any], code: str, path: list[str]
) -> None:
    answer = await run_message_mutation(ada_with_mail, "messageCopy", **arguments)
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [(code, path)]
    assert len(await list_message_ids(ada_with_mail)) == 3


async def test_copy_from_or_to_foreign_mailbox_is_refused(
    ada_with_mail: GraphQLClient, bob: GraphQLClient
) -> None:
    foreign_copy = {
        "select": {"ids": [(await list_message_ids(ada_with_mail))[0]]},
        "to": {"path": "INBOX"},
    }
    assert (await run_message_mutation(bob, "messageCopy", **foreign_copy))["errors"][0][
        "code"
    ] == "NOT_FOUND"
    foreign_mailbox = {"id": global_ids.encode("Mailbox", (await ada_with_mail.load_mailbox()).id)}
    await deliver_to(bob)
    answer = await run_message_mutation(
        bob, "messageCopy", select=inbox_selection("1"), to=foreign_mailbox
    )
    assert (answer["errors"][0]["code"], answer["errors"][0]["path"]) == ("NOT_FOUND", ["to"])
    assert len(await load_message_rows(ada_with_mail)) == 4


@pytest.mark.parametrize("uids", ["1:4294967295", "1:4294967295,*", "*:1", "3:1,2,2,1:3"])
async def test_wide_uid_sets_select_existing_messages(
    ada_with_mail: GraphQLClient, uids: str
) -> None:
    answer = await run_message_mutation(
        ada_with_mail, "messageCopy", select=inbox_selection(uids), to={"path": "Keep"}
    )
    assert (answer["errors"], answer["copiedCount"]) == ([], 3)
    assert sorted((await load_mailbox_path_by_subject(ada_with_mail)).items()) == [
        ("a", "Keep"),
        ("b", "Keep"),
        ("c", "Keep"),
    ]


async def test_copy_statement_count_is_independent_of_message_count(
    ada_with_mail: GraphQLClient, statements: list[str], clock: ManualClock
) -> None:
    async def count_statements() -> int:
        del statements[:]
        arguments = {"select": {"mailbox": {"path": "INBOX"}}, "to": {"path": "Keep"}}
        assert (await run_message_mutation(ada_with_mail, "messageCopy", **arguments))[
            "errors"
        ] == []
        return len([statement for statement in statements if "api_keys" not in statement])

    expected = await count_statements()
    for n in range(40):
        await deliver_to(ada_with_mail, f"more {n}")
        clock.tick(seconds=1)
    assert await count_statements() == expected
