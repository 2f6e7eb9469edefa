"""Cancel or reschedule submissions that are not sent yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.queue import bulk_updates, held_messages
from mail.queue.enqueue import HELD
from models.errors import Conflict, all_found
from models.events.journal import PLATFORM
from models.events.wakeups import QUEUE
from models.runtime.environment import Turn
from models.store.columns import Picked
from models.submission.tables import Submission, SubmissionState
from resolvers.access import owners
from resolvers.context import Context
from resolvers.mailboxes.special_mailboxes import SCHEDULED, ensure_special_mailbox
from resolvers.submission.create import by_ids
from resolvers.submission.outgoing_messages import check_time

UNTRIED = frozenset(
    {SubmissionState.SCHEDULED, SubmissionState.HELD_FOR_UNDO, SubmissionState.QUEUED}
)


async def cancel(ctx: Context, ids: Sequence[int], *, drafts: bool = True) -> list[Picked]:
    """Cancel all of these submissions, or none.

    Recipients that were served, or are being served right now, are not affected. With
    `make_drafts`, the copy of a message without any served recipient becomes a draft. Raises
    NotFound, and Conflict if a submission has no recipient left to cancel.
    """
    keys = list(dict.fromkeys(ids))
    async with ctx.write(*await _streams(ctx, keys)) as session:
        await _found(ctx, keys, ids)
        gone = set(await ctx.world.join(session, lambda turn: bulk_updates.cancel(turn, keys)))
        _check(ids, gone, "too late to take it back")
        if drafts:
            await ctx.world.join(session, lambda turn: held_messages.make_drafts(turn, keys))
    return await _now(ctx, ids)


async def reschedule(ctx: Context, ids: Sequence[int], at: datetime) -> list[Picked]:
    """Change the send time of all of these submissions, or of none. A past time means now.

    Applies to recipients without an attempt in progress, also those tried before. The undo window
    stays unchanged. Raises NotFound, Invalid if the time is too far ahead, and Conflict if a
    submission has no such recipient.
    """
    check_time(ctx.world, at)
    keys = list(dict.fromkeys(ids))
    async with ctx.write(*await _streams(ctx, keys)) as session:
        rows = await _found(ctx, keys, ids)
        boxes = {}
        if at > ctx.world.now():
            users = sorted({row.user_id for row in rows if row.state is SubmissionState.QUEUED})
            boxes = {user: await ensure_special_mailbox(ctx, user, SCHEDULED) for user in users}
        moved = await _put_off(ctx, session, rows, at, boxes)
        _check(ids, moved, "too late to send it at another time")
    return await _now(ctx, ids)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The next attempt of a submission and its state until then."""

    at: datetime
    send_time: datetime | None
    state: SubmissionState

    @classmethod
    def of(cls, row: Picked, at: datetime, now: datetime) -> "_Plan":
        """Return the schedule of a submission for a new send time."""
        until = max(row.undo_until or now, now)
        later = at if at > now else None
        state = row.state
        if state in UNTRIED:
            state = SubmissionState.QUEUED
            if later:
                state = SubmissionState.SCHEDULED
            elif until > now:
                state = SubmissionState.HELD_FOR_UNDO
        return cls(max(later or now, until), later, state)


async def _put_off(
    ctx: Context,
    session: AsyncSession,
    rows: Sequence[Picked],
    at: datetime,
    boxes: Mapping[int, Picked],
) -> set[int]:
    """Change the send time of these submissions. Returns the ids that have a recipient left.

    `scheduled_mailboxes` are the mailboxes for scheduled messages, by user, for submissions that
    were in the queue.
    """

    def unit(turn: Turn) -> set[int]:
        now, moved, released = turn.world.now(), set[int](), set[int]()
        for row in rows:
            plan = _Plan.of(row, at, now)
            values = {
                "next_at": plan.at,
                "turn_at": None,  # the queue assigns it at that time
                "expires_at": plan.at + turn.world.options.queue_expires,
            }
            theirs = [row.id, *bulk_updates.copies_of(turn, [row.id])]
            if plan.state is SubmissionState.QUEUED and row.state in HELD:
                held_messages.release_now(turn, theirs)
                released |= set(theirs)
            moved |= set(bulk_updates.changed(turn, theirs, values, *bulk_updates.free()))
            these = update(Submission).where(col(Submission.id).in_(moved & set(theirs)))
            held_until = plan.at if plan.state in HELD else None
            new = {"state": plan.state, "send_time": plan.send_time, "release_at": held_until}
            turn.connection.execute(these.values(**new))
            if held_until and row.state is SubmissionState.QUEUED and row.user_id in boxes:
                held_messages.hold_again(turn, row, boxes[row.user_id])
        bulk_updates.tell(turn, sorted(moved - released))
        turn.bells.add(QUEUE)
        return moved

    return await ctx.world.join(session, unit)


async def _streams(ctx: Context, keys: Sequence[int]) -> list[int]:
    """Return the streams to lock: of the owners, and of the platform for copies by rules."""
    streams = await owners(ctx, Submission, keys)
    copied = select(col(Submission.id)).where(col(Submission.copy_of).in_(keys)).limit(1)
    return [*streams, PLATFORM] if await ctx.read(copied) else streams


async def _found(ctx: Context, keys: Sequence[int], ids: Sequence[int]) -> list[Picked]:
    rows = {row.id: row for row in await by_ids(ctx, list(keys)) if row}
    all_found(ids, rows)
    return list(rows.values())


def _check(ids: Sequence[int], done: set[int], text: str) -> None:
    for nth, key in enumerate(ids):
        if key not in done:
            raise Conflict(text, path=["ids"], index=nth)


async def _now(ctx: Context, ids: Sequence[int]) -> list[Picked]:
    return [row for row in await ctx.load_all(by_ids, list(ids)) if row]
