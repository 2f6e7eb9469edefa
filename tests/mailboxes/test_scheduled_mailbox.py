"""Held and scheduled messages are in the mailbox SCHEDULED until they enter the queue."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from mail.envelope.delivery_jobs import QueueLimits
from mail.maintenance import snooze_worker
from mail.mime.header_encoding import NamedAddress
from mail.queue import recipient_leases
from mail.queue.delivery_results import OPEN_STATES
from models.events.journal import Change
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission, SubmissionState
from resolvers.admin import tasks
from resolvers.submission import mutations as submission_mutations
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.accounts.shared_mailboxes import run_mailbox_mutation
from tests.support.mail_servers.queue_worker import (
    poll_until,
    queue_message,
    relay_settings,
    run_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.bulk_operations import run_message_mutation, undo_mutation
from tests.support.operations.quarantine_operations import set_options
from tests.support.operations.rewrite_and_bcc_operations import ARCHIVE, create_bcc_rule
from tests.support.operations.send_operations import send_with_undo_window
from tests.support.stores.counter_check import assert_store_consistent, select_rows

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
    cancelled = await send_with_undo_window(ada, later=LATER)
    undone = await send_with_undo_window(ada, window="PT30S")
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


SOON = timedelta(hours=1)
DELETED_RESTORE = """mutation ($ids: [ID!]!) {
  deletedMessageRestore(input: {select: {ids: $ids}}) { errors { code } } }"""
PERIOD_RESTORE = """mutation { deletedMessageRestore(input: {select: {period: {
  since: "2029-01-01T00:00:00Z", before: "2031-01-01T00:00:00Z"}}}) { errors { code } } }"""


async def send_soon(client: GraphQLClient, clock: ManualClock) -> str:
    """Schedule a message in an hour and return the ID of its copy."""
    sent = await send_with_undo_window(client, later=(clock() + SOON).isoformat())
    return str(sent["messages"][0]["id"])


@pytest.mark.parametrize("way", ["restore", "restore of a period", "undo"])
@pytest.mark.parametrize("is_held", [True, False])
async def test_restored_message_returns_to_scheduled_only_while_held(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, way: str, is_held: bool
) -> None:
    set_options(environment, undo_window=timedelta(days=1))
    message_id = await send_soon(ada, clock)
    deletion = await run_message_mutation(ada, "messageDelete", select={"ids": [message_id]})
    assert await load_placements(ada) == {}
    if not is_held:
        clock.tick(hours=2)
        await recipient_leases.release_held_and_claim_due_jobs(environment, QueueLimits())
        assert await load_submission_states(environment) == [SubmissionState.CANCELLED]
    if way == "undo":
        assert (await undo_mutation(ada, deletion))["errors"] == []
    elif way == "restore":
        document = "{ viewer { user { deletedMessages { nodes { id } } } } }"
        nodes = (await ada(document))["viewer"]["user"]["deletedMessages"]["nodes"]
        restored = await ada(DELETED_RESTORE, ids=[node["id"] for node in nodes])
        assert restored["deletedMessageRestore"]["errors"] == []
    else:
        assert (await ada(PERIOD_RESTORE))["deletedMessageRestore"]["errors"] == []
        while await tasks.run_next_task(environment):
            pass
    expected = "SCHEDULED" if is_held else "INBOX"
    assert await load_placements(ada) == {message_id: (expected, False)}
    clock.tick(hours=2)
    await recipient_leases.release_held_and_claim_due_jobs(environment, QueueLimits())
    expected = "SENT" if is_held else "INBOX"
    assert await load_placements(ada) == {message_id: (expected, False)}


@pytest.mark.parametrize("way", ["undo of a move", "end of a snooze", "snooze time"])
@pytest.mark.parametrize("is_held", [True, False])
async def test_moved_message_returns_to_scheduled_only_while_held(
    ada: GraphQLClient, environment: Environment, clock: ManualClock, way: str, is_held: bool
) -> None:
    set_options(environment, undo_window=timedelta(days=1))
    message_id = await send_soon(ada, clock)
    selection: dict[str, Any] = {"select": {"ids": [message_id]}}
    until = (clock() + SOON / 2).isoformat()
    move = (
        await run_message_mutation(ada, "messageMove", **selection, to={"specialUse": "JUNK"})
        if way == "undo of a move"
        else await run_message_mutation(
            ada, "messageUpdate", **selection, set={"snoozedUntil": until}
        )
    )
    assert move["errors"] == []
    clock.tick(minutes=45 if is_held else 75)
    await recipient_leases.release_held_and_claim_due_jobs(environment, QueueLimits())
    if way == "undo of a move":
        assert (await undo_mutation(ada, move))["errors"] == []
    elif way == "end of a snooze":
        await run_message_mutation(ada, "messageUpdate", **selection, set={"snoozedUntil": None})
    else:
        assert await snooze_worker.unsnooze_due_messages(environment) == 1
    expected = "SCHEDULED" if is_held else "INBOX"
    assert await load_placements(ada) == {message_id: (expected, False)}


@pytest.mark.parametrize("keeps_sent_mailbox", [False, True])
async def test_message_and_its_copy_are_sent_after_every_kind_of_hold(
    root: GraphQLClient,
    ada: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
    keeps_sent_mailbox: bool,
) -> None:
    """Copies with `sent_mailbox_id` were written by earlier releases."""
    await create_bcc_rule(root, "@example.org", ARCHIVE, "SENDER")
    soon, later = clock() + timedelta(hours=1), clock() + timedelta(days=30)
    kinds: dict[str, dict[str, Any]] = {
        "now": {},
        "undo": {"undo_window": timedelta(seconds=30)},
        "scheduled": {"send_at": soon},
        "rescheduled": {"send_at": later},
        "deleted": {"send_at": soon},
    }
    id_by_kind = {
        kind: await queue_message(ada, NamedAddress(f"{kind}@example.net"), **fields)
        for kind, fields in kinds.items()
    }
    copies = await select_rows(
        environment,
        "SELECT id FROM submissions WHERE copy_of IS NOT NULL"
        " AND (sent_mailbox_id IS NOT NULL OR message_id IS NOT NULL)",
    )
    assert copies == []
    if keeps_sent_mailbox:
        originals = select(col(Submission.sent_mailbox_id)).where(
            col(Submission.id) == id_by_kind["scheduled"]
        )
        statement = update(Submission).where(col(Submission.copy_of).is_not(None))
        await environment.run_transaction(
            lambda transaction: transaction.connection.execute(
                statement.values(sent_mailbox_id=originals.scalar_subquery())
            )
        )
    await submission_mutations.reschedule_submissions(
        client_context(ada), [id_by_kind["rescheduled"]], clock()
    )
    await delete_scheduled_copy(ada, id_by_kind["deleted"])
    clock.tick(hours=2)
    async with (
        run_smtp_server(FakeSmtpServer()) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):

        async def are_all_entries_final() -> bool:
            statement = select(col(QueueEntry.state)).where(col(QueueEntry.state).in_(OPEN_STATES))
            return not await environment.database.read(statement)

        await poll_until(are_all_entries_final)
    sent = [recipient for mail in smtp_server.messages for recipient in mail.to]
    expected = [f"{kind}@example.net" for kind in kinds if kind != "deleted"]
    assert sorted(sent) == sorted([*expected, *[ARCHIVE] * len(expected)])
    await assert_store_consistent(environment)


async def delete_scheduled_copy(client: GraphQLClient, submission_id: int) -> None:
    """Delete the copy of a submission permanently."""
    ((message_id,),) = await select_rows(
        client.environment, "SELECT message_id FROM submissions WHERE id = :k", k=submission_id
    )
    payload = await run_mailbox_mutation(
        client,
        "messageDelete",
        "task { id }",
        select={"ids": [global_ids.encode("Message", message_id)]},
        permanent=True,
    )
    assert payload["errors"] == []


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
    scheduled = await send_with_undo_window(ada, later=LATER)
    held_sent = await send_with_undo_window(ada, window="PT30S")
    queued = None
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
