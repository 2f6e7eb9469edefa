"""Handing messages in: what is stored, what is refused, what can be taken back."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from mail.compose.message_builder import CustomHeader, OutgoingFile
from mail.envelope.delivery_jobs import QueueLimits
from mail.mime.header_encoding import NamedAddress
from mail.queue import recipient_leases
from models.errors import (
    Conflict,
    ErrorCollector,
    Forbidden,
    InvalidInput,
    NotFound,
    OverQuota,
    RequestError,
)
from models.events import wakeups
from models.events.journal import Change
from models.events.wakeups import QUEUE
from models.files.blobs import SubmissionBlob
from models.messages.tables import Message
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import PageRequest
from models.submission.tables import Submission, SubmissionState
from models.users.tables import User
from resolvers.context import Context
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.delete import MailboxDeletion
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.submission import composition
from resolvers.submission import create as submission_create
from resolvers.submission import mutations as submission_mutations
from resolvers.submission.create import (
    NOT_SAVED_TO_SENT,
    EnvelopeOverride,
    SendRequest,
    SentMessage,
    SubmissionPageKey,
)
from resolvers.submission.outgoing_messages import compose_messages
from resolvers.submission.reply_references import Reference, ReferenceAction
from tests.conftest import Client, Clock, context, raw_message, receive
from tests.support.operations.send_operations import (
    OUTSIDE_RECIPIENT,
    SHORT_MESSAGE,
    send_outgoing_message,
)


async def recipients(client: Client, sent: SentMessage) -> list[ColumnRow]:
    assert sent.submission is not None
    (rows,) = await submission_create.load_queue_entries_by_submission(
        context(client), [sent.submission.id]
    )
    return rows


async def message(client: Client, key: int) -> ColumnRow:
    asked = select(*select_columns(Message)).where(col(Message.id) == key)
    (row,) = await client.world.database.read(asked)
    return row


async def many(world: Environment, table: Any) -> int:
    (row,) = await world.database.read(select(func.count().label("many")).select_from(table))
    return int(row.many)


def addresses(pairs: Sequence[Sequence[str | None]]) -> list[str | None]:
    return [address for _, address in pairs]


async def test_a_message_is_stored_and_queued(ada: Client, world: Environment) -> None:
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
    assert (sent.message.mailbox_id, sent.message.seen) == ((await ada.box("Sent")).id, True)
    assert addresses(sent.message.bcc) == ["eve@example.net"]
    assert sent.message.envelope_to == ["carol@example.net", "eve@example.net"]
    rows = await recipients(ada, sent)
    assert [(row.recipient, row.domain, row.state, row.next_at) for row in rows] == [
        ("carol@example.net", "example.net", DeliveryState.PENDING, world.now()),
        ("eve@example.net", "example.net", DeliveryState.PENDING, world.now()),
    ]
    assert {row.expires_at for row in rows} == {world.now() + timedelta(days=5)}
    assert sent.warnings == ()


async def test_the_queue_keeps_all_blobs_it_needs(ada: Client, world: Environment) -> None:
    big = OutgoingFile(world.random_bytes(5000), "big.bin")
    sent = await send_outgoing_message(ada, attachments=[big])
    assert sent.submission is not None
    asked = select(col(SubmissionBlob.blob_id)).where(
        col(SubmissionBlob.submission_id) == sent.submission.id
    )
    blobs = {row.blob_id for row in await world.database.read(asked)}
    assert sent.submission.blob_id in blobs
    assert len(blobs) == 2


async def test_the_bell_rings_when_a_unit_is_stored_and_not_when_it_is_refused(
    ada: Client, world: Environment
) -> None:
    with world.wakeups.follow([QUEUE]) as bell:
        with pytest.raises(InvalidInput):
            await send_outgoing_message(ada, to=[])
        assert not bell.is_set()
        await send_outgoing_message(ada)
        assert bell.is_set()


async def test_what_is_to_wait_rings_no_bell(ada: Client, world: Environment) -> None:
    with world.wakeups.follow([QUEUE]) as bell:
        await send_outgoing_message(ada, send_time=world.now() + timedelta(hours=1))
        assert not bell.is_set()
        await send_outgoing_message(ada, send_time=world.now() + timedelta(seconds=5))
        assert bell.is_set()


def test_no_two_bells_are_the_same() -> None:
    bells = [value for value in vars(wakeups).values() if isinstance(value, int) and value < 0]
    assert len(set(bells)) == len(bells) > 7


async def test_where_the_folder_has_gone_meanwhile_it_is_sent_and_nothing_is_counted(
    ada: Client, world: Environment
) -> None:
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Brief"]))
    ctx, name = context(ada), mailbox_loaders.MailboxSelector(path="Brief")
    account = await composition.read_account(ctx, ada.user.id)
    outgoing = replace(SHORT_MESSAGE, mailbox=name)
    batch = await compose_messages(
        ctx, account, outgoing, ErrorCollector()
    )  # the folder is looked up
    await mailbox_delete.delete_mailboxes(context(ada), MailboxDeletion([name]))
    (done,) = await submission_create.store_submissions(ctx, account, batch.messages)
    assert (done.message_id, done.no_copy_reason) == (None, submission_create.NO_FOLDER_WARNING)
    assert done.submission_id is not None
    (user,) = await world.database.read(
        select(col(User.used), col(User.message_count)).where(col(User.id) == ada.user.id)
    )
    assert tuple(user) == (0, 0)
    asked = select(col(Change.last), col(Change.ids)).where(col(Change.stream_id) == ada.user.id)
    changes = await world.database.read(asked)
    assert sum(len(row.ids) for row in changes) == max(row.last for row in changes)  # no gaps
    alone = replace(batch.messages[0], request=replace(outgoing, upload_only=True))
    with pytest.raises(NotFound):
        await submission_create.store_submissions(ctx, account, [alone])


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"from_": NamedAddress("bob@example.org")}, ["from"]),
        ({"from_": NamedAddress("nobody@example.org")}, ["from"]),
        ({"from_": NamedAddress("ada@example.com")}, ["from"]),
        ({"envelope": EnvelopeOverride("bob@example.org")}, ["envelope", "from"]),
        ({"is_draft": True, "from_": NamedAddress("bob@example.org")}, ["from"]),
    ],
)
async def test_nobody_sends_as_somebody_else(
    ada: Client, bob: Client, world: Environment, changes: dict[str, Any], path: list[str]
) -> None:
    assert bob.address == "bob@example.org"
    with pytest.raises(Forbidden) as refused:
        await send_outgoing_message(ada, **changes)
    assert (refused.value.path, refused.value.requires) == (path, None)
    assert (await many(world, Submission), await many(world, Message)) == (0, 0)


async def test_any_spelling_of_ones_own_address_will_do(ada: Client) -> None:
    sent = await send_outgoing_message(ada, from_=NamedAddress("A.da+news@EXAMPLE.org", "Ada"))
    assert sent.message is not None
    assert (sent.message.from_name, sent.message.from_address) == ("Ada", "A.da+news@example.org")


@pytest.mark.parametrize("column", ["disabled", "suspended"])
async def test_an_account_that_is_shut_sends_nothing(
    ada: Client, world: Environment, column: str
) -> None:
    async with world.write_session(ada.user.id) as session:
        shut = update(User).where(col(User.id) == ada.user.id).values(**{column: True})
        await session.exec(shut)
    with pytest.raises(Forbidden):
        await send_outgoing_message(ada)
    assert await many(world, Submission) == 0


@pytest.mark.parametrize(
    ("changes", "path", "index"),
    [
        ({"to": [], "cc": [], "bcc": []}, ["to"], None),
        ({"to": [OUTSIDE_RECIPIENT, NamedAddress("x@y\r\nDATA")]}, ["to"], 1),
        (
            {"envelope": EnvelopeOverride(recipients=["a@example.net", "a b@example.net"])},
            ["envelope"],
            1,
        ),
        ({"headers": [CustomHeader("Bcc", "x")]}, ["headers", "0", "key"], None),
        ({"undo_window": timedelta(days=2)}, ["undoWindow"], None),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_stored(
    ada: Client, world: Environment, changes: dict[str, Any], path: list[str], index: int | None
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await send_outgoing_message(ada, **changes)
    assert (refused.value.path, refused.value.index) == (path, index)
    assert (await many(world, Submission), await many(world, Message)) == (0, 0)


async def test_the_envelope_may_name_others_than_the_header(ada: Client) -> None:
    sent = await send_outgoing_message(
        ada, envelope=EnvelopeOverride("ada+bounces@example.org", ["zoe@bücher.example"])
    )
    assert sent.submission is not None
    assert sent.submission.envelope_from == "ada+bounces@example.org"
    assert [row.domain for row in await recipients(ada, sent)] == ["bücher.example"]


async def test_over_quota_it_is_sent_but_not_kept(ada: Client, world: Environment) -> None:
    await _fill(ada)
    sent = await send_outgoing_message(ada)
    assert (sent.message, [code for code, _ in sent.warnings]) == (None, [NOT_SAVED_TO_SENT])
    assert len(await recipients(ada, sent)) == 1
    asked = select(col(Change.last), col(Change.ids)).where(col(Change.stream_id) == ada.user.id)
    changes = await world.database.read(asked)
    assert sum(len(row.ids) for row in changes) == max(row.last for row in changes)  # no gaps
    with pytest.raises(OverQuota):
        await send_outgoing_message(ada, upload_only=True)


async def _fill(client: Client) -> None:
    async with client.world.write_session(client.user.id) as session:
        full = update(User).where(col(User.id) == client.user.id).values(quota=10)
        await session.exec(full)


async def test_a_draft_is_stored_and_goes_nowhere(ada: Client, world: Environment) -> None:
    sent = await send_outgoing_message(ada, is_draft=True, to=[])
    assert sent.message is not None
    assert (sent.submission, sent.message.draft) == (None, True)
    assert sent.message.mailbox_id == (await ada.box("Drafts")).id
    assert await many(world, Submission) == 0


async def test_a_copy_goes_where_it_is_told(ada: Client, bob: Client) -> None:
    sent = await send_outgoing_message(ada, mailbox=mailbox_loaders.MailboxSelector(path="INBOX"))
    assert sent.message is not None
    assert sent.message.mailbox_id == (await ada.box()).id
    with pytest.raises(NotFound) as refused:
        await send_outgoing_message(
            ada, mailbox=mailbox_loaders.MailboxSelector(id=(await bob.box()).id)
        )
    assert refused.value.path == ["mailbox"]


async def test_later_is_later(ada: Client, clock: Clock) -> None:
    at = clock() + timedelta(hours=1)
    sent = await send_outgoing_message(ada, send_time=at)
    assert sent.submission is not None
    assert sent.message is not None
    assert (sent.submission.state, sent.message.date) == (SubmissionState.SCHEDULED, at)
    assert await _due(ada) == 0
    clock.tick(hours=1)
    assert await _due(ada) == 1


async def test_a_time_that_is_over_means_now(ada: Client, clock: Clock) -> None:
    sent = await send_outgoing_message(ada, send_time=clock() - timedelta(hours=1))
    assert sent.submission is not None
    assert (sent.submission.state, sent.submission.send_time) == (SubmissionState.QUEUED, None)


async def _due(client: Client) -> int:
    return (await recipient_leases.claim_due_jobs(client.world, QueueLimits())).recipient_count


async def test_what_is_held_can_be_taken_back(ada: Client, clock: Clock) -> None:
    sent = await send_outgoing_message(ada, undo_window=timedelta(seconds=30))
    assert sent.submission is not None
    assert sent.submission.state is SubmissionState.HELD_FOR_UNDO
    assert sent.submission.undo_until == clock() + timedelta(seconds=30)
    ctx = context(ada)
    (row,) = await submission_mutations.cancel_submissions(ctx, [sent.submission.id])
    assert row.state is SubmissionState.CANCELLED
    assert {row.state for row in await recipients(ada, sent)} == {DeliveryState.CANCELLED}
    clock.tick(minutes=1)
    assert await _due(ada) == 0
    with pytest.raises(Conflict):
        await submission_mutations.cancel_submissions(ctx, [sent.submission.id])


async def test_what_is_being_sent_is_not_taken_back(ada: Client, clock: Clock) -> None:
    first, second = (
        (await send_outgoing_message(ada)).submission,
        (await send_outgoing_message(ada, send_time=_hour(clock))).submission,
    )
    assert first is not None
    assert second is not None
    assert await _due(ada) == 1
    with pytest.raises(Conflict) as refused:
        await submission_mutations.cancel_submissions(context(ada), [second.id, first.id])
    assert refused.value.index == 1
    (again,) = await submission_create.load_submissions_by_id(context(ada), [second.id])
    assert again is not None
    assert again.state is SubmissionState.SCHEDULED  # all or none


def _hour(clock: Clock) -> Any:
    return clock() + timedelta(hours=1)


async def test_others_see_and_take_back_nothing(ada: Client, bob: Client) -> None:
    sent = (await send_outgoing_message(ada)).submission
    assert sent is not None
    ctx = context(bob)
    assert await submission_create.load_submissions_by_id(ctx, [sent.id]) == [None]
    assert await submission_create.load_submissions_by_queue_id(ctx, [sent.queue_id]) == [None]
    assert await submission_create.load_queue_entries_by_submission(ctx, [sent.id]) == [[]]
    with pytest.raises(NotFound):
        await submission_mutations.cancel_submissions(ctx, [sent.id])
    (own,) = await submission_create.load_submissions_by_queue_id(context(ada), [sent.queue_id])
    assert own is not None
    assert own.id == sent.id


async def test_submissions_are_listed_newest_first(ada: Client, clock: Clock) -> None:
    keys = []
    for _ in range(3):
        sent = (await send_outgoing_message(ada, send_time=_hour(clock))).submission
        assert sent is not None
        keys.append(sent.id)
        clock.tick(seconds=1)
    ctx = context(ada)
    await submission_mutations.cancel_submissions(ctx, [keys[1]])

    async def listed(*states: SubmissionState, count: int = 20) -> tuple[list[int], bool]:
        asked = SubmissionPageKey(
            ada.user.id, PageRequest("", count), frozenset({"id"}), frozenset(states) or None
        )
        (page,) = await submission_create.load_submission_pages(ctx, [asked])
        return [row.id for row in page.rows], page.has_next

    assert await listed() == (keys[::-1], False)
    assert await listed(count=2) == ([keys[2], keys[1]], True)
    assert await listed(SubmissionState.CANCELLED) == ([keys[1]], False)
    narrowed = frozenset({SubmissionState.SCHEDULED})
    scheduled = SubmissionPageKey(ada.user.id, PageRequest(""), frozenset({"id"}), narrowed)
    assert await submission_create.count_submissions(ctx, [scheduled]) == [2]


async def test_a_trial_keeps_nothing(ada: Client, world: Environment) -> None:
    ctx = context(ada)
    async with ctx.combined_transaction(commit=False):
        sent = await submission_create.send_message(ctx, SHORT_MESSAGE)
        assert sent.submission is not None
    assert (await many(world, Submission), await many(world, Message)) == (0, 0)


async def original(client: Client, **headers: str) -> int:
    return (await receive(client, raw_message("Plans", **headers))).message_id


async def answer(client: Client, key: int, action: ReferenceAction, **more: Any) -> ColumnRow:
    outgoing = SendRequest(reference=Reference(key, action), text="Yes.", **more)
    sent = await submission_create.send_message(context(client), outgoing)
    assert sent.message is not None
    return sent.message


async def test_an_answer_goes_to_whoever_wrote(ada: Client) -> None:
    key = await original(ada, References="<0@example.com>")
    first = await message(ada, key)
    reply = await answer(ada, key, ReferenceAction.REPLY)
    assert (reply.subject, reply.to) == ("Re: Plans", [["Carol", "carol@example.com"]])
    assert reply.in_reply_to == first.message_id
    assert reply.references == ["<0@example.com>", first.message_id]
    assert reply.thread_id == first.thread_id
    now = await message(ada, key)
    assert (now.answered, now.keywords, now.modseq > first.modseq) == (True, [], True)


async def test_an_answer_to_all_leaves_oneself_out(ada: Client) -> None:
    key = await original(
        ada,
        Reply_To="list@example.com",
        To="Ada <A.da+x@example.org>, bob@example.org, LIST@example.com",
        Cc="dora@example.com, bob@example.org",
    )
    reply = await answer(ada, key, ReferenceAction.REPLY_ALL, subject="Mine")
    assert addresses(reply.to) == ["list@example.com", "bob@example.org"]
    assert addresses(reply.cc) == ["dora@example.com"]
    assert reply.subject == "Mine"


async def test_an_answer_to_oneself_goes_to_whom_it_went(ada: Client) -> None:
    sent = (await send_outgoing_message(ada)).message
    assert sent is not None
    reply = await answer(ada, sent.id, ReferenceAction.REPLY)
    assert addresses(reply.to) == ["carol@example.net"]


async def test_a_forward_says_so(ada: Client) -> None:
    key = await original(ada)
    forward = await answer(ada, key, ReferenceAction.FORWARD, to=[OUTSIDE_RECIPIENT])
    assert (forward.subject, forward.in_reply_to) == ("Fwd: Plans", None)
    now = await message(ada, key)
    assert (now.answered, now.keywords) == (True, ["$Forwarded"])


async def test_a_prefix_is_not_doubled(ada: Client) -> None:
    key = (await receive(ada, raw_message("AW: Plans"))).message_id
    assert (await answer(ada, key, ReferenceAction.REPLY)).subject == "AW: Plans"


async def test_a_failed_answer_marks_nothing(ada: Client, bob: Client) -> None:
    key = await original(ada)
    for client, more in (
        (ada, {"from_": NamedAddress(bob.address)}),
        (bob, {"to": [OUTSIDE_RECIPIENT]}),
    ):
        with pytest.raises(RequestError):
            await answer(client, key, ReferenceAction.REPLY, **more)
    await answer(ada, key, ReferenceAction.REPLY, is_draft=True)
    assert not (await message(ada, key)).answered


async def test_copy_and_queue_are_one_unit(ada: Client, world: Environment) -> None:
    def failing(count: int) -> bytes:
        if count == 10:  # of the queue id, made when the copy is in its place
            raise OSError("no randomness")
        return world.random_bytes(count)

    before = await many(world, Change)
    with pytest.raises(OSError, match="no randomness"):
        await submission_create.send_message(
            Context(replace(world, random_bytes=failing), context(ada).viewer), SHORT_MESSAGE
        )
    assert (await many(world, Change), await many(world, Message)) == (before, 0)
