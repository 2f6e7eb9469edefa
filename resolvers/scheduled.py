"""Messages that are to be sent later, in accounts as files.

Their copies are drafts there, and so where they are brought in: no server sends what another
one will send, too. The record of the account says to whom they were to go, and when.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col

from mail.archives.records import Told
from models.columns import picked
from models.mailboxes import Mailbox, SpecialUse
from models.messages import Message
from models.queue import Delivery
from models.submission import Submission, SubmissionState
from resolvers.context import Context

WAITING = (SubmissionState.SCHEDULED, SubmissionState.HELD_FOR_UNDO)
MOST = 10_000  # of an account are told of


async def exported(ctx: Context, user_id: int) -> list[dict[str, Any]]:
    """What waits, the next first: when it goes, from whom to whom, and of which copy."""
    names = {"id", "queue_id", "send_time", "undo_until", "envelope_from"}
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
            "messageId": row.message_id,
            "subject": row.subject,
        }
        for row in rows
    ]


class Drafts(NamedTuple):
    """The folder of drafts."""

    path: str
    id: int


async def waiting(ctx: Context, user_id: int, ids: Sequence[int]) -> dict[int, Drafts | None]:
    """Those of these messages that are to go later, with the folder of drafts."""
    asked = select(col(Submission.message_id)).where(
        col(Submission.user_id) == user_id,
        col(Submission.message_id).in_(ids),
        col(Submission.state).in_(WAITING),
    )
    keys = {row.message_id for row in await ctx.read(asked)}
    if not keys:
        return {}
    drafts = select(*picked(Mailbox, ("path", "id"))).where(
        col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == SpecialUse.DRAFTS
    )
    box = next((Drafts(row.path, row.id) for row in await ctx.read(drafts)), None)
    return dict.fromkeys(keys, box)


def as_draft(told: Told, box: Drafts | None) -> Told:
    """What is told of a message in place of what it is: that it is a draft, of no envelope."""
    marks = list(dict.fromkeys([*told.flags, "\\Draft"]))
    path = box.path if box else told.mailbox
    return replace(told, mailbox=path, flags=marks, sender=None, recipients=[])
