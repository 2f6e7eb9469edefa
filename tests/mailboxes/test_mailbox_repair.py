"""Folders that are looked at and mended: every kind of drift, one account at a time."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from graph.types import global_ids
from mail.consistency import check_consistency
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from resolvers.admin import tasks
from resolvers.mailboxes import repair as mailbox_repair
from tests.conftest import Client, raw_message, receive
from tests.support.operations.mailbox_operations import (
    append_unread_messages,
    create_mailboxes,
    run_mailbox_mutation,
)
from tests.support.stores.counter_check import journal, reached, rows

RESULT = "repaired { mailbox { path total uidNext } findings fixed } task { id kind total }"
INBOX = "UPDATE mailboxes SET {} WHERE path = 'INBOX' AND user_id = {{user}}"
ONE = "UPDATE messages SET {} WHERE subject = 'two' AND user_id = {{user}}"
DRIFTS = [  # what is done, and what each finding begins with; whether all of it is mended
    (INBOX.format("total = 77, unseen = 5, size = -1"), ["total", "unseen", "size"], True),
    (INBOX.format("uid_next = 1"), ["uid_next"], True),
    (INBOX.format("modseq = 1"), ["modseq"], True),
    (INBOX.format("modify_index = 0"), ["modify_index"], True),
    ("UPDATE users SET used = 7, message_count = 7 WHERE id = {user}",
     ["used", "message_count"], True),
    ("UPDATE users SET uid_validity = 1 WHERE id = {user}", ["uid_validity"], True),
    (ONE.format("indexed = true"), ["indexed"], True),
    (ONE.format("digest = 'x'"), ["message_digest"], False),
    (ONE.format("blob_id = 5"), ["root_reference", "root"], False),
    ("DELETE FROM message_blobs WHERE message_id IN (SELECT id FROM messages "
     "WHERE subject = 'two' AND user_id = {user})", ["root_reference"], False),
    ("INSERT INTO threads (id, user_id, subject, created_at) VALUES "
     "(5, {user}, '', '2030-01-01 00:00:00+00:00')", ["messages"], True),
    ("UPDATE streams SET last = last + 1 WHERE id = {user}", ["last"], False),
]  # fmt: skip


async def harm(world: Environment, statement: str) -> None:
    async with world.database.engine.begin() as connection:
        await connection.execute(text(statement))


async def repair(client: Client, *masks: str, **given: Any) -> Any:
    given = {"users": {"usernames": ["ada"]}, "mailboxMasks": list(masks) or ["*"], **given}
    return await run_mailbox_mutation(client, "mailboxRepair", RESULT, **given)


def rules(answer: Any) -> list[str]:
    texts = [found for one in answer["repaired"] for found in one["findings"]]
    return [found.partition(": ")[2].partition(" is ")[0] for found in texts]


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda drift: drift[1][0])
async def test_each_kind_of_drift_is_found_and_mended_where_it_can_be(
    ada: Client, bob: Client, root: Client, drift: tuple[str, list[str], bool]
) -> None:
    statement, found, fixed = drift
    for client in (ada, bob):
        await receive(client, "one")
        await receive(client, "two")
    assert await repair(root) == {"repaired": [], "task": None, "errors": []}
    await harm(ada.world, statement.format(user=ada.user.id))
    answer = await repair(root)
    assert (rules(answer), [one["fixed"] for one in answer["repaired"]]) == (found, [fixed])
    (one,) = answer["repaired"]
    if fixed:
        assert (one["mailbox"]["total"], one["mailbox"]["uidNext"]) == (2, 3)
        assert (await repair(root))["repaired"] == []
        assert (await check_consistency(ada.world)).findings == []
    else:
        assert rules(await repair(root)) == found
    assert (await repair(root, users={"usernames": ["bob"]}))["repaired"] == []


async def test_a_lost_object_is_found_where_bytes_are_looked_at(
    ada: Client, root: Client, tmp_path: Path
) -> None:
    boundary = "--b\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    noise = base64.encodebytes(hashlib.shake_256(b"x").digest(600_000)).decode()
    body = f"{boundary}{noise}\r\n--b--"
    raw = raw_message("large", body=body, Content_Type="multipart/mixed; boundary=b")
    await receive(ada, raw)
    (lost,) = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    lost.unlink()
    assert (await repair(root, checkBlobs=False))["repaired"] == []
    (one,) = (await repair(root))["repaired"]
    assert one["fixed"] is False
    assert "message of uid 1: whole is" in one["findings"][0]


async def test_a_reference_that_is_missing_is_written_again(
    ada: Client, root: Client, world: Environment
) -> None:
    body = "--b\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + "QUJD" * 1000
    raw = raw_message("x", body=f"{body}\r\n--b--", Content_Type="multipart/mixed; boundary=b")
    await receive(ada, raw)
    sql = "DELETE FROM message_blobs WHERE blob_id NOT IN (SELECT blob_id FROM messages)"
    before = await rows(world, "SELECT * FROM message_blobs ORDER BY blob_id")
    await harm(world, sql)
    (one,) = (await repair(root))["repaired"]
    assert (one["fixed"], len(one["findings"])) == (True, 1)
    assert await rows(world, "SELECT * FROM message_blobs ORDER BY blob_id") == before


async def test_what_is_mended_is_told_and_a_trial_mends_nothing(ada: Client, root: Client) -> None:
    await receive(ada)
    await harm(ada.world, INBOX.format("total = 77").format(user=ada.user.id))
    last = await reached(ada.world, ada.user.id)
    tried = await repair(root, options={"validateOnly": True})
    assert tried["errors"] == []
    assert (await ada.box()).total == 77
    await repair(root)
    key = (await ada.box()).id
    assert await journal(ada.world, ada.user.id, last) == [(ChangeKind.MAILBOX_UPDATED, [key])]


async def test_masks_say_which_folders_are_looked_at(ada: Client, root: Client) -> None:
    await create_mailboxes(ada, "A/B", "C")
    await harm(ada.world, "UPDATE mailboxes SET total = 77 WHERE path IN ('A/B', 'C')")
    assert (await repair(root, "A", "%/X"))["repaired"] == []
    (one,) = (await repair(root, "A/*"))["repaired"]
    assert (one["mailbox"]["path"], one["fixed"]) == ("A/B", True)
    assert (await ada.box("C")).total == 77
    (error,) = (await repair(root, *["x"] * 21))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["masks"])


async def test_many_folders_are_a_tasks_work(
    ada: Client, bob: Client, root: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append_unread_messages(ada, "Sent", "one")
    await append_unread_messages(bob, "Sent", "two")
    sql = "UPDATE mailboxes SET total = 77 WHERE path = 'Sent'"
    await harm(world, sql)
    await harm(world, "UPDATE messages SET digest = 'x' WHERE subject = 'two'")
    monkeypatch.setattr(mailbox_repair, "MAX_INLINE_MAILBOXES", 3)
    for users in ({"all": True}, {"usernames": ["ada", "bob"]}):
        task = (await repair(root, users=users))["task"]
        assert (task["kind"], task["total"]) == ("MAILBOX_REPAIR", 10)
    assert await tasks.run_next_task(world)
    sql = "SELECT state, done, result FROM tasks WHERE kind = 'MAILBOX_REPAIR' AND done > 0"
    ((state, done, result),) = await rows(world, sql)  # the other one still waits
    result = json.loads(result) if isinstance(result, str) else result
    assert (state, done, result["corrected"], result["left"]) == ("SUCCEEDED", 10, 2, 1)
    assert ((await ada.box("Sent")).total, (await bob.box("Sent")).total) == (1, 1)


async def test_only_administrators_repair(ada: Client, bob: Client) -> None:
    document = """mutation ($input: MailboxRepairInput!) {
        mailboxRepair(input: $input) { errors { code } } }"""
    users = {"ids": [global_ids.encode("User", bob.user.id)]}
    answer = await ada.raw(document, input={"users": users, "mailboxMasks": ["*"]})
    assert "FORBIDDEN" in json.dumps(answer)
