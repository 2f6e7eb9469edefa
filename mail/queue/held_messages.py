"""Held and scheduled messages: where their copies are, and what happens when the hold ends.

While a submission is held, its copy is in the mailbox with the special use SCHEDULED, and
`Submission.release_at` is set. No delivery of it is due before `release` has cleared that.
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

AT_ONCE = 100  # submissions that one look releases
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
    """Let held submissions enter the queue whose time has come; returns how many.

    Each copy moves from SCHEDULED to the mailbox for sent mail in the transaction that makes its
    deliveries due. If the owner has deleted the copy, or moved it to Trash, the submission is
    cancelled instead.
    """
    now = world.now()
    rows = await world.database.find(_DUE, {"now": now})
    by_user: defaultdict[int | None, list[int]] = defaultdict(list)
    for row in rows:
        by_user[row.user_id].append(row.id)
    for user_id, ids in by_user.items():
        streams = {PLATFORM, PLATFORM if user_id is None else user_id}  # rules' copies are in it
        await world.apply(partial(release_now, ids=ids, due_by=now), *sorted(streams))
    return len(rows)


def release_now(turn: Turn, ids: Sequence[int], *, due_by: datetime | None = None) -> None:
    """Release these submissions of one account, if they are still held; their stream is locked.

    With `due_by`, only those whose hold ends until then.
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
    """The copies that are in a mailbox, with the special use of it, by message id."""
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
    these = update(Submission).where(col(Submission.id).in_(ids))
    turn.connection.execute(these.values(release_at=None))


def _by_user(rows: Sequence[Picked]) -> dict[int, list[Picked]]:
    found: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in rows:
        if row.user_id is not None and row.sent_mailbox_id is not None:
            found[row.user_id].append(row)
    return found


def _move_to_sent(
    turn: Turn, user_id: int, rows: Sequence[Picked], copies: Mapping[int, Picked]
) -> None:
    """Move the copies that are in SCHEDULED; those that the owner has moved stay there."""
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
    """Move the copy of a submission that was queued back to the mailbox SCHEDULED.

    A copy that its owner has deleted or moved to Trash stays as it is.
    """
    copy = _copies(turn, [row.message_id]).get(row.message_id) if row.message_id else None
    if copy is None or copy.special_use in (SpecialUse.TRASH, SpecialUse.SCHEDULED):
        return
    relocate(turn, row.user_id, [copy], {copy.id: scheduled}, {})
    this = update(Submission).where(col(Submission.id) == row.id)
    turn.connection.execute(this.values(sent_mailbox_id=copy.mailbox_id))


def make_drafts(turn: Turn, ids: Sequence[int], *, only_held: bool = False) -> None:
    """Make drafts of the copies of cancelled submissions that reached nobody.

    The copies move to the mailbox with the special use DRAFTS. Copies that the owner has deleted
    or moved to another mailbox stay as they are. With `only_held`, so do copies outside SCHEDULED.
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
    """Cancel submissions as `many.cancel`, and make drafts of the copies of those that are held."""
    gone = bulk_updates.cancel(turn, ids)
    make_drafts(turn, ids, only_held=True)
    return gone


def _mailboxes(turn: Turn, user_id: int, ids: Collection[int]) -> dict[Any, Picked]:
    """These mailboxes of an account by id, and SENT, DRAFTS and INBOX by special use."""
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
    return boxes.get(use) or boxes[SpecialUse.INBOX]
