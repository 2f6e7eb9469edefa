"""Change the queue entries of many submissions with a constant number of statements.

The caller holds the locks of the streams of all submissions.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, exists, select, update
from sqlmodel import col

from mail.queue.delivery_results import OPEN_STATES, state_from_deliveries
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry
from models.events.wakeups import QUEUE
from models.files.blobs import SubmissionBlob
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, core_table
from models.submission.tables import Submission, SubmissionState, submission_event_type

MAX_SUBMISSIONS = 500  # submissions in one transaction
CANCELLED_VALUES = {
    "state": DeliveryState.CANCELLED,
    "next_at": None,
    "ready_at": None,
    "held_at": None,
    "lease": None,
    "holder": None,
}


def unleased_open_conditions() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """SQL conditions: the queue entry is open and no process holds a lease on it."""
    return col(QueueEntry.state).in_(OPEN_STATES), col(QueueEntry.lease).is_(None)


def update_deliveries_returning_submission_ids(
    transaction: DatabaseTransaction,
    submission_ids: Sequence[int],
    values: Mapping[str, Any],
    *conditions: Any,
) -> list[int]:
    """Update the queue entries of these submissions that meet all conditions.

    Returns the submission id of each updated entry, so an id can occur several times.
    """
    statement = update(QueueEntry).where(
        col(QueueEntry.submission_id).in_(submission_ids), *conditions
    )
    returning_ids = statement.values(**values).returning(col(QueueEntry.submission_id))
    return list(transaction.connection.execute(returning_ids).scalars().all())


def cancel_unleased_entries_and_rule_copies(
    transaction: DatabaseTransaction, submission_ids: Sequence[int]
) -> list[int]:
    """Cancel the queue entries of these submissions that no process holds.

    If all entries of a submission are cancelled, the copies that rules made of it are cancelled
    too. Returns the submission id of each cancelled entry, without copies. References to the blobs
    of finished submissions are deleted.
    """
    cancelled_ids = update_deliveries_returning_submission_ids(
        transaction, submission_ids, CANCELLED_VALUES, *unleased_open_conditions()
    )
    still_active = select(col(QueueEntry.submission_id)).where(
        col(QueueEntry.submission_id).in_(cancelled_ids),
        col(QueueEntry.state) != DeliveryState.CANCELLED,
    )
    active_ids = set(transaction.connection.execute(still_active.distinct()).scalars())
    unsent_ids = set(cancelled_ids) - active_ids
    copy_ids = copy_ids_of_submissions(transaction, unsent_ids)
    update_deliveries_returning_submission_ids(
        transaction, copy_ids, CANCELLED_VALUES, *unleased_open_conditions()
    )
    ended_ids = [*unsent_ids, *copy_ids]
    statement = update(Submission).where(col(Submission.id).in_(ended_ids))
    transaction.connection.execute(statement.values(release_at=None))
    _delete_unneeded_blob_references(transaction, [*set(cancelled_ids), *copy_ids])
    refresh_and_journal_submission_states(transaction, [*set(cancelled_ids), *copy_ids])
    return cancelled_ids


def copy_ids_of_submissions(
    transaction: DatabaseTransaction, submission_ids: Collection[int]
) -> list[int]:
    """Ids of the copies that BCC rules made of these submissions."""
    statement = select(col(Submission.id)).where(col(Submission.copy_of).in_(submission_ids))
    return list(transaction.connection.execute(statement).scalars().all()) if submission_ids else []


def flush_deferred_entries(
    transaction: DatabaseTransaction, submission_ids: Sequence[int]
) -> list[int]:
    """Make deferred queue entries due now, unless they are held or leased.

    Returns the submission id of each entry that is now due.
    """
    now = transaction.environment.now()
    conditions = col(QueueEntry.state) == DeliveryState.DEFERRED, col(QueueEntry.held_at).is_(None)
    flushed_ids = update_deliveries_returning_submission_ids(
        transaction,
        submission_ids,
        {"next_at": now, "ready_at": now, "flushed_at": now},
        *unleased_open_conditions(),
        *conditions,
    )
    transaction.workers_to_wake.add(QUEUE)
    refresh_and_journal_submission_states(transaction, list(set(flushed_ids)))
    return flushed_ids


def hold_submissions(transaction: DatabaseTransaction, submission_ids: Sequence[int]) -> None:
    """Hold the open queue entries of these submissions. A running attempt continues."""
    values = {"held_at": transaction.environment.now(), "ready_at": None}
    conditions = col(QueueEntry.state).in_(OPEN_STATES), col(QueueEntry.held_at).is_(None)
    refresh_and_journal_submission_states(
        transaction,
        list(
            set(
                update_deliveries_returning_submission_ids(
                    transaction, submission_ids, values, *conditions
                )
            )
        ),
    )


def release_held_submissions(
    transaction: DatabaseTransaction, submission_ids: Sequence[int]
) -> None:
    """Release the held queue entries of these submissions.

    Their expiry moves by the time they were held.
    """
    now, table = transaction.environment.now(), core_table(QueueEntry)
    statement = select(
        *(table.c[name] for name in ("id", "submission_id", "held_at", "expires_at"))
    ).where(col(QueueEntry.submission_id).in_(submission_ids), col(QueueEntry.held_at).is_not(None))
    rows = transaction.connection.execute(statement.with_for_update()).all()
    if rows:
        by_id = update(table).where(table.c.id == bindparam("key"))
        update_entry = by_id.values(held_at=None, expires_at=bindparam("later"))
        parameters = [
            {"key": row.id, "later": row.expires_at + (now - row.held_at)} for row in rows
        ]
        transaction.connection.execute(update_entry, parameters)
    transaction.workers_to_wake.add(QUEUE)
    refresh_and_journal_submission_states(transaction, sorted({row.submission_id for row in rows}))


def refresh_and_journal_submission_states(
    transaction: DatabaseTransaction, submission_ids: Sequence[int]
) -> None:
    """Set the states of these submissions from their queue entries, and journal the change."""
    if not submission_ids:
        return
    states: defaultdict[int, list[DeliveryState]] = defaultdict(list)
    attempted_ids = set[int]()
    delivery_states = select(
        col(QueueEntry.submission_id), col(QueueEntry.state), col(QueueEntry.attempts)
    )
    for delivery in transaction.connection.execute(
        delivery_states.where(col(QueueEntry.submission_id).in_(submission_ids))
    ):
        states[delivery.submission_id].append(delivery.state)
        attempted_ids |= {delivery.submission_id} if delivery.attempts else set()
    submissions = select(col(Submission.id), col(Submission.user_id), col(Submission.state))
    rows = transaction.connection.execute(
        submissions.where(col(Submission.id).in_(submission_ids))
    ).all()
    state_by_id: dict[int, SubmissionState] = {}
    ids_by_state: defaultdict[SubmissionState, list[int]] = defaultdict(list)
    for row in rows:
        state_by_id[row.id] = state_from_deliveries(
            states[row.id], row.state, was_attempted=row.id in attempted_ids
        )
        if state_by_id[row.id] is not row.state:
            ids_by_state[state_by_id[row.id]].append(row.id)
    for state, changed_ids in ids_by_state.items():
        statement = update(Submission).where(col(Submission.id).in_(changed_ids))
        transaction.connection.execute(statement.values(state=state))
    _append_journal_entries(transaction, rows, state_by_id)


def _append_journal_entries(
    transaction: DatabaseTransaction,
    submissions: Sequence[ColumnRow],
    state_by_id: Mapping[int, SubmissionState],
) -> None:
    """Append entries of changed submissions to the journal stream of each owner."""
    ids_by_stream: defaultdict[int, list[int]] = defaultdict(list)
    for row in sorted(submissions, key=lambda row: row.id):
        ids_by_stream[PLATFORM if row.user_id is None else row.user_id].append(row.id)
    entries_by_stream = {
        stream: list(_batched_journal_entries(keys, state_by_id))
        for stream, keys in ids_by_stream.items()
    }
    transaction.recorded_positions |= journal.record_entries_in_existing_streams(
        transaction.connection, entries_by_stream, at=transaction.environment.now()
    )
    for stream in entries_by_stream:
        transaction.locked_positions.pop(stream, None)


def _batched_journal_entries(
    submission_ids: Sequence[int], state_by_id: Mapping[int, SubmissionState]
) -> Iterator[JournalEntry]:
    """Journal entries for these submissions, each for at most `journal.MAX_IDS_PER_ROW` ids."""
    ids_by_type: defaultdict[EventType, list[int]] = defaultdict(list)
    for key in submission_ids:
        ids_by_type[submission_event_type(state_by_id[key])].append(key)
    for event_type, ids in ids_by_type.items():
        for start in range(0, len(ids), journal.MAX_IDS_PER_ROW):
            part_ids = ids[start : start + journal.MAX_IDS_PER_ROW]
            states = [state_by_id[key].value for key in part_ids]
            state = states if len(set(states)) > 1 else states[0]
            yield JournalEntry(event_type, part_ids, {"state": state})


def _delete_unneeded_blob_references(
    transaction: DatabaseTransaction, submission_ids: Sequence[int]
) -> None:
    """Delete the blob references of the submissions that have no open queue entry."""
    has_open_entry = exists().where(
        col(QueueEntry.submission_id) == col(SubmissionBlob.submission_id),
        col(QueueEntry.state).in_(OPEN_STATES),
    )
    references = delete(SubmissionBlob).where(
        col(SubmissionBlob.submission_id).in_(submission_ids), ~has_open_entry
    )
    transaction.connection.execute(references)
