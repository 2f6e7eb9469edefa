"""Held and scheduled messages are in the mailbox SCHEDULED until they enter the queue."""

import asyncio
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
from tests.conftest import GraphQLClient, ManualClock
from tests.support.operations.bulk_operations import undo_mutation
from tests.support.operations.send_operations import send_with_undo_window

pytestmark = pytest.mark.usefixtures("verify_counters")
LATER = "2031-01-01T00:00:00Z"
MESSAGES_QUERY = """{ viewer { user { messages(first: 50) { nodes { id draft seen
  mailbox { specialUse path } } } } } }"""
FILTERED = """query ($states: [SubmissionState!]) { messages(filter: {submissionStates: $states}) {
  nodes { id } } }"""


async def load_placements(client: GraphQLClient) -> dict[str, tuple[str, bool]]:
    """Load the special use of the mailbox and the draft flag of each message."""
    answer = await client(MESSAGES_QUERY)
    nodes = answer["viewer"]["user"]["messages"]["nodes"]
    return {
        message["id"]: (message["mailbox"]["specialUse"], message["draft"]) for message in nodes
    }


async def load_submission_states(environment: Environment) -> list[SubmissionState]:
    query = select(col(Submission.state)).order_by(col(Submission.id))
    return [row.state for row in await environment.database.read(query)]


@pytest.mark.parametrize("send_options", [{"window": "PT30S"}, {"later": LATER}])
async def test_held_message_moves_to_sent_when_queued(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, send_options: dict[str, str]
) -> None:
    sent = await send_with_undo_window(ada, **send_options)
    message_id = sent["messages"][0]["id"]
    assert await load_placements(ada) == {message_id: ("SCHEDULED", False)}
    claimed_before = await recipient_leases.release_held_and_claim_due_jobs(
        environment, QueueLimits()
    )
    assert claimed_before.recipient_count == 0
    assert await load_placements(ada) == {message_id: ("SCHEDULED", False)}
    clock.tick(days=400)
    claimed = await recipient_leases.release_held_and_claim_due_jobs(environment, QueueLimits())
    assert claimed.recipient_count == 1
    assert await load_placements(ada) == {message_id: ("SENT", False)}
    claimed_again = await recipient_leases.release_held_and_claim_due_jobs(
        environment, QueueLimits()
    )
    assert claimed_again.recipient_count == 0


async def test_move_to_sent_writes_change_event(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await send_with_undo_window(ada, window="PT5S")
    clock.tick(seconds=6)
    await recipient_leases.release_held_and_claim_due_jobs(environment, QueueLimits())
    query = select(col(Change.type)).where(col(Change.stream_id) == ada.user.id)
    rows = await environment.database.read(query.order_by(col(Change.last)))
    kinds = [row.type.value for row in rows]
    assert kinds[-2:] == ["SUBMISSION_UPDATED", "MESSAGE_MOVED"]


async def test_message_sent_at_once_is_in_sent(ada: GraphQLClient) -> None:
    sent = await send_with_undo_window(ada)
    assert await load_placements(ada) == {sent["messages"][0]["id"]: ("SENT", False)}


async def test_cancelled_and_undone_messages_become_drafts(
    ada: GraphQLClient, environment: Environment
) -> None:
    cancelled, undone = (
        await send_with_undo_window(ada, later=LATER),
        await send_with_undo_window(ada, window="PT30S"),
    )
    await cancel_submission(ada, cancelled)
    assert (await undo_mutation(ada, undone))["errors"] == []
    assert set((await load_placements(ada)).values()) == {("DRAFTS", True)}
    assert await load_submission_states(environment) == [SubmissionState.CANCELLED] * 2
    resubmitted = await ada(
        """mutation ($key: ID!) { draftSend(input: {message: {id: $key}}) {
          submissions { state } errors { code message } } }""",
        key=cancelled["messages"][0]["id"],
    )
    assert resubmitted["draftSend"]["errors"] == []
    assert (await load_placements(ada))[cancelled["messages"][0]["id"]] == ("SENT", False)


async def test_cancelled_queued_message_becomes_draft(ada: GraphQLClient) -> None:
    sent = await send_with_undo_window(ada)
    await cancel_submission(ada, sent)
    assert await load_placements(ada) == {sent["messages"][0]["id"]: ("DRAFTS", True)}


async def cancel_submission(client: GraphQLClient, sent: Any) -> None:
    document = """mutation ($ids: [SubmissionRef!]!) {
      submissionCancel(input: {submissions: $ids}) {
      errors { code } } }"""
    answer = await client(document, ids=[{"id": sent["submissions"][0]["id"]}])
    assert answer["submissionCancel"]["errors"] == []


@pytest.mark.parametrize("permanent", [True, False])
async def test_deleted_scheduled_message_is_not_sent(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, permanent: bool
) -> None:
    sent = await send_with_undo_window(ada, later=LATER)
    await ada(
        """mutation ($ids: [ID!]!, $permanent: Boolean!) {
          messageDelete(input: {select: {ids: $ids}, permanent: $permanent}) {
            errors { code } } }""",
        ids=[sent["messages"][0]["id"]],
        permanent=permanent,
    )
    clock.tick(days=400)
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, QueueLimits())
    ).recipient_count == 0
    assert await load_submission_states(environment) == [SubmissionState.CANCELLED]
    queue_entries = await environment.database.read(select(col(QueueEntry.state)))
    assert [row.state for row in queue_entries] == [DeliveryState.CANCELLED]


async def test_reschedule_moves_copy_to_scheduled_and_back(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    sent = await send_with_undo_window(ada)
    message_id = sent["messages"][0]["id"]
    await reschedule_submission(ada, sent, LATER)
    assert await load_placements(ada) == {message_id: ("SCHEDULED", False)}
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, QueueLimits())
    ).recipient_count == 0
    await reschedule_submission(ada, sent, (clock() + timedelta(0)).isoformat())
    assert await load_placements(ada) == {message_id: ("SENT", False)}
    assert (
        await recipient_leases.release_held_and_claim_due_jobs(environment, QueueLimits())
    ).recipient_count == 1


async def reschedule_submission(client: GraphQLClient, sent: Any, send_at: str) -> None:
    document = """mutation ($ids: [SubmissionRef!]!, $at: DateTime!) {
      submissionReschedule(input: {submissions: $ids, sendAt: $at}) { errors { code message } } }"""
    answer = await client(document, ids=[{"id": sent["submissions"][0]["id"]}], at=send_at)
    assert answer["submissionReschedule"]["errors"] == []


async def test_messages_are_filtered_by_submission_state(ada: GraphQLClient) -> None:
    scheduled, held_sent, queued = (
        await send_with_undo_window(ada, later=LATER),
        await send_with_undo_window(ada, window="PT30S"),
        None,
    )
    queued = await send_with_undo_window(ada)

    async def find_message_ids(*state_names: str) -> set[str]:
        answer = await ada(FILTERED, states=list(state_names))
        return {message["id"] for message in answer["messages"]["nodes"]}

    assert await find_message_ids("SCHEDULED") == {scheduled["messages"][0]["id"]}
    expected_ids = {scheduled["messages"][0]["id"], held_sent["messages"][0]["id"]}
    assert await find_message_ids("SCHEDULED", "UNDOABLE") == expected_ids
    assert await find_message_ids("QUEUED") == {queued["messages"][0]["id"]}
    assert await find_message_ids() == set()


SAVED_SEARCH_CREATE = """mutation ($input: SavedSearchCreateInput!) {
  savedSearchCreate(input: $input) {
    savedSearch { query messages { nodes { id } } } errors { code path } } }"""
SAVED_SEARCH_DELETE = """mutation { savedSearchDelete(input: {savedSearches: [{name: "Mine"}]}) {
  errors { code } } }"""


async def save_search(client: GraphQLClient, **fields: Any) -> tuple[str, set[str]]:
    """Save a search. Return its query text and the IDs of the messages that it finds."""
    await client(SAVED_SEARCH_DELETE)
    variables = {"input": {"name": "Mine", **fields}}
    answer = (await client(SAVED_SEARCH_CREATE, **variables))["savedSearchCreate"]
    assert answer["errors"] == []
    saved_search = answer["savedSearch"]
    return saved_search["query"], {message["id"] for message in saved_search["messages"]["nodes"]}


async def test_saved_search_filters_by_submission_state(ada: GraphQLClient) -> None:
    scheduled_id = (await send_with_undo_window(ada, later=LATER))["messages"][0]["id"]
    queued_id = (await send_with_undo_window(ada))["messages"][0]["id"]
    for text, expected in (
        ("submission:scheduled", {scheduled_id}),
        ("submission:Queued", {queued_id}),
        ("submission:scheduled submission:queued", {scheduled_id, queued_id}),
        ("-submission:scheduled", {queued_id}),
    ):
        assert (await save_search(ada, query=text))[1] == expected, text
    text, no_ids = await save_search(ada, filter={"submissionStates": []})
    assert no_ids == set()
    assert (await save_search(ada, query=text))[1] == set()


async def test_concurrent_first_held_messages_share_one_mailbox(ada: GraphQLClient) -> None:
    document = """mutation ($key: String!) { messageSend(input: {
      to: [{address: "carol@example.net"}], text: $key, undoWindow: "PT30S"
    }) { messages { mailbox { id specialUse } } errors { code path } } }"""
    answers = await asyncio.gather(*(ada(document, key=key) for key in "abcd"))
    assert [answer["messageSend"]["errors"] for answer in answers] == [[]] * 4
    mailboxes = [answer["messageSend"]["messages"][0]["mailbox"] for answer in answers]
    assert {mailbox["specialUse"] for mailbox in mailboxes} == {"SCHEDULED"}
    assert len({mailbox["id"] for mailbox in mailboxes}) == 1
