"""Held and scheduled messages are in the mailbox SCHEDULED until they enter the queue."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.envelope.delivery_jobs import QueueLimits
from mail.queue import recipient_leases
from models.events.journal import Change
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission, SubmissionState
from tests.conftest import Client, Clock
from tests.support.operations.bulk_operations import take_back
from tests.support.operations.send_operations import send_with_undo_window

pytestmark = pytest.mark.usefixtures("counted")
LATER = "2031-01-01T00:00:00Z"
ALL = """{ viewer { user { messages(first: 50) { nodes { id draft seen
  mailbox { specialUse path } } } } } }"""
FILTERED = """query ($states: [SubmissionState!]) { messages(filter: {submissionStates: $states}) {
  nodes { id } } }"""


async def where(client: Client) -> dict[str, tuple[str, bool]]:
    """The special use of the mailbox of each message, and whether it is a draft."""
    found = await client(ALL)
    nodes = found["viewer"]["user"]["messages"]["nodes"]
    return {one["id"]: (one["mailbox"]["specialUse"], one["draft"]) for one in nodes}


async def states(world: Environment) -> list[SubmissionState]:
    asked = select(col(Submission.state)).order_by(col(Submission.id))
    return [row.state for row in await world.database.read(asked)]


@pytest.mark.parametrize("how", [{"window": "PT30S"}, {"later": LATER}])
async def test_a_held_message_moves_to_sent_when_it_enters_the_queue(
    ada: Client, world: Environment, clock: Clock, how: dict[str, str]
) -> None:
    sent = await send_with_undo_window(ada, **how)
    key = sent["message"]["id"]
    assert await where(ada) == {key: ("SCHEDULED", False)}
    before = await recipient_leases.claim_due_jobs(world, QueueLimits())
    assert before.recipient_count == 0
    assert await where(ada) == {key: ("SCHEDULED", False)}
    clock.tick(days=400)
    claimed = await recipient_leases.claim_due_jobs(world, QueueLimits())
    assert claimed.recipient_count == 1
    assert await where(ada) == {key: ("SENT", False)}
    again = await recipient_leases.claim_due_jobs(world, QueueLimits())
    assert again.recipient_count == 0


async def test_the_change_events_tell_of_the_move(
    ada: Client, world: Environment, clock: Clock
) -> None:
    await send_with_undo_window(ada, window="PT5S")
    clock.tick(seconds=6)
    await recipient_leases.claim_due_jobs(world, QueueLimits())
    asked = select(col(Change.kind)).where(col(Change.stream_id) == ada.user.id)
    rows = await world.database.read(asked.order_by(col(Change.last)))
    kinds = [row.kind.value for row in rows]
    assert kinds[-2:] == ["SUBMISSION_CHANGED", "MESSAGE_MOVED"]


async def test_a_message_that_goes_at_once_is_in_sent(ada: Client) -> None:
    sent = await send_with_undo_window(ada)
    assert await where(ada) == {sent["message"]["id"]: ("SENT", False)}


async def test_cancel_and_undo_give_a_draft_back(ada: Client, world: Environment) -> None:
    cancelled, undone = (
        await send_with_undo_window(ada, later=LATER),
        await send_with_undo_window(ada, window="PT30S"),
    )
    await _cancel(ada, cancelled)
    assert (await take_back(ada, undone))["errors"] == []
    assert set((await where(ada)).values()) == {("DRAFTS", True)}
    assert await states(world) == [SubmissionState.CANCELLED] * 2
    again = await ada(
        """mutation ($key: ID!) { messageSubmit(input: {message: {id: $key}}) {
          submission { state } errors { code message } } }""",
        key=cancelled["message"]["id"],
    )
    assert again["messageSubmit"]["errors"] == []
    assert (await where(ada))[cancelled["message"]["id"]] == ("SENT", False)


async def test_cancel_in_the_queue_gives_a_draft_back(ada: Client) -> None:
    sent = await send_with_undo_window(ada)
    await _cancel(ada, sent)
    assert await where(ada) == {sent["message"]["id"]: ("DRAFTS", True)}


async def _cancel(client: Client, sent: Any) -> None:
    document = """mutation ($ids: [ID!]!) { submissionCancel(input: {ids: $ids}) {
      errors { code } } }"""
    done = await client(document, ids=[sent["submission"]["id"]])
    assert done["submissionCancel"]["errors"] == []


@pytest.mark.parametrize("permanent", [True, False])
async def test_a_scheduled_message_that_is_deleted_is_not_sent(
    ada: Client, world: Environment, clock: Clock, permanent: bool
) -> None:
    sent = await send_with_undo_window(ada, later=LATER)
    await ada(
        """mutation ($ids: [ID!]!, $permanent: Boolean!) {
          messageDelete(input: {select: {ids: $ids}, permanent: $permanent}) {
            errors { code } } }""",
        ids=[sent["message"]["id"]],
        permanent=permanent,
    )
    clock.tick(days=400)
    assert (await recipient_leases.claim_due_jobs(world, QueueLimits())).recipient_count == 0
    assert await states(world) == [SubmissionState.CANCELLED]
    ended = await world.database.read(select(col(QueueEntry.state)))
    assert [row.state for row in ended] == [DeliveryState.CANCELLED]


async def test_a_reschedule_moves_the_copy_both_ways(
    ada: Client, world: Environment, clock: Clock
) -> None:
    sent = await send_with_undo_window(ada)
    key = sent["message"]["id"]
    await _reschedule(ada, sent, LATER)
    assert await where(ada) == {key: ("SCHEDULED", False)}
    assert (await recipient_leases.claim_due_jobs(world, QueueLimits())).recipient_count == 0
    await _reschedule(ada, sent, (clock() + timedelta(0)).isoformat())
    assert await where(ada) == {key: ("SENT", False)}
    assert (await recipient_leases.claim_due_jobs(world, QueueLimits())).recipient_count == 1


async def _reschedule(client: Client, sent: Any, at: str) -> None:
    document = """mutation ($ids: [ID!]!, $at: DateTime!) {
      submissionReschedule(input: {ids: $ids, sendTime: $at}) { errors { code message } } }"""
    done = await client(document, ids=[sent["submission"]["id"]], at=at)
    assert done["submissionReschedule"]["errors"] == []


async def test_a_filter_asks_for_the_state_of_the_submission(ada: Client) -> None:
    later, window, now = (
        await send_with_undo_window(ada, later=LATER),
        await send_with_undo_window(ada, window="PT30S"),
        None,
    )
    now = await send_with_undo_window(ada)

    async def found(*names: str) -> set[str]:
        listed = await ada(FILTERED, states=list(names))
        return {one["id"] for one in listed["messages"]["nodes"]}

    assert await found("SCHEDULED") == {later["message"]["id"]}
    held = {later["message"]["id"], window["message"]["id"]}
    assert await found("SCHEDULED", "HELD_FOR_UNDO") == held
    assert await found("QUEUED") == {now["message"]["id"]}
    assert await found() == set()


SAVE = """mutation ($input: SavedSearchSetInput!) { savedSearchSet(input: $input) {
  savedSearches { query messages { nodes { id } } } errors { code path } } }"""


async def saved(client: Client, **given: Any) -> tuple[str, set[str]]:
    """The text of a search that is saved, and the messages that it finds."""
    done = (await client(SAVE, input={"name": "Mine", **given}))["savedSearchSet"]
    assert done["errors"] == []
    (found,) = done["savedSearches"]
    return found["query"], {one["id"] for one in found["messages"]["nodes"]}


async def test_a_saved_search_asks_for_the_state_of_the_submission(ada: Client) -> None:
    later = (await send_with_undo_window(ada, later=LATER))["message"]["id"]
    now = (await send_with_undo_window(ada))["message"]["id"]
    for text, found in (
        ("submission:scheduled", {later}),
        ("submission:Queued", {now}),
        ("submission:scheduled submission:queued", {later, now}),
        ("-submission:scheduled", {now}),
    ):
        assert (await saved(ada, query=text))[1] == found, text
    text, none = await saved(ada, filter={"submissionStates": []})
    assert none == set()
    assert (await saved(ada, query=text))[1] == set()
