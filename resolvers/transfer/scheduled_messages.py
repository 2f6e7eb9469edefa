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

from mail.archives.json_lines import Told
from mail.storage.blobs.compression import digest_of
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.queue.tables import Delivery
from models.store.columns import Picked, picked
from models.submission import tables
from models.submission.tables import Submission, SubmissionState
from resolvers.context import Context

WAITING = (SubmissionState.SCHEDULED, SubmissionState.HELD_FOR_UNDO)
MOST = 10_000  # per account


async def exported(ctx: Context, user_id: int) -> list[dict[str, Any]]:
    """Return the scheduled submissions for the account record, next send time first."""
    names = {"id", "queue_id", "send_time", "undo_until", "envelope_from", "header_id"}
    asked = (
        select(*picked(Submission, names), col(Message.message_id), col(Message.subject))
        .outerjoin(Message, col(Message.id) == col(Submission.message_id))
        .where(col(Submission.user_id) == user_id, col(Submission.state).in_(WAITING))
        .order_by(col(Submission.send_time), col(Submission.id))
    )
    rows = await ctx.read(asked.limit(MOST))
    told = select(col(Delivery.submission_id), col(Delivery.recipient)).where(
        col(Delivery.user_id) == user_id,
        col(Delivery.submission_id).in_(
            select(col(Submission.id)).where(
                col(Submission.user_id) == user_id, col(Submission.state).in_(WAITING)
            )
        ),
    )
    recipients: dict[int, list[str]] = {row.id: [] for row in rows}
    for row in await ctx.read(told.order_by(col(Delivery.id))):
        if row.submission_id in recipients:
            recipients[row.submission_id].append(row.recipient)
    return [
        {
            "queueId": row.queue_id,
            "sendTime": row.send_time or row.undo_until,
            "envelopeFrom": row.envelope_from,
            "recipients": recipients[row.id],
            "messageId": row.message_id or row.header_id,
            "subject": row.subject,
        }
        for row in rows
    ]


class Drafts(NamedTuple):
    """The Drafts mailbox of a user."""

    path: str
    id: int


async def waiting(ctx: Context, user_id: int, ids: Sequence[int]) -> dict[int, Drafts | None]:
    """Return which of these messages are copies of scheduled ones, with the Drafts mailbox."""
    asked = select(col(Submission.message_id)).where(
        col(Submission.user_id) == user_id,
        col(Submission.message_id).in_(ids),
        col(Submission.state).in_(WAITING),
    )
    keys = {row.message_id for row in await ctx.read(asked)}
    return dict.fromkeys(keys, await drafts(ctx, user_id)) if keys else {}


async def drafts(ctx: Context, user_id: int) -> Drafts | None:
    """Return the Drafts mailbox of a user; None if there is none."""
    asked = select(*picked(Mailbox, ("path", "id"))).where(
        col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == SpecialUse.DRAFTS
    )
    return next((Drafts(row.path, row.id) for row in await ctx.read(asked)), None)


def as_draft(told: Told, box: Drafts | None) -> Told:
    """Return the record of a message changed to a draft without envelope."""
    marks = list(dict.fromkeys([*told.flags, "\\Draft"]))
    path = box.path if box else told.mailbox
    return replace(told, mailbox=path, flags=marks, sender=None, recipients=[])


def _without_copy(user_id: int) -> list[Any]:
    """Return the WHERE clauses for scheduled submissions without a copy in a mailbox."""
    copy = exists().where(
        col(Message.id) == col(Submission.message_id), col(Message.archived_at).is_(None)
    )
    waits = (
        text(tables.WAITING),
        col(Submission.state).in_(WAITING),
    )  # the text condition matches the partial index
    return [col(Submission.user_id) == user_id, *waits, ~copy]


async def count_without_copy(ctx: Context, user_id: int) -> int:
    """Return the number of scheduled submissions without a copy in a mailbox."""
    asked = select(func.count()).select_from(Submission).where(*_without_copy(user_id))
    ((many,),) = await ctx.read(asked)
    return int(many)


async def without_copy(
    ctx: Context, user_id: int, after: Sequence[Any], most: int
) -> Sequence[Picked]:
    """Read scheduled submissions without a copy after a position, oldest first.

    An empty position means from the start.
    """
    age = col(Submission.created_at), col(Submission.id)
    asked = select(*picked(Submission, {"id", "queue_id", "blob_id", "size", "created_at"}))
    if after:
        at, key = after
        asked = asked.where(tuple_(*age) > (datetime.fromisoformat(at), key))
    return await ctx.read(asked.where(*_without_copy(user_id)).order_by(*age).limit(most))


def place_of(row: Picked) -> list[Any]:
    """Return the position of a submission as JSON values: creation time and ID."""
    return [row.created_at.isoformat(), row.id]


def told_of(row: Picked, raw: bytes, box: Drafts | None) -> Told:
    """Return the message record of a queued message that is exported as a draft."""
    path = box.path if box else "Drafts"
    return Told(path, row.created_at, ["\\Seen", "\\Draft"], digest=digest_of(raw))
