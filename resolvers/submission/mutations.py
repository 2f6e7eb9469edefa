"""Cancel or reschedule submissions that are not sent yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.queue import bulk_updates, held_messages
from mail.queue.enqueue import HELD_STATES
from models.errors import Conflict, require_all_found
from models.events.journal import PLATFORM
from models.events.wakeups import QUEUE
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow
from models.submission.tables import Submission, SubmissionState
from resolvers.access import load_visible_owner_ids
from resolvers.context import Context
from resolvers.mailboxes.special_mailboxes import SCHEDULED, ensure_special_mailbox
from resolvers.submission.loaders import load_own_submissions_by_id
from resolvers.submission.outgoing_messages import require_send_time_within_limit

STATES_BEFORE_FIRST_ATTEMPT = frozenset(
    {SubmissionState.SCHEDULED, SubmissionState.UNDOABLE, SubmissionState.QUEUED}
)


async def cancel_submissions(
    ctx: Context, ids: Sequence[int], *, make_drafts: bool = True
) -> list[ColumnRow]:
    """Cancel all of these submissions, or none.

    Recipients that were served, or are being served right now, are not affected. With
    `make_drafts`, the copy of a message without any served recipient becomes a draft. Raises
    NotFound, and Conflict if a submission has no recipient left to cancel.
    """
    unique_ids = list(dict.fromkeys(ids))
    async with ctx.write_session(*await _stream_ids_to_lock(ctx, unique_ids)) as session:
        await _require_own_submissions(ctx, unique_ids, ids)
        cancelled_ids = set(
            await ctx.environment.run_in_session(
                session,
                lambda transaction: bulk_updates.cancel_unleased_entries_and_rule_copies(
                    transaction, unique_ids
                ),
            )
        )
        _require_all_changed(ids, cancelled_ids, "The submission can no longer be cancelled.")
        if make_drafts:
            await ctx.environment.run_in_session(
                session,
                lambda transaction: held_messages.make_drafts_of_unsent(transaction, unique_ids),
            )
    return await _reload_submissions(ctx, ids)


async def reschedule_submissions(
    ctx: Context, ids: Sequence[int], send_at: datetime
) -> list[ColumnRow]:
    """Change the send time of all of these submissions, or of none. A past time means now.

    Applies to recipients without an attempt in progress, also those tried before. The undo window
    stays unchanged. Raises NotFound, InvalidInput if the time is too far ahead, and Conflict if a
    submission has no such recipient.
    """
    require_send_time_within_limit(ctx.environment, send_at)
    unique_ids = list(dict.fromkeys(ids))
    async with ctx.write_session(*await _stream_ids_to_lock(ctx, unique_ids)) as session:
        rows = await _require_own_submissions(ctx, unique_ids, ids)
        scheduled_mailboxes = {}
        if send_at > ctx.environment.now():
            users = sorted({row.user_id for row in rows if row.state is SubmissionState.QUEUED})
            scheduled_mailboxes = {
                user: await ensure_special_mailbox(ctx, user, SCHEDULED) for user in users
            }
        changed_ids = await _reschedule_and_return_changed_ids(
            ctx, session, rows, send_at, scheduled_mailboxes
        )
        _require_all_changed(ids, changed_ids, "The submission can no longer be rescheduled.")
    return await _reload_submissions(ctx, ids)


@dataclass(frozen=True, slots=True)
class _NewSchedule:
    """The next attempt of a submission and its state until then."""

    next_attempt_at: datetime
    send_at: datetime | None
    state: SubmissionState

    @classmethod
    def for_send_at(
        cls, submission: ColumnRow, requested_send_at: datetime, now: datetime
    ) -> "_NewSchedule":
        """Return the schedule for a new send time. No attempt is before the undo window ends."""
        earliest = max(submission.undoable_until or now, now)
        scheduled_at = requested_send_at if requested_send_at > now else None
        state = submission.state
        if state in STATES_BEFORE_FIRST_ATTEMPT:
            state = SubmissionState.QUEUED
            if scheduled_at:
                state = SubmissionState.SCHEDULED
            elif earliest > now:
                state = SubmissionState.UNDOABLE
        return cls(max(scheduled_at or now, earliest), scheduled_at, state)


async def _reschedule_and_return_changed_ids(
    ctx: Context,
    session: AsyncSession,
    rows: Sequence[ColumnRow],
    send_at: datetime,
    scheduled_mailboxes: Mapping[int, ColumnRow],
) -> set[int]:
    """Change the send time of these submissions. Returns the ids that have a recipient left.

    `scheduled_mailboxes` are the mailboxes for scheduled messages, by user, for submissions that
    were in the queue.
    """

    def reschedule_rows_and_return_changed_ids(transaction: DatabaseTransaction) -> set[int]:
        now, changed_ids, released_ids = transaction.environment.now(), set[int](), set[int]()
        for row in rows:
            schedule = _NewSchedule.for_send_at(row, send_at, now)
            values = {
                "next_at": schedule.next_attempt_at,
                "ready_at": None,  # the queue assigns it at that time
                "expires_at": schedule.next_attempt_at
                + transaction.environment.options.queue_lifetime,
            }
            ids_with_copies = [row.id, *bulk_updates.copy_ids_of_submissions(transaction, [row.id])]
            if schedule.state is SubmissionState.QUEUED and row.state in HELD_STATES:
                held_messages.release_or_cancel_submissions(transaction, ids_with_copies)
                released_ids |= set(ids_with_copies)
            changed_ids |= set(
                bulk_updates.update_deliveries_returning_submission_ids(
                    transaction, ids_with_copies, values, *bulk_updates.unleased_open_conditions()
                )
            )
            statement = update(Submission).where(
                col(Submission.id).in_(changed_ids & set(ids_with_copies))
            )
            held_until = schedule.next_attempt_at if schedule.state in HELD_STATES else None
            new_values = {
                "state": schedule.state,
                "send_at": schedule.send_at,
                "release_at": held_until,
            }
            transaction.connection.execute(statement.values(**new_values))
            if (
                held_until
                and row.state is SubmissionState.QUEUED
                and row.user_id in scheduled_mailboxes
            ):
                held_messages.return_copy_to_scheduled(
                    transaction, row, scheduled_mailboxes[row.user_id]
                )
        bulk_updates.refresh_and_journal_submission_states(
            transaction, sorted(changed_ids - released_ids)
        )
        transaction.workers_to_wake.add(QUEUE)
        return changed_ids

    return await ctx.environment.run_in_session(session, reschedule_rows_and_return_changed_ids)


async def _stream_ids_to_lock(ctx: Context, submission_ids: Sequence[int]) -> list[int]:
    """Return the streams to lock: of the owners, and of the platform for copies by rules."""
    streams = await load_visible_owner_ids(ctx, Submission, submission_ids)
    statement = (
        select(col(Submission.id)).where(col(Submission.copy_of).in_(submission_ids)).limit(1)
    )
    return [*streams, PLATFORM] if await ctx.read(statement) else streams


async def _require_own_submissions(
    ctx: Context, unique_ids: Sequence[int], ids: Sequence[int]
) -> list[ColumnRow]:
    rows = {row.id: row for row in await load_own_submissions_by_id(ctx, list(unique_ids)) if row}
    require_all_found(ids, rows, path=["submissions"])
    return list(rows.values())


def _require_all_changed(ids: Sequence[int], changed_ids: set[int], text: str) -> None:
    for nth, key in enumerate(ids):
        if key not in changed_ids:
            raise Conflict(text, path=["submissions", str(nth)])


async def _reload_submissions(ctx: Context, ids: Sequence[int]) -> list[ColumnRow]:
    return [row for row in await ctx.load_many(load_own_submissions_by_id, list(ids)) if row]
