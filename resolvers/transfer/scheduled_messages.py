"""Scheduled messages in exports.

Their copies are exported as drafts, so that no second server sends them after an import. If a
mailbox has no copy, the queued message becomes the draft. The account record lists recipients
and send times.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import exists, func, select, text, tuple_
from sqlmodel import col

from mail.archives.json_lines import MessageRecord
from mail.storage.blobs.compression import content_digest
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.queue.tables import QueueEntry
from models.store.columns import ColumnRow, select_columns
from models.submission import tables
from models.submission.tables import Submission, SubmissionState
from resolvers.context import Context

SCHEDULED_STATES = (SubmissionState.SCHEDULED, SubmissionState.UNDOABLE)
MAX_EXPORTED_SUBMISSIONS = 10_000  # per account


async def scheduled_submission_records(ctx: Context, user_id: int) -> list[dict[str, Any]]:
    """Return the scheduled submissions for the account record, next send time first."""
    names = {"id", "queue_id", "send_at", "undoable_until", "envelope_from", "header_id"}
    statement = (
        select(*select_columns(Submission, names), col(Message.message_id), col(Message.subject))
        .outerjoin(Message, col(Message.id) == col(Submission.message_id))
        .where(col(Submission.user_id) == user_id, col(Submission.state).in_(SCHEDULED_STATES))
        .order_by(col(Submission.send_at), col(Submission.id))
    )
    rows = await ctx.read(statement.limit(MAX_EXPORTED_SUBMISSIONS))
    query = select(col(QueueEntry.submission_id), col(QueueEntry.recipient)).where(
        col(QueueEntry.user_id) == user_id,
        col(QueueEntry.submission_id).in_(
            select(col(Submission.id)).where(
                col(Submission.user_id) == user_id, col(Submission.state).in_(SCHEDULED_STATES)
            )
        ),
    )
    recipients: dict[int, list[str]] = {row.id: [] for row in rows}
    for row in await ctx.read(query.order_by(col(QueueEntry.id))):
        if row.submission_id in recipients:
            recipients[row.submission_id].append(row.recipient)
    return [
        {
            "queueId": row.queue_id,
            "sendAt": row.send_at or row.undoable_until,
            "envelopeFrom": row.envelope_from,
            "recipients": recipients[row.id],
            "messageId": row.message_id or row.header_id,
            "subject": row.subject,
        }
        for row in rows
    ]


class DraftsMailbox(NamedTuple):
    """The Drafts mailbox of a user."""

    path: str
    id: int


async def load_drafts_mailbox_by_scheduled_copy(
    ctx: Context, user_id: int, message_ids: Sequence[int]
) -> dict[int, DraftsMailbox | None]:
    """Return which of these messages are copies of scheduled ones, with the Drafts mailbox."""
    statement = select(col(Submission.message_id)).where(
        col(Submission.user_id) == user_id,
        col(Submission.message_id).in_(message_ids),
        col(Submission.originates_here),  # others redirect a message, which is exported unchanged
        col(Submission.state).in_(SCHEDULED_STATES),
    )
    keys = {row.message_id for row in await ctx.read(statement)}
    return dict.fromkeys(keys, await find_drafts_mailbox(ctx, user_id)) if keys else {}


async def find_drafts_mailbox(ctx: Context, user_id: int) -> DraftsMailbox | None:
    """Return the Drafts mailbox of a user; None if there is none."""
    statement = select(*select_columns(Mailbox, ("path", "id"))).where(
        col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == SpecialUse.DRAFTS
    )
    return next((DraftsMailbox(row.path, row.id) for row in await ctx.read(statement)), None)


def message_record_as_draft(record: MessageRecord, drafts: DraftsMailbox | None) -> MessageRecord:
    """Return the record of a message changed to a draft without envelope."""
    flag_names = list(dict.fromkeys([*record.flags, "\\Draft"]))
    path = drafts.path if drafts else record.mailbox
    return replace(record, mailbox=path, flags=flag_names, sender=None, recipients=[])


def _without_copy_clauses(user_id: int) -> list[Any]:
    """Return the WHERE clauses for scheduled submissions without a copy in a mailbox."""
    copy = exists().where(
        col(Message.id) == col(Submission.message_id), col(Message.deleted_at).is_(None)
    )
    waits = (
        text(tables.IS_UNFINISHED),
        col(Submission.state).in_(SCHEDULED_STATES),
    )  # the text condition matches the partial index
    return [col(Submission.user_id) == user_id, *waits, ~copy]


async def count_submissions_without_copy(ctx: Context, user_id: int) -> int:
    """Return the number of scheduled submissions without a copy in a mailbox."""
    statement = select(func.count()).select_from(Submission).where(*_without_copy_clauses(user_id))
    ((submission_count,),) = await ctx.read(statement)
    return int(submission_count)


async def read_submissions_without_copy(
    ctx: Context, user_id: int, position: Sequence[Any], limit: int
) -> Sequence[ColumnRow]:
    """Read scheduled submissions without a copy after a position, oldest first.

    An empty position means from the start.
    """
    age = col(Submission.created_at), col(Submission.id)
    statement = select(
        *select_columns(Submission, {"id", "queue_id", "blob_id", "size", "created_at"})
    )
    if position:
        at, key = position
        statement = statement.where(tuple_(*age) > (datetime.fromisoformat(at), key))
    return await ctx.read(
        statement.where(*_without_copy_clauses(user_id)).order_by(*age).limit(limit)
    )


def position_of_submission(submission: ColumnRow) -> list[Any]:
    """Return the position of a submission as JSON values: creation time and ID."""
    return [submission.created_at.isoformat(), submission.id]


def record_of_queued_draft(
    submission: ColumnRow, raw_message: bytes, drafts: DraftsMailbox | None
) -> MessageRecord:
    """Return the message record of a queued message that is exported as a draft."""
    path = drafts.path if drafts else "Drafts"
    return MessageRecord(
        path, submission.created_at, ["\\Seen", "\\Draft"], digest=content_digest(raw_message)
    )
