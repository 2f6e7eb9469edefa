"""What is taken back, and what is not because it has changed since."""

from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from models.admin.tasks import UndoRecord
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from resolvers.submission import create as submission_create
from resolvers.submission import mutations as submission_mutations
from tests.conftest import Client, Clock, context
from tests.support.operations.bulk_operations import call, keys, places, take_back
from tests.support.operations.send_operations import send_with_undo_window

STATE = "query ($by: SubmissionRef!) { submission(by: $by) { state } }"


pytestmark = pytest.mark.usefixtures("counted")


async def state(client: Client, sent: Any) -> str:
    found = await client(STATE, by={"id": sent["submission"]["id"]})
    return str(found["submission"]["state"])


def codes(done: Any) -> list[str]:
    return [error["code"] for error in done["errors"]]


# messages that are held


async def test_a_message_that_is_held_is_taken_back(ada: Client) -> None:
    sent = await send_with_undo_window(ada, window="PT30S")
    assert sent["submission"]["state"] == "HELD_FOR_UNDO"
    assert sent["undo"]["expiresAt"] == sent["submission"]["undoUntil"]
    back = await take_back(ada, sent)
    assert (codes(back), back["restoredCount"]) == ([], 1)
    assert await state(ada, sent) == "CANCELLED"
    assert len(await keys(ada)) == 1  # its copy stays
    assert codes(await take_back(ada, sent)) == ["NOT_FOUND"]  # once


async def test_what_goes_at_once_or_is_only_tried_has_no_token(
    ada: Client, world: Environment
) -> None:
    assert (await send_with_undo_window(ada))["undo"] is None
    assert (await send_with_undo_window(ada, window="PT0S"))["undo"] is None
    tried = await send_with_undo_window(ada, window="PT30S", options={"validateOnly": True})
    assert (codes(tried), tried["undo"]) == ([], None)
    assert not await world.database.read(select(col(UndoRecord.id)))


async def test_a_message_for_later_is_taken_back_while_it_may(ada: Client, clock: Clock) -> None:
    sent = await send_with_undo_window(ada, window="PT30S", later="2031-01-01T00:00:00Z")
    assert sent["submission"]["state"] == "SCHEDULED"
    clock.tick(seconds=31)
    assert codes(await take_back(ada, sent)) == ["NOT_FOUND"]
    assert await state(ada, sent) == "SCHEDULED"


async def test_nobody_else_takes_a_message_back(ada: Client, bob: Client) -> None:
    sent = await send_with_undo_window(ada, window="PT30S")
    assert codes(await take_back(bob, sent)) == ["NOT_FOUND"]
    assert await state(ada, sent) == "HELD_FOR_UNDO"
    assert codes(await take_back(ada, sent)) == []


async def test_what_was_taken_back_already_or_is_on_its_way_is_too_late(
    ada: Client, world: Environment
) -> None:
    sent = await send_with_undo_window(ada, window="PT30S")
    (row,) = await submission_create.load_submissions_by_queue_id(
        context(ada), [await _queue_id(ada, sent)]
    )
    assert row
    await submission_mutations.cancel_submissions(context(ada), [row.id])
    late = await take_back(ada, sent)
    assert (codes(late), late["errors"][0]["path"]) == (["CONFLICT"], ["token"])
    ended = await world.database.read(select(col(QueueEntry.state)))
    assert [one.state for one in ended] == [DeliveryState.CANCELLED]


async def _queue_id(client: Client, sent: Any) -> str:
    asked = "query ($by: SubmissionRef!) { submission(by: $by) { queueId } }"
    found = await client(asked, by={"id": sent["submission"]["id"]})
    return str(found["submission"]["queueId"])


async def test_a_send_that_is_repeated_has_its_first_token(ada: Client) -> None:
    once = {"idempotencyKey": "once"}
    first = await send_with_undo_window(ada, window="PT30S", options=once)
    again = await send_with_undo_window(ada, window="PT30S", options=once)
    assert again == first
    assert codes(await take_back(ada, again)) == []
    assert await state(ada, first) == "CANCELLED"


# what has changed since


async def test_what_was_moved_on_stays_there(post: Client) -> None:
    moved = await call(post, "messageMove", select={"all": True}, to={"path": "Keep"})
    first, *_ = await keys(post)
    await call(post, "messageMove", select={"ids": [first]}, to={"specialUse": "TRASH"})
    back = await take_back(post, moved)
    assert (codes(back), back["restoredCount"]) == ([], 2)
    assert sorted((await places(post)).values()) == ["INBOX", "INBOX", "Trash"]


async def test_what_was_brought_back_and_moved_stays_there(post: Client) -> None:
    first, *_ = await keys(post)
    deleted = await call(post, "messageDelete", select={"ids": [first]})
    restore = (
        "mutation ($id: ID!) { archivedMessageRestore(input: {ids: [$id]}) { errors { code } } }"
    )
    archived = "{ viewer { user { archivedMessages(first: 9) { nodes { id } } } } }"
    (node,) = (await post(archived))["viewer"]["user"]["archivedMessages"]["nodes"]
    assert not codes((await post(restore, id=node["id"]))["archivedMessageRestore"])
    await call(post, "messageMove", select={"all": True}, to={"path": "Keep"})
    back = await take_back(post, deleted)
    assert (codes(back), back["restoredCount"]) == ([], 0)
    assert set((await places(post)).values()) == {"Keep"}


@pytest.mark.parametrize(
    ("before", "first", "since", "after"),
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
async def test_flags_that_changed_since_stay(
    post: Client, before: list[str], first: Any, since: Any, after: list[str]
) -> None:
    select_ = {"ids": [(await keys(post))[0]]}
    await call(post, "messageUpdate", select=select_, set={"flags": before})
    changed = await call(post, "messageUpdate", select=select_, set=first)
    await call(post, "messageUpdate", select=select_, set=since)
    assert codes(await take_back(post, changed)) == []
    now = await call(post, "messageUpdate", select=select_, set={"removeFlags": ["none"]})
    assert sorted(now["messages"][0]["flags"]) == sorted(after)
