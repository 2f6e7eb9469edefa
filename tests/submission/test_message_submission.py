"""Test sending of messages: storage, queue entries, refusals, cancellation and replies."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from graph.types import global_ids
from mail.compose.message_draft import CustomHeader, OutgoingFile
from mail.envelope.delivery_jobs import QueueLimits
from mail.mime.header_encoding import NamedAddress
from mail.queue import recipient_leases
from models.errors import (
    Conflict,
    ErrorCollector,
    Forbidden,
    InvalidInput,
    NotFound,
)
from models.events import wakeups
from models.events.journal import Change
from models.events.wakeups import QUEUE
from models.files.blobs import SubmissionBlob
from models.messages.tables import Message
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.store.keyset_pages import PageRequest
from models.submission.tables import Submission, SubmissionState
from models.users.tables import User
from models.warning_codes import WarningCode
from resolvers.context import Context
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.delete import MailboxDeletion
from resolvers.submission import composition
from resolvers.submission import create as submission_create
from resolvers.submission import loaders as submission_loaders
from resolvers.submission import mutations as submission_mutations
from resolvers.submission.create import EnvelopeOverride, SentMessage
from resolvers.submission.loaders import SubmissionOrder, SubmissionPageKey
from resolvers.submission.outgoing_messages import compose_messages_of_request
from resolvers.submission.prepared_messages import NO_FOLDER_WARNING
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.case_loop import each_case
from tests.support.operations.send_operations import (
    OUTSIDE_RECIPIENT,
    SHORT_MESSAGE,
    send_outgoing_message,
)


async def load_queue_entries(client: GraphQLClient, sent: SentMessage) -> list[ColumnRow]:
    assert sent.submission is not None
    (rows,) = await submission_loaders.load_visible_queue_entries_by_submission(
        client_context(client), [sent.submission.id]
    )
    return rows


async def count_rows(environment: Environment, table: Any) -> int:
    (row,) = await environment.database.read(select(func.count().label("many")).select_from(table))
    return int(row.many)


async def test_sent_message_is_stored_and_queued(
    ada: GraphQLClient, environment: Environment
) -> None:
    sent = await send_outgoing_message(
        ada, bcc=[NamedAddress("eve@example.net")], cc=[NamedAddress("Carol@Example.NET")]
    )
    assert sent.submission is not None
    assert sent.message is not None
    assert (sent.submission.state, sent.submission.envelope_from) == (
        SubmissionState.QUEUED,
        "ada@example.org",
    )
    assert sent.submission.message_id == sent.message.id
    assert (sent.message.mailbox_id, sent.message.seen) == (
        (await ada.load_mailbox("Sent")).id,
        True,
    )
    assert [address for _, address in sent.message.bcc] == ["eve@example.net"]
    assert sent.message.envelope_to == ["carol@example.net", "eve@example.net"]
    rows = await load_queue_entries(ada, sent)
    assert [(row.recipient, row.domain, row.state, row.next_at) for row in rows] == [
        ("carol@example.net", "example.net", DeliveryState.PENDING, environment.now()),
        ("eve@example.net", "example.net", DeliveryState.PENDING, environment.now()),
    ]
    assert {row.expires_at for row in rows} == {environment.now() + timedelta(days=5)}
    assert sent.warnings == ()


async def test_submission_references_all_its_blobs(
    ada: GraphQLClient, environment: Environment
) -> None:
    attachment = OutgoingFile(environment.random_bytes(5000), "big.bin")
    sent = await send_outgoing_message(ada, attachments=[attachment])
    assert sent.submission is not None
    query = select(col(SubmissionBlob.blob_id)).where(
        col(SubmissionBlob.submission_id) == sent.submission.id
    )
    blobs = {row.blob_id for row in await environment.database.read(query)}
    assert sent.submission.blob_id in blobs
    assert len(blobs) == 2


async def test_queue_wakeup_follows_stored_submission_only(
    ada: GraphQLClient, environment: Environment
) -> None:
    with environment.wakeups.follow([QUEUE]) as wakeup:
        with pytest.raises(InvalidInput):
            await send_outgoing_message(ada, to=[])
        assert not wakeup.is_set()
        await send_outgoing_message(ada)
        assert wakeup.is_set()


async def test_scheduled_submission_sends_no_wakeup(
    ada: GraphQLClient, environment: Environment
) -> None:
    with environment.wakeups.follow([QUEUE]) as wakeup:
        await send_outgoing_message(ada, send_at=environment.now() + timedelta(hours=1))
        assert not wakeup.is_set()
        await send_outgoing_message(ada, send_at=environment.now() + timedelta(seconds=5))
        assert wakeup.is_set()


def test_wakeup_streams_are_distinct() -> None:
    streams = [value for value in vars(wakeups).values() if isinstance(value, int) and value < 0]
    assert len(set(streams)) == len(streams) > 7


async def test_message_is_sent_without_copy_if_mailbox_was_deleted(
    ada: GraphQLClient, environment: Environment
) -> None:
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Brief"]))
    ctx, selector = client_context(ada), mailbox_loaders.MailboxSelector(path="Brief")
    account = await composition.read_account(ctx, ada.user.id)
    outgoing = replace(SHORT_MESSAGE, mailbox=selector)
    # The mailbox is looked up here.
    batch = await compose_messages_of_request(ctx, account, outgoing, ErrorCollector())
    await mailbox_delete.delete_mailboxes(client_context(ada), MailboxDeletion([selector]))
    (stored,) = await submission_create.scan_and_queue_messages_with_copies(
        ctx, account, batch.messages
    )
    assert (stored.message_id, stored.no_copy_reason) == (None, NO_FOLDER_WARNING)
    assert stored.submission_id is not None
    (user,) = await environment.database.read(
        select(col(User.used), col(User.message_count)).where(col(User.id) == ada.user.id)
    )
    assert tuple(user) == (0, 0)
    query = select(col(Change.last), col(Change.ids)).where(col(Change.stream_id) == ada.user.id)
    changes = await environment.database.read(query)
    # the journal has no gaps
    assert sum(len(row.ids) for row in changes) == max(row.last for row in changes)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"from_": NamedAddress("bob@example.org")}, ["from"]),
        ({"from_": NamedAddress("nobody@example.org")}, ["from"]),
        ({"from_": NamedAddress("ada@example.com")}, ["from"]),
        ({"envelope": EnvelopeOverride("bob@example.org")}, ["envelope", "from"]),
    ],
)
async def test_send_with_foreign_sender_is_forbidden(
    ada: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    changes: dict[str, Any],
    path: list[str],
) -> None:
    assert bob.address == "bob@example.org"
    with pytest.raises(Forbidden) as raised:
        await send_outgoing_message(ada, **changes)
    assert (raised.value.path, raised.value.requires) == (path, None)
    assert (await count_rows(environment, Submission), await count_rows(environment, Message)) == (
        0,
        0,
    )


async def test_own_address_in_any_spelling_is_accepted(ada: GraphQLClient) -> None:
    sent = await send_outgoing_message(ada, from_=NamedAddress("A.da+news@EXAMPLE.org", "Ada"))
    assert sent.message is not None
    assert (sent.message.from_name, sent.message.from_address) == ("Ada", "A.da+news@example.org")


@pytest.mark.parametrize("change", [{"active": False}, {"suspended": True}])
async def test_inactive_or_suspended_account_cannot_send(
    ada: GraphQLClient, environment: Environment, change: dict[str, bool]
) -> None:
    async with environment.write_session(ada.user.id) as session:
        user_update = update(User).where(col(User.id) == ada.user.id).values(change)
        await session.exec(user_update)
    with pytest.raises(Forbidden):
        await send_outgoing_message(ada)
    assert await count_rows(environment, Submission) == 0


INVALID_FIELDS: list[tuple[dict[str, Any], list[str], int | None]] = [
    ({"to": [], "cc": [], "bcc": []}, ["to"], None),
    ({"to": [OUTSIDE_RECIPIENT, NamedAddress("x@y\r\nDATA")]}, ["to"], 1),
    (
        {"envelope": EnvelopeOverride(recipients=["a@example.net", "a b@example.net"])},
        ["envelope", "to"],
        1,
    ),
    ({"envelope": EnvelopeOverride("a b@example.org")}, ["envelope", "from"], None),
    ({"envelope": EnvelopeOverride(recipients=[])}, ["envelope", "to"], None),
    ({"headers": [CustomHeader("Bcc", "x")]}, ["headers", "0", "name"], None),
    ({"undo_window": timedelta(days=2)}, ["undoWindow"], None),
]


async def test_invalid_send_reports_field_and_stores_nothing(
    ada: GraphQLClient, environment: Environment
) -> None:
    for case in each_case(INVALID_FIELDS):
        with case as (changes, path, index):
            with pytest.raises(InvalidInput) as raised:
                await send_outgoing_message(ada, **changes)
            assert (raised.value.path, raised.value.index) == (path, index)
            assert (
                await count_rows(environment, Submission),
                await count_rows(environment, Message),
            ) == (
                0,
                0,
            )


async def test_envelope_can_differ_from_header(ada: GraphQLClient) -> None:
    sent = await send_outgoing_message(
        ada, envelope=EnvelopeOverride("ada+bounces@example.org", ["zoe@bücher.example"])
    )
    assert sent.submission is not None
    assert sent.submission.envelope_from == "ada+bounces@example.org"
    assert [row.domain for row in await load_queue_entries(ada, sent)] == ["bücher.example"]


async def test_message_over_quota_is_sent_without_copy(
    ada: GraphQLClient, environment: Environment
) -> None:
    await fill_quota(ada)
    sent = await send_outgoing_message(ada)
    assert (sent.message, [code for code, _ in sent.warnings]) == (
        None,
        [WarningCode.NOT_SAVED_TO_SENT],
    )
    assert len(await load_queue_entries(ada, sent)) == 1
    query = select(col(Change.last), col(Change.ids)).where(col(Change.stream_id) == ada.user.id)
    changes = await environment.database.read(query)
    # the journal has no gaps
    assert sum(len(row.ids) for row in changes) == max(row.last for row in changes)


async def fill_quota(client: GraphQLClient) -> None:
    async with client.environment.write_session(client.user.id) as session:
        user_update = update(User).where(col(User.id) == client.user.id).values(quota=10)
        await session.exec(user_update)


async def test_sent_copy_is_stored_in_given_mailbox(ada: GraphQLClient, bob: GraphQLClient) -> None:
    sent = await send_outgoing_message(ada, mailbox=mailbox_loaders.MailboxSelector(path="INBOX"))
    assert sent.message is not None
    assert sent.message.mailbox_id == (await ada.load_mailbox()).id
    with pytest.raises(NotFound) as raised:
        await send_outgoing_message(
            ada, mailbox=mailbox_loaders.MailboxSelector(id=(await bob.load_mailbox()).id)
        )
    assert raised.value.path == ["mailbox"]


async def test_scheduled_message_is_due_at_send_at(ada: GraphQLClient, clock: ManualClock) -> None:
    send_at = clock() + timedelta(hours=1)
    sent = await send_outgoing_message(ada, send_at=send_at)
    assert sent.submission is not None
    assert sent.message is not None
    assert (sent.submission.state, sent.message.date) == (SubmissionState.SCHEDULED, send_at)
    assert await claim_due_recipients(ada) == 0
    clock.tick(hours=1)
    assert await claim_due_recipients(ada) == 1


async def test_past_send_at_queues_immediately(ada: GraphQLClient, clock: ManualClock) -> None:
    sent = await send_outgoing_message(ada, send_at=clock() - timedelta(hours=1))
    assert sent.submission is not None
    assert (sent.submission.state, sent.submission.send_at) == (SubmissionState.QUEUED, None)


async def claim_due_recipients(client: GraphQLClient) -> int:
    return (
        await recipient_leases.release_held_and_claim_due_jobs(client.environment, QueueLimits())
    ).recipient_count


async def test_held_submission_can_be_cancelled(ada: GraphQLClient, clock: ManualClock) -> None:
    sent = await send_outgoing_message(ada, undo_window=timedelta(seconds=30))
    assert sent.submission is not None
    assert sent.submission.state is SubmissionState.UNDOABLE
    assert sent.submission.undoable_until == clock() + timedelta(seconds=30)
    ctx = client_context(ada)
    (row,) = await submission_mutations.cancel_submissions(ctx, [sent.submission.id])
    assert row.state is SubmissionState.CANCELLED
    assert {row.state for row in await load_queue_entries(ada, sent)} == {DeliveryState.CANCELLED}
    clock.tick(minutes=1)
    assert await claim_due_recipients(ada) == 0
    with pytest.raises(Conflict):
        await submission_mutations.cancel_submissions(ctx, [sent.submission.id])


async def test_cancel_of_leased_submission_is_refused(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    first = (await send_outgoing_message(ada)).submission
    second = (await send_outgoing_message(ada, send_at=one_hour_later(clock))).submission
    assert first is not None
    assert second is not None
    assert await claim_due_recipients(ada) == 1
    with pytest.raises(Conflict) as raised:
        await submission_mutations.cancel_submissions(client_context(ada), [second.id, first.id])
    assert raised.value.path == ["submissions", "1"]
    (reloaded,) = await submission_loaders.load_own_submissions_by_id(
        client_context(ada), [second.id]
    )
    assert reloaded is not None
    assert reloaded.state is SubmissionState.SCHEDULED  # none was cancelled


def one_hour_later(clock: ManualClock) -> Any:
    return clock() + timedelta(hours=1)


async def test_submission_of_another_user_is_hidden(ada: GraphQLClient, bob: GraphQLClient) -> None:
    sent = (await send_outgoing_message(ada)).submission
    assert sent is not None
    ctx = client_context(bob)
    assert await submission_loaders.load_own_submissions_by_id(ctx, [sent.id]) == [None]
    assert await submission_loaders.load_own_submissions_by_queue_id(ctx, [sent.queue_id]) == [None]
    assert await submission_loaders.load_visible_queue_entries_by_submission(ctx, [sent.id]) == [[]]
    with pytest.raises(NotFound):
        await submission_mutations.cancel_submissions(ctx, [sent.id])
    (own_submission,) = await submission_loaders.load_own_submissions_by_queue_id(
        client_context(ada), [sent.queue_id]
    )
    assert own_submission is not None
    assert own_submission.id == sent.id


async def test_submissions_are_listed_by_state_and_order(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    submission_ids = []
    for _ in range(3):
        sent = (await send_outgoing_message(ada, send_at=one_hour_later(clock))).submission
        assert sent is not None
        submission_ids.append(sent.id)
        clock.tick(seconds=1)
    ctx = client_context(ada)
    await submission_mutations.cancel_submissions(ctx, [submission_ids[1]])

    def page_key(
        *states: SubmissionState,
        count: int = 20,
        order: SubmissionOrder = SubmissionOrder.CREATED_AT_DESC,
    ) -> SubmissionPageKey:
        page_request, list_order = PageRequest("", count), submission_loaders.LIST_ORDERS[order]
        return SubmissionPageKey(
            ada.user.id, page_request, list_order, frozenset({"id"}), frozenset(states) or None
        )

    async def load_page(*states: SubmissionState, **options: Any) -> tuple[list[int], bool]:
        keys = [page_key(*states, **options)]
        (page,) = await submission_loaders.load_visible_submission_pages(ctx, keys)
        return [row.id for row in page.rows], page.has_next

    assert await load_page() == (submission_ids[::-1], False)
    assert await load_page(count=2) == ([submission_ids[2], submission_ids[1]], True)
    assert await load_page(SubmissionState.CANCELLED) == ([submission_ids[1]], False)
    assert await load_page(order=SubmissionOrder.CREATED_AT_ASC) == (submission_ids, False)
    scheduled = page_key(SubmissionState.SCHEDULED)
    assert await submission_loaders.count_visible_submissions(ctx, [scheduled]) == [2]
    document = """query ($filter: SubmissionFilter) { viewer { user {
      submissions(filter: $filter, orderBy: CREATED_AT_ASC) { totalCount nodes { id } } } } }"""
    for filter_, numbers in (
        ({"states": ["SCHEDULED"]}, [0, 2]),
        ({"states": ["CANCELLED"]}, [1]),
        ({"states": []}, []),
        (None, [0, 1, 2]),
    ):
        page = (await ada(document, filter=filter_))["viewer"]["user"]["submissions"]
        expected = [{"id": global_ids.encode("Submission", submission_ids[n])} for n in numbers]
        assert page == {"totalCount": len(numbers), "nodes": expected}


async def test_rolled_back_send_stores_nothing(
    ada: GraphQLClient, environment: Environment
) -> None:
    ctx = client_context(ada)
    async with ctx.combined_transaction(commit=False):
        sent = await submission_create.compose_and_queue_message(ctx, SHORT_MESSAGE)
        assert sent.submission is not None
    assert (await count_rows(environment, Submission), await count_rows(environment, Message)) == (
        0,
        0,
    )


async def test_copy_and_queue_entries_are_one_transaction(
    ada: GraphQLClient, environment: Environment
) -> None:
    def failing_random_bytes(count: int) -> bytes:
        if count == 10:  # the random part of the queue ID, made after the copy is stored
            raise OSError("no randomness")
        return environment.random_bytes(count)

    before = await count_rows(environment, Change)
    with pytest.raises(OSError, match="no randomness"):
        await submission_create.compose_and_queue_message(
            Context(
                replace(environment, random_bytes=failing_random_bytes), client_context(ada).viewer
            ),
            SHORT_MESSAGE,
        )
    assert (await count_rows(environment, Change), await count_rows(environment, Message)) == (
        before,
        0,
    )
