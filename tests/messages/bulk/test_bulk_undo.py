"""Undo of updates, moves and deletions of many messages."""

from typing import Any

import pytest
from sqlalchemy import update

from mail.maintenance import housekeeping
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.bulk_operations import (
    inbox_selection,
    list_message_ids,
    list_messages,
    load_mailbox_path_by_subject,
    run_message_mutation,
    undo_mutation,
)
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


def without_uids(messages: list[Any]) -> list[Any]:
    """Return the fields of messages that a move and a restore keep."""
    return [{**message, "imap": {**message["imap"], "uid": 0}} for message in messages]


async def test_undo_restores_deleted_messages(ada_with_mail: GraphQLClient) -> None:
    select = {"ids": (await list_message_ids(ada_with_mail))[:2]}
    await run_message_mutation(
        ada_with_mail, "messageUpdate", select=select, set={"flags": ["\\Seen", "x"]}
    )
    before = await list_messages(ada_with_mail)
    answer = await run_message_mutation(ada_with_mail, "messageDelete", select=select)
    assert answer["undo"]["expiresAt"] == "2030-01-01T00:10:03Z"
    assert await undo_mutation(ada_with_mail, answer) == {"restoredCount": 2, "errors": []}
    after = await list_messages(ada_with_mail)
    assert without_uids(after) == without_uids(before)
    assert [node["imap"]["uid"] for node in after] == [4, 5, 3]


async def test_undo_returns_reverted_messages(ada_with_mail: GraphQLClient) -> None:
    select = {"ids": (await list_message_ids(ada_with_mail))[:2]}
    answer = await run_message_mutation(ada_with_mail, "messageDelete", select=select)
    undone = await execute_mutation(
        ada_with_mail,
        "undo",
        "messages { id mailbox { path } } submissions { id }",
        token=answer["undo"]["token"],
    )
    assert undone["errors"] == []
    assert sorted(message["id"] for message in undone["messages"]) == sorted(select["ids"])
    assert {message["mailbox"]["path"] for message in undone["messages"]} == {"INBOX"}
    assert undone["submissions"] == []


async def test_undo_moves_messages_back(ada_with_mail: GraphQLClient) -> None:
    await run_message_mutation(
        ada_with_mail,
        "messageUpdate",
        select=inbox_selection("1"),
        set={"expiresAt": "2032-01-01T00:00:00Z"},
    )
    before = await list_messages(ada_with_mail)
    answer = await run_message_mutation(
        ada_with_mail,
        "messageMove",
        select=inbox_selection("1:3"),
        to={"path": "Brief"},
        set={"addFlags": ["x"]},
    )
    assert await undo_mutation(ada_with_mail, answer) == {"restoredCount": 3, "errors": []}
    after = await list_messages(ada_with_mail)
    assert without_uids(after) == without_uids(before)


async def test_undo_reverts_only_the_undone_update(ada_with_mail: GraphQLClient) -> None:
    await run_message_mutation(
        ada_with_mail,
        "messageUpdate",
        select=inbox_selection("1:2"),
        set={"flags": ["x", "\\Flagged"]},
    )
    arguments = {"removeFlags": ["x"], "addFlags": ["y"], "flagged": True, "metadata": {"a": 1},
             "expiresAt": "2031-01-01T00:00:00Z"}  # fmt: skip
    answer = await run_message_mutation(
        ada_with_mail, "messageUpdate", select=inbox_selection("1:3"), set=arguments
    )
    await run_message_mutation(
        ada_with_mail,
        "messageUpdate",
        select=inbox_selection("1:3"),
        set={"seen": True, "addFlags": ["z"]},
    )
    await run_message_mutation(
        ada_with_mail, "messageMove", select=inbox_selection("1"), to={"path": "Keep"}
    )
    assert await undo_mutation(ada_with_mail, answer) == {"restoredCount": 3, "errors": []}
    a, b, c = await list_messages(ada_with_mail)
    assert (
        sorted(a["imap"]["flags"])
        == sorted(b["imap"]["flags"])
        == ["\\Flagged", "\\Seen", "x", "z"]
    )
    assert sorted(c["imap"]["flags"]) == ["\\Seen", "z"]
    assert a["mailbox"]["path"] == "Keep"
    assert [(n["expiresAt"], n["metadata"]) for n in (a, b, c)] == [(None, None)] * 3


async def test_undo_restores_replaced_flags(ada_with_mail: GraphQLClient) -> None:
    await run_message_mutation(
        ada_with_mail,
        "messageUpdate",
        select=inbox_selection("1"),
        set={"flags": ["x", "\\Flagged"]},
    )
    answer = await run_message_mutation(
        ada_with_mail, "messageUpdate", select=inbox_selection("1:2"), set={"flags": ["y"]}
    )
    await undo_mutation(ada_with_mail, answer)
    assert [node["imap"]["flags"] for node in await list_messages(ada_with_mail)] == [
        ["\\Flagged", "x"],
        [],
        [],
    ]


async def test_undo_restores_to_inbox_if_mailbox_was_deleted(ada_with_mail: GraphQLClient) -> None:
    await run_message_mutation(
        ada_with_mail, "messageMove", select=inbox_selection("1"), to={"path": "Keep"}
    )
    answer = await run_message_mutation(
        ada_with_mail, "messageDelete", select={"mailbox": {"path": "Keep"}}
    )
    mailbox_delete = (
        """mutation { mailboxDelete(input: {mailboxes: [{path: "Keep"}]}) { deletedIds } }"""
    )
    await ada_with_mail(mailbox_delete)
    assert await undo_mutation(ada_with_mail, answer) == {"restoredCount": 1, "errors": []}
    assert (await load_mailbox_path_by_subject(ada_with_mail))["a"] == "INBOX"


async def test_undo_over_quota_can_be_retried(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    answer = await run_message_mutation(
        ada_with_mail, "messageDelete", select=inbox_selection("1:2")
    )
    ((used,),) = await select_rows(environment, "SELECT used FROM users")
    for quota, expected in ((used, [("QUOTA_EXCEEDED", used, used)]), (None, [])):
        async with environment.write_session() as session:
            await session.exec(update(User).values(quota=quota))
        undone = await undo_mutation(ada_with_mail, answer)
        errors = [(e["code"], e["used"], e["limit"]) for e in undone["errors"]]
        assert errors == expected
    assert len(await list_message_ids(ada_with_mail)) == 3


async def test_undo_token_works_once_for_owner_within_ten_minutes(
    ada_with_mail: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    first = await run_message_mutation(ada_with_mail, "messageDelete", select=inbox_selection("1"))
    second = await run_message_mutation(ada_with_mail, "messageDelete", select=inbox_selection("2"))
    assert [e["code"] for e in (await undo_mutation(bob, first))["errors"]] == ["NOT_FOUND"]
    assert (await undo_mutation(ada_with_mail, first))["errors"] == []
    assert [e["code"] for e in (await undo_mutation(ada_with_mail, first))["errors"]] == [
        "NOT_FOUND"
    ]
    clock.tick(minutes=10)
    assert [e["code"] for e in (await undo_mutation(ada_with_mail, second))["errors"]] == [
        "NOT_FOUND"
    ]
    assert sorted(await load_mailbox_path_by_subject(ada_with_mail)) == ["a", "c"]


async def test_undo_skips_purged_messages(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    answer = await run_message_mutation(
        ada_with_mail, "messageDelete", select=inbox_selection("1:2")
    )
    async with environment.write_session() as session:
        first_message = update(Message).where(Message.uid == 1)  # type: ignore[arg-type]
        await session.exec(first_message.values(purge_at=environment.now()))
    await housekeeping.run_housekeeping_round(environment)
    assert await undo_mutation(ada_with_mail, answer) == {"restoredCount": 1, "errors": []}
    assert sorted(await load_mailbox_path_by_subject(ada_with_mail)) == ["b", "c"]
