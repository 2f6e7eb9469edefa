"""Held and scheduled messages: their copies in SCHEDULED, and the end of the hold.

While a submission is held, its copy is in the mailbox with the special use SCHEDULED, and
`Submission.release_at` is set. No queue entry of it is due before `release_due` has cleared that
column.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import bindparam, exists, select, update
from sqlmodel import col

from mail.queue import bulk_updates
from mail.queue.enqueue import HELD
from mail.storage.mailbox_move import COLUMNS, relocate
from models.events.journal import PLATFORM
from models.events.wakeups import QUEUE
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.queue.tables import Delivery
from models.runtime.environment import Turn, World
from models.store.columns import Instant, Picked, picked
from models.store.prepared_statements import Prepared
from models.submission.tables import Submission, SubmissionState

AT_ONCE = 100  # submissions
_HELD_BY_HAND = exists().where(
    col(Delivery.submission_id) == col(Submission.id), col(Delivery.held_at).is_not(None)
)
_DUE = Prepared(
    select(col(Submission.id), col(Submission.user_id))
    .where(
        col(Submission.release_at).is_not(None),
        col(Submission.release_at) <= bindparam("now", type_=Instant()),
        ~_HELD_BY_HAND,
    )
    .order_by(col(Submission.release_at), col(Submission.id))
    .limit(AT_ONCE)
)


async def release(world: World) -> int:
    """Release the held submissions that are due. Returns their number.

    The transaction that makes the queue entries due also moves the copy from SCHEDULED to the
    mailbox for sent mail. If the owner has deleted the copy, or moved it to Trash, the submission
    is cancelled instead.
    """
    now = world.now()
    rows = await world.database.find(_DUE, {"now": now})
    by_user: defaultdict[int | None, list[int]] = defaultdict(list)
    for row in rows:
        by_user[row.user_id].append(row.id)
    for user_id, ids in by_user.items():
        streams = {
            PLATFORM,
            PLATFORM if user_id is None else user_id,
        }  # copies of BCC rules are in this stream
        await world.apply(partial(release_now, ids=ids, due_by=now), *sorted(streams))
    return len(rows)


def release_now(turn: Turn, ids: Sequence[int], *, due_by: datetime | None = None) -> None:
    """Release these submissions of one owner that are still held. Their stream must be locked.

    With `due_by`, only those with a hold that ends at that time or earlier.
    """
    names = ("id", "user_id", "state", "message_id", "sent_mailbox_id")
    asked = select(*picked(Submission, names)).where(
        col(Submission.id).in_(ids), col(Submission.release_at).is_not(None)
    )
    if due_by is not None:
        asked = asked.where(col(Submission.release_at) <= due_by)
    rows = turn.connection.execute(asked.order_by(col(Submission.id))).all()
    if not rows:
        return
    copies = _copies(turn, [row.message_id for row in rows if row.message_id is not None])
    deleted = [row.id for row in rows if _is_deleted(row, copies)]
    if deleted:
        bulk_updates.cancel(turn, deleted)
    going = [row for row in rows if row.id not in set(deleted)]
    _clear(turn, [row.id for row in going])
    waiting = [row.id for row in going if row.state in HELD]
    queued = update(Submission).where(col(Submission.id).in_(waiting))
    turn.connection.execute(queued.values(state=SubmissionState.QUEUED))
    bulk_updates.tell(turn, waiting)
    for user_id, theirs in _by_user(going).items():
        _move_to_sent(turn, user_id, theirs, copies)
    turn.bells.add(QUEUE)


def _copies(turn: Turn, message_ids: Collection[int]) -> dict[int, Picked]:
    """Load the copies that are in a mailbox, with its special use, by message id."""
    asked = (
        select(*picked(Message, COLUMNS), col(Mailbox.special_use))
        .join(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
        .where(col(Message.id).in_(message_ids))
    )
    return {row.id: row for row in turn.connection.execute(asked)} if message_ids else {}


def _is_deleted(row: Picked, copies: Mapping[int, Picked]) -> bool:
    """True if the submission had a copy that its owner has deleted."""
    if row.sent_mailbox_id is None:
        return False
    copy = copies.get(row.message_id)
    return copy is None or copy.special_use is SpecialUse.TRASH


def _clear(turn: Turn, ids: Collection[int]) -> None:
    """Set `release_at` of these submissions to NULL."""
    these = update(Submission).where(col(Submission.id).in_(ids))
    turn.connection.execute(these.values(release_at=None))


def _by_user(rows: Sequence[Picked]) -> dict[int, list[Picked]]:
    """Submissions that have a copy to move, by user id."""
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in rows:
        if row.user_id is not None and row.sent_mailbox_id is not None:
            found[row.user_id].append(row)
    return found


def _move_to_sent(
    turn: Turn, user_id: int, rows: Sequence[Picked], copies: Mapping[int, Picked]
) -> None:
    """Move the copies that are in SCHEDULED to the mailbox for sent mail."""
    boxes = _mailboxes(turn, user_id, {row.sent_mailbox_id for row in rows})
    moved, homes = list[Picked](), dict[int, Picked]()
    for row in rows:
        copy = copies.get(row.message_id)
        if copy is not None and copy.special_use is SpecialUse.SCHEDULED:
            moved.append(copy)
            homes[copy.id] = boxes.get(row.sent_mailbox_id) or _usual(boxes, SpecialUse.SENT)
    if moved:
        now = turn.world.now()
        relocate(turn, user_id, moved, homes, {"listed_at": now})


def hold_again(turn: Turn, row: Picked, scheduled: Picked) -> None:
    """Move the copy of a queued submission back to the mailbox SCHEDULED.

    A copy that its owner has deleted or moved to Trash is not changed.
    """
    copy = _copies(turn, [row.message_id]).get(row.message_id) if row.message_id else None
    if copy is None or copy.special_use in (SpecialUse.TRASH, SpecialUse.SCHEDULED):
        return
    relocate(turn, row.user_id, [copy], {copy.id: scheduled}, {})
    this = update(Submission).where(col(Submission.id) == row.id)
    turn.connection.execute(this.values(sent_mailbox_id=copy.mailbox_id))


def make_drafts(turn: Turn, ids: Sequence[int], *, only_held: bool = False) -> None:
    """Make drafts of the copies of cancelled submissions that were sent to no recipient.

    The copies move to the mailbox with the special use DRAFTS. Copies that the owner has deleted or
    moved to another mailbox stay there. With `only_held`, copies outside SCHEDULED stay too.
    """
    names = ("id", "user_id", "message_id", "sent_mailbox_id")
    asked = select(*picked(Submission, names)).where(
        col(Submission.id).in_(ids),
        col(Submission.state) == SubmissionState.CANCELLED,
        col(Submission.user_id).is_not(None),
    )
    rows = turn.connection.execute(asked.order_by(col(Submission.id))).all()
    copies = _copies(turn, [row.message_id for row in rows if row.message_id is not None])
    by_user: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in rows:
        copy = copies.get(row.message_id)
        if copy is None:
            continue
        was_sent = copy.special_use is SpecialUse.SENT or copy.mailbox_id == row.sent_mailbox_id
        if copy.special_use is SpecialUse.SCHEDULED or (was_sent and not only_held):
            by_user[row.user_id].append(copy)
    for user_id, theirs in by_user.items():
        drafts = _usual(_mailboxes(turn, user_id, ()), SpecialUse.DRAFTS)
        changes: dict[str, Any] = {"draft": True, "envelope_from": None, "envelope_to": []}
        relocate(turn, user_id, theirs, {copy.id: drafts for copy in theirs}, changes)


def cancel(turn: Turn, ids: Sequence[int]) -> list[int]:
    """Cancel submissions as `bulk_updates.cancel_unleased`, and make drafts of held copies.

    Returns the submission id of each cancelled queue entry.
    """
    gone = bulk_updates.cancel(turn, ids)
    make_drafts(turn, ids, only_held=True)
    return gone


def _mailboxes(turn: Turn, user_id: int, ids: Collection[int]) -> dict[Any, Picked]:
    """Load these mailboxes by id, and SENT, DRAFTS and INBOX by special use."""
    uses = (SpecialUse.SENT, SpecialUse.DRAFTS, SpecialUse.INBOX)
    asked = select(*picked(Mailbox, ("id", "retention", "special_use"))).where(
        col(Mailbox.user_id) == user_id,
        col(Mailbox.id).in_(ids) | col(Mailbox.special_use).in_(uses),
    )
    found: dict[Any, Picked] = {}
    for row in turn.connection.execute(asked):
        found[row.id] = row
        if row.special_use is not None:
            found[row.special_use] = row
    return found


def _usual(boxes: Mapping[Any, Picked], use: SpecialUse) -> Picked:
    """The mailbox with a special use, or INBOX if the user has none."""
    return boxes.get(use) or boxes[SpecialUse.INBOX]
