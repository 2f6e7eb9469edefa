"""Change the queue entries of many submissions with a constant number of statements.

The caller holds the locks of the streams of all submissions.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, exists, select, update
from sqlmodel import col

from mail.queue.delivery_results import OPEN, summed
from models.events import journal
from models.events.journal import PLATFORM, ChangeKind, Entry
from models.events.wakeups import QUEUE
from models.files.blobs import SubmissionBlob
from models.queue.tables import Delivery, DeliveryState
from models.runtime.environment import Turn
from models.store.columns import Picked, table_of
from models.submission.tables import Submission, SubmissionState

MOST = 500  # submissions in one transaction
CANCELLED = {
    "state": DeliveryState.CANCELLED,
    "next_at": None,
    "turn_at": None,
    "held_at": None,
    "lease": None,
    "holder": None,
}


def free() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """SQL conditions: the queue entry is open and no process holds a lease on it."""
    return col(Delivery.state).in_(OPEN), col(Delivery.lease).is_(None)


def changed(turn: Turn, ids: Sequence[int], values: Mapping[str, Any], *where: Any) -> list[int]:
    """Update the queue entries of these submissions that meet all conditions.

    Returns the submission id of each updated entry, so an id can occur several times.
    """
    these = update(Delivery).where(col(Delivery.submission_id).in_(ids), *where)
    asked = these.values(**values).returning(col(Delivery.submission_id))
    return list(turn.connection.execute(asked).scalars().all())


def cancel(turn: Turn, ids: Sequence[int]) -> list[int]:
    """Cancel the queue entries of these submissions that no process holds.

    If all entries of a submission are cancelled, the copies that rules made of it are cancelled
    too. Returns the submission id of each cancelled entry, without copies. References to the blobs
    of finished submissions are deleted.
    """
    gone = changed(turn, ids, CANCELLED, *free())
    reached = select(col(Delivery.submission_id)).where(
        col(Delivery.submission_id).in_(gone), col(Delivery.state) != DeliveryState.CANCELLED
    )
    some = set(turn.connection.execute(reached.distinct()).scalars())
    for_nobody = set(gone) - some
    copies = copies_of(turn, for_nobody)
    changed(turn, copies, CANCELLED, *free())
    ended = [*for_nobody, *copies]
    these = update(Submission).where(col(Submission.id).in_(ended))
    turn.connection.execute(these.values(release_at=None))
    _release(turn, [*set(gone), *copies])
    tell(turn, [*set(gone), *copies])
    return gone


def copies_of(turn: Turn, ids: Collection[int]) -> list[int]:
    """Ids of the copies that BCC rules made of these submissions."""
    asked = select(col(Submission.id)).where(col(Submission.copy_of).in_(ids))
    return list(turn.connection.execute(asked).scalars().all()) if ids else []


def hurry(turn: Turn, ids: Sequence[int]) -> list[int]:
    """Make deferred queue entries due now, unless they are held or leased.

    Returns the submission id of each entry that is now due.
    """
    now = turn.world.now()
    deferred = col(Delivery.state) == DeliveryState.DEFERRED, col(Delivery.held_at).is_(None)
    hurried = changed(
        turn, ids, {"next_at": now, "turn_at": now, "hurried_at": now}, *free(), *deferred
    )
    turn.bells.add(QUEUE)
    tell(turn, list(set(hurried)))
    return hurried


def hold(turn: Turn, ids: Sequence[int]) -> None:
    """Hold the open queue entries of these submissions. A running attempt continues."""
    values = {"held_at": turn.world.now(), "turn_at": None}
    waiting = col(Delivery.state).in_(OPEN), col(Delivery.held_at).is_(None)
    tell(turn, list(set(changed(turn, ids, values, *waiting))))


def go_on(turn: Turn, ids: Sequence[int]) -> None:
    """Release the held queue entries of these submissions.

    Their expiry moves by the time they were held.
    """
    now, table = turn.world.now(), table_of(Delivery)
    asked = select(
        *(table.c[name] for name in ("id", "submission_id", "held_at", "expires_at"))
    ).where(col(Delivery.submission_id).in_(ids), col(Delivery.held_at).is_not(None))
    rows = turn.connection.execute(asked.with_for_update()).all()
    if rows:
        this = update(table).where(table.c.id == bindparam("key"))
        later = this.values(held_at=None, expires_at=bindparam("later"))
        each = [{"key": row.id, "later": row.expires_at + (now - row.held_at)} for row in rows]
        turn.connection.execute(later, each)
    turn.bells.add(QUEUE)
    tell(turn, sorted({row.submission_id for row in rows}))


def tell(turn: Turn, ids: Sequence[int]) -> None:
    """Set the states of these submissions from their queue entries, and journal the change."""
    if not ids:
        return
    states: defaultdict[int, list[DeliveryState]] = defaultdict(list)
    tried = set[int]()
    theirs = select(col(Delivery.submission_id), col(Delivery.state), col(Delivery.attempts))
    for each in turn.connection.execute(theirs.where(col(Delivery.submission_id).in_(ids))):
        states[each.submission_id].append(each.state)
        tried |= {each.submission_id} if each.attempts else set()
    asked = select(col(Submission.id), col(Submission.user_id), col(Submission.state))
    rows = turn.connection.execute(asked.where(col(Submission.id).in_(ids))).all()
    now: dict[int, SubmissionState] = {}
    groups: defaultdict[SubmissionState, list[int]] = defaultdict(list)
    for row in rows:
        now[row.id] = summed(states[row.id], row.state, tried=row.id in tried)
        if now[row.id] is not row.state:
            groups[now[row.id]].append(row.id)
    for state, keys in groups.items():
        these = update(Submission).where(col(Submission.id).in_(keys))
        turn.connection.execute(these.values(state=state))
    _record(turn, rows, now)


def _record(turn: Turn, rows: Sequence[Picked], now: Mapping[int, SubmissionState]) -> None:
    """Append SUBMISSION_CHANGED entries to the journal stream of each owner."""
    streams: defaultdict[int, list[int]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.id):
        streams[PLATFORM if row.user_id is None else row.user_id].append(row.id)
    told = {stream: list(_entries(keys, now)) for stream, keys in streams.items()}
    turn.reached |= journal.record_each(turn.connection, told, at=turn.world.now())
    for stream in told:
        turn.held.pop(stream, None)


def _entries(keys: Sequence[int], now: Mapping[int, SubmissionState]) -> Iterator[Entry]:
    """Journal entries for these submissions, each for at most `journal.LONGEST` ids."""
    for at in range(0, len(keys), journal.LONGEST):
        part = keys[at : at + journal.LONGEST]
        states = [now[key].value for key in part]
        state = states if len(set(states)) > 1 else states[0]
        yield Entry(ChangeKind.SUBMISSION_CHANGED, part, {"state": state})


def _release(turn: Turn, ids: Sequence[int]) -> None:
    """Delete the blob references of the submissions that have no open queue entry."""
    left = exists().where(
        col(Delivery.submission_id) == col(SubmissionBlob.submission_id),
        col(Delivery.state).in_(OPEN),
    )
    these = delete(SubmissionBlob).where(col(SubmissionBlob.submission_id).in_(ids), ~left)
    turn.connection.execute(these)
