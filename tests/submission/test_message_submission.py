"""Handing messages in: what is stored, what is refused, what can be taken back."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import col

from mail.compose.message_builder import Attachment, HeaderLine
from mail.envelope.delivery_jobs import Pace
from mail.mime.header_encoding import Named
from mail.queue import recipient_leases
from models.errors import Conflict, Forbidden, Invalid, NotFound, OverQuota, Problems, Refused
from models.events import wakeups
from models.events.journal import Change
from models.events.wakeups import QUEUE
from models.files.blobs import SubmissionBlob
from models.messages.tables import Message
from models.queue.tables import DeliveryState
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask
from models.submission.tables import Submission, SubmissionState
from models.users.tables import User
from resolvers.context import Context
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.delete import Gone
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.submission import composition
from resolvers.submission import create as submission_create
from resolvers.submission import mutations as submission_mutations
from resolvers.submission.create import SENT_NOT_KEPT, Envelope, OfUser, Outgoing, Sent
from resolvers.submission.outgoing_messages import written
from resolvers.submission.reply_references import Reference, ReferenceAction
from tests.conftest import Client, Clock, context, raw_message, receive

CAROL = Named("carol@example.net", "Carol")
HELLO = Outgoing(to=[CAROL], subject="Hello", text="Hi there.")


async def send(client: Client, outgoing: Outgoing = HELLO, **changes: Any) -> Sent:
    return await submission_create.send(context(client), replace(outgoing, **changes))


async def recipients(client: Client, sent: Sent) -> list[Picked]:
    assert sent.submission is not None
    (rows,) = await submission_create.deliveries_of(context(client), [sent.submission.id])
    return rows


async def message(client: Client, key: int) -> Picked:
    asked = select(*picked(Message)).where(col(Message.id) == key)
    (row,) = await client.world.database.read(asked)
    return row


async def many(world: World, table: Any) -> int:
    (row,) = await world.database.read(select(func.count().label("many")).select_from(table))
    return int(row.many)


def addresses(pairs: Sequence[Sequence[str | None]]) -> list[str | None]:
    return [address for _, address in pairs]


async def test_a_message_is_stored_and_queued(ada: Client, world: World) -> None:
    sent = await send(ada, bcc=[Named("eve@example.net")], cc=[Named("Carol@Example.NET")])
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


async def test_the_queue_keeps_all_blobs_it_needs(ada: Client, world: World) -> None:
    big = Attachment(world.random(5000), "big.bin")
    sent = await send(ada, attachments=[big])
    assert sent.submission is not None
    asked = select(col(SubmissionBlob.blob_id)).where(
        col(SubmissionBlob.submission_id) == sent.submission.id
    )
    blobs = {row.blob_id for row in await world.database.read(asked)}
    assert sent.submission.blob_id in blobs
    assert len(blobs) == 2


async def test_the_bell_rings_when_a_unit_is_stored_and_not_when_it_is_refused(
    ada: Client, world: World
) -> None:
    with world.wakeups.listen([QUEUE]) as bell:
        with pytest.raises(Invalid):
            await send(ada, to=[])
        assert not bell.is_set()
        await send(ada)
        assert bell.is_set()


async def test_what_is_to_wait_rings_no_bell(ada: Client, world: World) -> None:
    with world.wakeups.listen([QUEUE]) as bell:
        await send(ada, send_time=world.now() + timedelta(hours=1))
        assert not bell.is_set()
        await send(ada, send_time=world.now() + timedelta(seconds=5))
        assert bell.is_set()


def test_no_two_bells_are_the_same() -> None:
    bells = [value for value in vars(wakeups).values() if isinstance(value, int) and value < 0]
    assert len(set(bells)) == len(bells) > 7


async def test_where_the_folder_has_gone_meanwhile_it_is_sent_and_nothing_is_counted(
    ada: Client, world: World
) -> None:
    await mailbox_loaders.create(context(ada), NewMailboxes(["Brief"]))
    ctx, name = context(ada), mailbox_loaders.Named(path="Brief")
    account = await composition.account_of(ctx, ada.user.id)
    outgoing = replace(HELLO, mailbox=name)
    batch = await written(ctx, account, outgoing, Problems())  # the folder is looked up
    await mailbox_delete.delete(context(ada), Gone([name]))
    (done,) = await submission_create.store_all(ctx, account, batch.messages)
    assert (done.message_id, done.why) == (None, submission_create.NO_FOLDER)
    assert done.submission_id is not None
    (user,) = await world.database.read(
        select(col(User.used), col(User.message_count)).where(col(User.id) == ada.user.id)
    )
    assert tuple(user) == (0, 0)
    asked = select(col(Change.last), col(Change.ids)).where(col(Change.stream_id) == ada.user.id)
    changes = await world.database.read(asked)
    assert sum(len(row.ids) for row in changes) == max(row.last for row in changes)  # no gaps
    alone = replace(batch.messages[0], outgoing=replace(outgoing, upload_only=True))
    with pytest.raises(NotFound):
        await submission_create.store_all(ctx, account, [alone])


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"from_": Named("bob@example.org")}, ["from"]),
        ({"from_": Named("nobody@example.org")}, ["from"]),
        ({"from_": Named("ada@example.com")}, ["from"]),
        ({"envelope": Envelope("bob@example.org")}, ["envelope", "from"]),
        ({"is_draft": True, "from_": Named("bob@example.org")}, ["from"]),
    ],
)
async def test_nobody_sends_as_somebody_else(
    ada: Client, bob: Client, world: World, changes: dict[str, Any], path: list[str]
) -> None:
    assert bob.address == "bob@example.org"
    with pytest.raises(Forbidden) as refused:
        await send(ada, **changes)
    assert (refused.value.path, refused.value.requires) == (path, None)
    assert (await many(world, Submission), await many(world, Message)) == (0, 0)


async def test_any_spelling_of_ones_own_address_will_do(ada: Client) -> None:
    sent = await send(ada, from_=Named("A.da+news@EXAMPLE.org", "Ada"))
    assert sent.message is not None
    assert (sent.message.from_name, sent.message.from_address) == ("Ada", "A.da+news@example.org")


@pytest.mark.parametrize("column", ["disabled", "suspended"])
async def test_an_account_that_is_shut_sends_nothing(
    ada: Client, world: World, column: str
) -> None:
    async with world.write(ada.user.id) as session:
        shut = update(User).where(col(User.id) == ada.user.id).values(**{column: True})
        await session.exec(shut)
    with pytest.raises(Forbidden):
        await send(ada)
    assert await many(world, Submission) == 0


@pytest.mark.parametrize(
    ("changes", "path", "index"),
    [
        ({"to": [], "cc": [], "bcc": []}, ["to"], None),
        ({"to": [CAROL, Named("x@y\r\nDATA")]}, ["to"], 1),
        ({"envelope": Envelope(to=["a@example.net", "a b@example.net"])}, ["envelope"], 1),
        ({"headers": [HeaderLine("Bcc", "x")]}, ["headers", "0", "key"], None),
        ({"undo_window": timedelta(days=2)}, ["undoWindow"], None),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_stored(
    ada: Client, world: World, changes: dict[str, Any], path: list[str], index: int | None
) -> None:
    with pytest.raises(Invalid) as refused:
        await send(ada, **changes)
    assert (refused.value.path, refused.value.index) == (path, index)
    assert (await many(world, Submission), await many(world, Message)) == (0, 0)


async def test_the_envelope_may_name_others_than_the_header(ada: Client) -> None:
    sent = await send(ada, envelope=Envelope("ada+bounces@example.org", ["zoe@bücher.example"]))
    assert sent.submission is not None
    assert sent.submission.envelope_from == "ada+bounces@example.org"
    assert [row.domain for row in await recipients(ada, sent)] == ["bücher.example"]


async def test_over_quota_it_is_sent_but_not_kept(ada: Client, world: World) -> None:
    await _fill(ada)
    sent = await send(ada)
    assert (sent.message, [code for code, _ in sent.warnings]) == (None, [SENT_NOT_KEPT])
    assert len(await recipients(ada, sent)) == 1
    asked = select(col(Change.last), col(Change.ids)).where(col(Change.stream_id) == ada.user.id)
    changes = await world.database.read(asked)
    assert sum(len(row.ids) for row in changes) == max(row.last for row in changes)  # no gaps
    with pytest.raises(OverQuota):
        await send(ada, upload_only=True)


async def _fill(client: Client) -> None:
    async with client.world.write(client.user.id) as session:
        full = update(User).where(col(User.id) == client.user.id).values(quota=10)
        await session.exec(full)


async def test_a_draft_is_stored_and_goes_nowhere(ada: Client, world: World) -> None:
    sent = await send(ada, is_draft=True, to=[])
    assert sent.message is not None
    assert (sent.submission, sent.message.draft) == (None, True)
    assert sent.message.mailbox_id == (await ada.box("Drafts")).id
    assert await many(world, Submission) == 0


async def test_a_copy_goes_where_it_is_told(ada: Client, bob: Client) -> None:
    sent = await send(ada, mailbox=mailbox_loaders.Named(path="INBOX"))
    assert sent.message is not None
    assert sent.message.mailbox_id == (await ada.box()).id
    with pytest.raises(NotFound) as refused:
        await send(ada, mailbox=mailbox_loaders.Named(id=(await bob.box()).id))
    assert refused.value.path == ["mailbox"]


async def test_later_is_later(ada: Client, clock: Clock) -> None:
    at = clock() + timedelta(hours=1)
    sent = await send(ada, send_time=at)
    assert sent.submission is not None
    assert sent.message is not None
    assert (sent.submission.state, sent.message.date) == (SubmissionState.SCHEDULED, at)
    assert await _due(ada) == 0
    clock.tick(hours=1)
    assert await _due(ada) == 1


async def test_a_time_that_is_over_means_now(ada: Client, clock: Clock) -> None:
    sent = await send(ada, send_time=clock() - timedelta(hours=1))
    assert sent.submission is not None
    assert (sent.submission.state, sent.submission.send_time) == (SubmissionState.QUEUED, None)


async def _due(client: Client) -> int:
    return (await recipient_leases.claim(client.world, Pace())).many


async def test_what_is_held_can_be_taken_back(ada: Client, clock: Clock) -> None:
    sent = await send(ada, undo_window=timedelta(seconds=30))
    assert sent.submission is not None
    assert sent.submission.state is SubmissionState.HELD_FOR_UNDO
    assert sent.submission.undo_until == clock() + timedelta(seconds=30)
    ctx = context(ada)
    (row,) = await submission_mutations.cancel(ctx, [sent.submission.id])
    assert row.state is SubmissionState.CANCELLED
    assert {row.state for row in await recipients(ada, sent)} == {DeliveryState.CANCELLED}
    clock.tick(minutes=1)
    assert await _due(ada) == 0
    with pytest.raises(Conflict):
        await submission_mutations.cancel(ctx, [sent.submission.id])


async def test_what_is_being_sent_is_not_taken_back(ada: Client, clock: Clock) -> None:
    first, second = (
        (await send(ada)).submission,
        (await send(ada, send_time=_hour(clock))).submission,
    )
    assert first is not None
    assert second is not None
    assert await _due(ada) == 1
    with pytest.raises(Conflict) as refused:
        await submission_mutations.cancel(context(ada), [second.id, first.id])
    assert refused.value.index == 1
    (again,) = await submission_create.by_ids(context(ada), [second.id])
    assert again is not None
    assert again.state is SubmissionState.SCHEDULED  # all or none


def _hour(clock: Clock) -> Any:
    return clock() + timedelta(hours=1)


async def test_others_see_and_take_back_nothing(ada: Client, bob: Client) -> None:
    sent = (await send(ada)).submission
    assert sent is not None
    ctx = context(bob)
    assert await submission_create.by_ids(ctx, [sent.id]) == [None]
    assert await submission_create.by_queue_ids(ctx, [sent.queue_id]) == [None]
    assert await submission_create.deliveries_of(ctx, [sent.id]) == [[]]
    with pytest.raises(NotFound):
        await submission_mutations.cancel(ctx, [sent.id])
    (own,) = await submission_create.by_queue_ids(context(ada), [sent.queue_id])
    assert own is not None
    assert own.id == sent.id


async def test_submissions_are_listed_newest_first(ada: Client, clock: Clock) -> None:
    keys = []
    for _ in range(3):
        sent = (await send(ada, send_time=_hour(clock))).submission
        assert sent is not None
        keys.append(sent.id)
        clock.tick(seconds=1)
    ctx = context(ada)
    await submission_mutations.cancel(ctx, [keys[1]])

    async def listed(*states: SubmissionState, count: int = 20) -> tuple[list[int], bool]:
        asked = OfUser(ada.user.id, Ask("", count), frozenset({"id"}), frozenset(states) or None)
        (page,) = await submission_create.pages(ctx, [asked])
        return [row.id for row in page.rows], page.next

    assert await listed() == (keys[::-1], False)
    assert await listed(count=2) == ([keys[2], keys[1]], True)
    assert await listed(SubmissionState.CANCELLED) == ([keys[1]], False)
    narrowed = frozenset({SubmissionState.SCHEDULED})
    scheduled = OfUser(ada.user.id, Ask(""), frozenset({"id"}), narrowed)
    assert await submission_create.counts(ctx, [scheduled]) == [2]


async def test_a_trial_keeps_nothing(ada: Client, world: World) -> None:
    ctx = context(ada)
    async with ctx.together(keep=False):
        sent = await submission_create.send(ctx, HELLO)
        assert sent.submission is not None
    assert (await many(world, Submission), await many(world, Message)) == (0, 0)


async def original(client: Client, **headers: str) -> int:
    return (await receive(client, raw_message("Plans", **headers))).message_id


async def answer(client: Client, key: int, action: ReferenceAction, **more: Any) -> Picked:
    outgoing = Outgoing(reference=Reference(key, action), text="Yes.", **more)
    sent = await submission_create.send(context(client), outgoing)
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
    sent = (await send(ada)).message
    assert sent is not None
    reply = await answer(ada, sent.id, ReferenceAction.REPLY)
    assert addresses(reply.to) == ["carol@example.net"]


async def test_a_forward_says_so(ada: Client) -> None:
    key = await original(ada)
    forward = await answer(ada, key, ReferenceAction.FORWARD, to=[CAROL])
    assert (forward.subject, forward.in_reply_to) == ("Fwd: Plans", None)
    now = await message(ada, key)
    assert (now.answered, now.keywords) == (True, ["$Forwarded"])


async def test_a_prefix_is_not_doubled(ada: Client) -> None:
    key = (await receive(ada, raw_message("AW: Plans"))).message_id
    assert (await answer(ada, key, ReferenceAction.REPLY)).subject == "AW: Plans"


async def test_a_failed_answer_marks_nothing(ada: Client, bob: Client) -> None:
    key = await original(ada)
    for client, more in ((ada, {"from_": Named(bob.address)}), (bob, {"to": [CAROL]})):
        with pytest.raises(Refused):
            await answer(client, key, ReferenceAction.REPLY, **more)
    await answer(ada, key, ReferenceAction.REPLY, is_draft=True)
    assert not (await message(ada, key)).answered


async def test_copy_and_queue_are_one_unit(ada: Client, world: World) -> None:
    def failing(count: int) -> bytes:
        if count == 10:  # of the queue id, made when the copy is in its place
            raise OSError("no randomness")
        return world.random(count)

    before = await many(world, Change)
    with pytest.raises(OSError, match="no randomness"):
        await submission_create.send(
            Context(replace(world, random=failing), context(ada).viewer), HELLO
        )
    assert (await many(world, Change), await many(world, Message)) == (before, 0)
