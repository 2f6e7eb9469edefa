"""Test mailboxRepair: every kind of damage, patterns, and repair as a task."""

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import text

from graph.types import global_ids
from mail.consistency import check_consistency, mailbox_checks
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.admin import tasks
from resolvers.admin.task_turns import MAX_CONCURRENT_STEPS, TaskTurns
from resolvers.mailboxes import repair as mailbox_repair
from tests.conftest import GraphQLClient, deliver_to, make_client, raw_message
from tests.support.operations.mailbox_operations import (
    append_unread_messages,
    create_mailboxes,
    run_mailbox_mutation,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

PAYLOAD_FIELDS = (
    "repairResults { mailbox { path messageCount uidNext } findings findingCount fixed } "
    "task { id kind totalCount }"
)
UPDATE_INBOX = "UPDATE mailboxes SET {} WHERE path = 'INBOX' AND user_id = {{user}}"
UPDATE_ALL_INBOXES = "UPDATE mailboxes SET message_count = 77 WHERE path = 'INBOX'"
UPDATE_MESSAGE = "UPDATE messages SET {} WHERE subject = 'two' AND user_id = {{user}}"
DAMAGE_CASES = [  # SQL that does the damage, start of each finding, whether repair fixes it
    (
        UPDATE_INBOX.format("message_count = 77, unseen_count = 5, size = -1"),
        ["message_count", "unseen_count", "size"],
        True,
    ),
    (UPDATE_INBOX.format("uid_next = 1"), ["uid_next"], True),
    (UPDATE_INBOX.format("modseq = 1"), ["modseq"], True),
    ("UPDATE users SET used = 7, message_count = 7 WHERE id = {user}",
     ["used", "message_count"], True),
    ("UPDATE users SET uid_validity = 1 WHERE id = {user}", ["uid_validity"], True),
    (UPDATE_MESSAGE.format("indexed = true"), ["indexed"], True),
    ("UPDATE message_sort_keys SET subject_key = 'x' WHERE id IN (SELECT id FROM messages "
     "WHERE subject = 'two' AND user_id = {user})", ["sort_keys"], True),
    ("DELETE FROM message_sort_keys WHERE id IN (SELECT id FROM messages "
     "WHERE subject = 'two' AND user_id = {user})", ["sort_keys"], True),
    (UPDATE_MESSAGE.format("sha256 = 'x'"), ["message_digest"], False),
    (UPDATE_MESSAGE.format("blob_id = 5"), ["root_reference", "root"], False),
    ("DELETE FROM message_blobs WHERE message_id IN (SELECT id FROM messages "
     "WHERE subject = 'two' AND user_id = {user})", ["root_reference"], False),
    ("INSERT INTO threads (id, user_id, subject, created_at, muted) VALUES "
     "(5, {user}, '', '2030-01-01 00:00:00+00:00', false)", ["messages"], True),
    ("UPDATE streams SET last = last + 1 WHERE id = {user}", ["last"], False),
]  # fmt: skip


class CountedSlots(asyncio.Semaphore):
    """Slots of the steps of tasks, which count the steps."""

    step_count = 0

    async def acquire(self) -> Literal[True]:
        self.step_count += 1
        return await super().acquire()


async def execute_sql(environment: Environment, statement: str) -> None:
    async with environment.database.engine.begin() as connection:
        await connection.execute(text(statement))


async def repair(client: GraphQLClient, *patterns: str, **arguments: Any) -> Any:
    arguments = {
        "users": {"usernames": ["ada"]},
        "mailboxPatterns": list(patterns) or ["*"],
        **arguments,
    }
    return await run_mailbox_mutation(client, "mailboxRepair", PAYLOAD_FIELDS, **arguments)


def finding_subjects(answer: Any) -> list[str]:
    findings = [
        finding
        for mailbox_result in answer["repairResults"]
        for finding in mailbox_result["findings"]
    ]
    return [finding.partition(": ")[2].partition(" is ")[0] for finding in findings]


@pytest.mark.parametrize("damage", DAMAGE_CASES, ids=lambda damage: damage[1][0])
async def test_damage_is_found_and_repaired_if_possible(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, damage: tuple[str, list[str], bool]
) -> None:
    statement, expected, fixed = damage
    for client in (ada, bob):
        await deliver_to(client, "one")
        await deliver_to(client, "two")
    assert await repair(root) == {"repairResults": [], "task": None, "errors": []}
    await execute_sql(ada.environment, statement.format(user=ada.user.id))
    answer = await repair(root)
    assert (
        finding_subjects(answer),
        [repaired["fixed"] for repaired in answer["repairResults"]],
    ) == (
        expected,
        [fixed],
    )
    (repaired,) = answer["repairResults"]
    if fixed:
        assert (repaired["mailbox"]["messageCount"], repaired["mailbox"]["uidNext"]) == (2, 3)
        assert (await repair(root))["repairResults"] == []
        assert (await check_consistency(ada.environment)).findings == []
    else:
        assert finding_subjects(await repair(root)) == expected
    assert (await repair(root, users={"usernames": ["bob"]}))["repairResults"] == []


async def test_lost_object_is_found_if_blobs_are_checked(
    ada: GraphQLClient, root: GraphQLClient, tmp_path: Path
) -> None:
    boundary = "--b\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    noise = base64.encodebytes(hashlib.shake_256(b"x").digest(600_000)).decode()
    body = f"{boundary}{noise}\r\n--b--"
    raw = raw_message("large", body=body, Content_Type="multipart/mixed; boundary=b")
    await deliver_to(ada, raw)
    (object_path,) = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    object_path.unlink()
    assert (await repair(root, checkBlobs=False))["repairResults"] == []
    (repaired,) = (await repair(root))["repairResults"]
    assert repaired["fixed"] is False
    assert "message of uid 1: whole is" in repaired["findings"][0]


async def test_missing_reference_row_is_restored(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    body = "--b\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + "QUJD" * 1000
    raw = raw_message("x", body=f"{body}\r\n--b--", Content_Type="multipart/mixed; boundary=b")
    await deliver_to(ada, raw)
    sql = "DELETE FROM message_blobs WHERE blob_id NOT IN (SELECT blob_id FROM messages)"
    before = await select_rows(environment, "SELECT * FROM message_blobs ORDER BY blob_id")
    await execute_sql(environment, sql)
    (repaired,) = (await repair(root))["repairResults"]
    assert (repaired["fixed"], len(repaired["findings"])) == (True, 1)
    assert await select_rows(environment, "SELECT * FROM message_blobs ORDER BY blob_id") == before


async def test_repair_counts_the_findings_that_it_leaves_out(
    ada: GraphQLClient, root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox_repair, "MAX_FINDINGS", 2)
    await deliver_to(ada)
    damage = UPDATE_INBOX.format("message_count = 77, unseen_count = 5, size = -1")
    await execute_sql(ada.environment, damage.format(user=ada.user.id))
    (repaired,) = (await repair(root))["repairResults"]
    assert (len(repaired["findings"]), repaired["findingCount"]) == (2, 3)


async def test_repair_writes_event_and_validate_only_repairs_nothing(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    await deliver_to(ada)
    await execute_sql(
        ada.environment, UPDATE_INBOX.format("message_count = 77").format(user=ada.user.id)
    )
    last = await load_stream_position(ada.environment, ada.user.id)
    validated = await repair(root, options={"validateOnly": True})
    assert validated["errors"] == []
    assert (await ada.load_mailbox()).message_count == 77
    await repair(root)
    mailbox_id = (await ada.load_mailbox()).id
    assert await load_journal_entries(ada.environment, ada.user.id, last) == [
        (EventType.MAILBOX_UPDATED, [mailbox_id])
    ]


async def test_repair_checks_only_mailboxes_matching_patterns(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    await create_mailboxes(ada, "A/B", "C")
    await execute_sql(
        ada.environment, "UPDATE mailboxes SET message_count = 77 WHERE path IN ('A/B', 'C')"
    )
    assert (await repair(root, "A", "%/X"))["repairResults"] == []
    (repaired,) = (await repair(root, "A/*"))["repairResults"]
    assert (repaired["mailbox"]["path"], repaired["fixed"]) == ("A/B", True)
    assert (await ada.load_mailbox("C")).message_count == 77
    (error,) = (await repair(root, *["x"] * 21))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["mailboxPatterns"])


async def test_repair_of_many_mailboxes_runs_as_task(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await append_unread_messages(ada, "Sent", "one")
    await append_unread_messages(bob, "Sent", "two")
    sql = "UPDATE mailboxes SET message_count = 77 WHERE path = 'Sent'"
    await execute_sql(environment, sql)
    await execute_sql(environment, "UPDATE messages SET sha256 = 'x' WHERE subject = 'two'")
    monkeypatch.setattr(mailbox_repair, "MAX_INLINE_MAILBOXES", 3)
    for users in ({"all": True}, {"usernames": ["ada", "bob"]}):
        task = (await repair(root, users=users))["task"]
        assert (task["kind"], task["totalCount"]) == ("MAILBOX_REPAIR", 10)
    assert await tasks.run_next_task(environment)
    sql = (
        "SELECT state, done_count, result FROM tasks "
        "WHERE kind = 'MAILBOX_REPAIR' AND done_count > 0"
    )
    # the other task is still queued
    ((state, done_count, result),) = await select_rows(environment, sql)
    result = json.loads(result) if isinstance(result, str) else result
    assert (state, done_count, result["correctedCount"], result["remainingCount"]) == (
        "SUCCEEDED",
        10,
        2,
        1,
    )
    assert (
        (await ada.load_mailbox("Sent")).message_count,
        (await bob.load_mailbox("Sent")).message_count,
    ) == (
        1,
        1,
    )


async def test_repair_of_long_mailbox_has_many_steps(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, monkeypatch: Any
) -> None:
    await append_unread_messages(ada, "Sent", *(f"m{number}" for number in range(7)))
    await execute_sql(environment, "UPDATE mailboxes SET message_count = 77 WHERE path = 'Sent'")
    await execute_sql(environment, "UPDATE messages SET sha256 = 'x' WHERE subject = 'm5'")
    monkeypatch.setattr(mailbox_checks, "ROWS_PER_PART", 2)
    slots = CountedSlots(MAX_CONCURRENT_STEPS)
    assert (await repair(root, "Sent", users={"all": True}))["task"]
    assert await tasks.run_next_task(environment, TaskTurns(slots))
    query = "SELECT state, done_count, result FROM tasks"
    ((state, done_count, result),) = await select_rows(environment, query)
    result = json.loads(result) if isinstance(result, str) else result
    assert (state, result["correctedCount"], result["remainingCount"]) == ("SUCCEEDED", 1, 1)
    # 4 steps of messages and 4 of threads, then one for each mailbox, and the last without any
    assert slots.step_count == 8 + done_count + 1
    assert (await ada.load_mailbox("Sent")).message_count == 7


async def test_repair_is_forbidden_for_users(ada: GraphQLClient, bob: GraphQLClient) -> None:
    document = """mutation ($input: MailboxRepairInput!) {
        mailboxRepair(input: $input) { errors { code } } }"""
    users = {"ids": [global_ids.encode("User", bob.user.id)]}
    answer = await ada.execute(document, input={"users": users, "mailboxPatterns": ["*"]})
    assert "FORBIDDEN" in json.dumps(answer)


async def test_repair_of_all_users_by_an_admin_excludes_root(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    admin = await make_client(environment, root.http, "boss", role=Role.ADMIN)
    owner = await make_client(environment, root.http, "owner", role=Role.ROOT)
    await execute_sql(environment, UPDATE_ALL_INBOXES)
    users = {"all": True}
    counts = [(await repair(client, users=users))["task"]["totalCount"] for client in (root, admin)]
    assert counts == [15, 10]
    await execute_sql(environment, "DELETE FROM tasks WHERE total_count = 15")
    assert await tasks.run_next_task(environment)
    assert [(await client.load_mailbox()).message_count for client in (ada, admin, owner)] == [
        0,
        0,
        77,
    ]
