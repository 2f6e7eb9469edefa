"""Test undo: tokens, held submissions, and changes made after the undone mutation."""

from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from models.admin.tasks import UndoRecord
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from resolvers.submission import loaders as submission_loaders
from resolvers.submission import mutations as submission_mutations
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.operations.bulk_operations import (
    list_message_ids,
    load_mailbox_path_by_subject,
    run_message_mutation,
    undo_mutation,
)
from tests.support.operations.send_operations import send_with_undo_window

SUBMISSION_STATE = "query ($by: SubmissionRef!) { submission(by: $by) { state } }"


pytestmark = pytest.mark.usefixtures("verify_counters")


async def load_state(client: GraphQLClient, sent: Any) -> str:
    answer = await client(SUBMISSION_STATE, by={"id": sent["submissions"][0]["id"]})
    return str(answer["submission"]["state"])


def error_codes(payload: Any) -> list[str]:
    return [error["code"] for error in payload["errors"]]


async def test_undo_cancels_held_submission(ada: GraphQLClient) -> None:
    sent = await send_with_undo_window(ada, window="PT30S")
    assert sent["submissions"][0]["state"] == "UNDOABLE"
    assert sent["undo"]["expiresAt"] == sent["submissions"][0]["undoableUntil"]
    undone = await undo_mutation(ada, sent)
    assert (error_codes(undone), undone["restoredCount"]) == ([], 1)
    assert await load_state(ada, sent) == "CANCELLED"
    assert len(await list_message_ids(ada)) == 1  # the copy in Sent remains
    assert error_codes(await undo_mutation(ada, sent)) == ["NOT_FOUND"]  # the token works once


async def test_send_without_undo_window_has_no_undo_token(
    ada: GraphQLClient, environment: Environment
) -> None:
    assert (await send_with_undo_window(ada))["undo"] is None
    assert (await send_with_undo_window(ada, window="PT0S"))["undo"] is None
    validated = await send_with_undo_window(ada, window="PT30S", options={"validateOnly": True})
    assert (error_codes(validated), validated["undo"]) == ([], None)
    assert not await environment.database.read(select(col(UndoRecord.id)))


async def test_undo_window_of_scheduled_submission_ends(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    sent = await send_with_undo_window(ada, window="PT30S", later="2031-01-01T00:00:00Z")
    assert sent["submissions"][0]["state"] == "SCHEDULED"
    clock.tick(seconds=31)
    assert error_codes(await undo_mutation(ada, sent)) == ["NOT_FOUND"]
    assert await load_state(ada, sent) == "SCHEDULED"


async def test_undo_of_submission_by_another_user_is_not_found(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    sent = await send_with_undo_window(ada, window="PT30S")
    assert error_codes(await undo_mutation(bob, sent)) == ["NOT_FOUND"]
    assert await load_state(ada, sent) == "UNDOABLE"
    assert error_codes(await undo_mutation(ada, sent)) == []


async def test_undo_of_cancelled_submission_is_conflict(
    ada: GraphQLClient, environment: Environment
) -> None:
    sent = await send_with_undo_window(ada, window="PT30S")
    (row,) = await submission_loaders.load_own_submissions_by_queue_id(
        client_context(ada), [await load_queue_id(ada, sent)]
    )
    assert row
    await submission_mutations.cancel_submissions(client_context(ada), [row.id])
    undone = await undo_mutation(ada, sent)
    assert (error_codes(undone), undone["errors"][0]["path"]) == (["CONFLICT"], ["token"])
    queue_entries = await environment.database.read(select(col(QueueEntry.state)))
    assert [entry.state for entry in queue_entries] == [DeliveryState.CANCELLED]


async def load_queue_id(client: GraphQLClient, sent: Any) -> str:
    document = "query ($by: SubmissionRef!) { submission(by: $by) { queueId } }"
    answer = await client(document, by={"id": sent["submissions"][0]["id"]})
    return str(answer["submission"]["queueId"])


async def test_repeated_send_with_idempotency_key_has_same_undo_token(ada: GraphQLClient) -> None:
    once = {"idempotencyKey": "once"}
    first = await send_with_undo_window(ada, window="PT30S", options=once)
    repeated = await send_with_undo_window(ada, window="PT30S", options=once)
    assert repeated == first
    assert error_codes(await undo_mutation(ada, repeated)) == []
    assert await load_state(ada, first) == "CANCELLED"


async def test_undo_of_move_skips_messages_moved_again(ada_with_mail: GraphQLClient) -> None:
    moved = await run_message_mutation(
        ada_with_mail, "messageMove", select={"all": True}, to={"path": "Keep"}
    )
    first, *_ = await list_message_ids(ada_with_mail)
    await run_message_mutation(
        ada_with_mail, "messageMove", select={"ids": [first]}, to={"specialUse": "TRASH"}
    )
    undone = await undo_mutation(ada_with_mail, moved)
    assert (error_codes(undone), undone["restoredCount"]) == ([], 2)
    assert sorted((await load_mailbox_path_by_subject(ada_with_mail)).values()) == [
        "INBOX",
        "INBOX",
        "Trash",
    ]


async def test_undo_of_delete_skips_messages_restored_and_moved(
    ada_with_mail: GraphQLClient,
) -> None:
    first, *_ = await list_message_ids(ada_with_mail)
    deleted = await run_message_mutation(ada_with_mail, "messageDelete", select={"ids": [first]})
    restore = """mutation ($id: ID!) {
      deletedMessageRestore(input: {select: {ids: [$id]}}) { errors { code } } }"""
    archived = "{ viewer { user { deletedMessages(first: 9) { nodes { id } } } } }"
    (node,) = (await ada_with_mail(archived))["viewer"]["user"]["deletedMessages"]["nodes"]
    assert not error_codes((await ada_with_mail(restore, id=node["id"]))["deletedMessageRestore"])
    await run_message_mutation(
        ada_with_mail, "messageMove", select={"all": True}, to={"path": "Keep"}
    )
    undone = await undo_mutation(ada_with_mail, deleted)
    assert (error_codes(undone), undone["restoredCount"]) == ([], 0)
    assert set((await load_mailbox_path_by_subject(ada_with_mail)).values()) == {"Keep"}


@pytest.mark.parametrize(
    ("before", "first", "later", "after"),
    [
        ([], {"seen": True}, {"flagged": True}, ["\\Flagged"]),
        ([], {"seen": True}, {"seen": False}, []),
        (["\\Seen"], {"seen": False}, {"seen": True}, ["\\Seen"]),
        (["a"], {"removeFlags": ["a"], "addFlags": ["b"]}, {"addFlags": ["a"]}, ["a"]),
        (["a"], {"addFlags": ["b"]}, {"removeFlags": ["a"]}, []),
        (["a", "\\Seen"], {"flags": ["b"]}, {"addFlags": ["c"]}, ["\\Seen", "a", "c"]),
        (["a"], {"flags": ["b"]}, {"flags": ["a", "d"]}, ["a", "d"]),
    ],
)  # fmt: skip
async def test_undo_of_update_keeps_later_flag_changes(
    ada_with_mail: GraphQLClient, before: list[str], first: Any, later: Any, after: list[str]
) -> None:
    select_ = {"ids": [(await list_message_ids(ada_with_mail))[0]]}
    await run_message_mutation(
        ada_with_mail, "messageUpdate", select=select_, set={"flags": before}
    )
    changed = await run_message_mutation(ada_with_mail, "messageUpdate", select=select_, set=first)
    await run_message_mutation(ada_with_mail, "messageUpdate", select=select_, set=later)
    assert error_codes(await undo_mutation(ada_with_mail, changed)) == []
    current = await run_message_mutation(
        ada_with_mail, "messageUpdate", select=select_, set={"removeFlags": ["none"]}
    )
    assert sorted(current["messages"][0]["imap"]["flags"]) == sorted(after)
