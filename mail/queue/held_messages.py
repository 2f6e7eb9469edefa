"""Held and scheduled messages: their copies in SCHEDULED, and the end of the hold.

While a submission is held, its copy is in the mailbox with the special use SCHEDULED, and
`Submission.release_at` is set. No queue entry of it is due before that column is cleared.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, exists, select, update
from sqlmodel import col

from mail.queue import bulk_updates
from mail.queue.delivery_results import OPEN_STATES
from mail.queue.enqueue import HELD_STATES
from mail.storage.mailbox_move import COLUMNS, move_messages
from models.events.journal import PLATFORM
from models.events.wakeups import QUEUE
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.queue.tables import QueueEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, UtcDateTime, select_columns
from models.store.prepared_statements import PreparedStatement
from models.submission.tables import Submission, SubmissionState

RELEASE_BATCH_SIZE = 100  # submissions
_HAS_HELD_ENTRY = exists().where(
    col(QueueEntry.submission_id) == col(Submission.id), col(QueueEntry.held_at).is_not(None)
)
_HAS_OPEN_ENTRY = exists().where(
    col(QueueEntry.submission_id) == col(Submission.id), col(QueueEntry.state).in_(OPEN_STATES)
)
_SELECT_DUE = PreparedStatement(
    select(col(Submission.id), col(Submission.user_id))
    .where(
        col(Submission.release_at).is_not(None),
        col(Submission.release_at) <= bindparam("now", type_=UtcDateTime()),
        ~_HAS_HELD_ENTRY,
    )
    .order_by(col(Submission.release_at), col(Submission.id))
    .limit(RELEASE_BATCH_SIZE)
)


async def release_or_cancel_due_submission_batch(environment: Environment) -> int:
    """Release the held submissions that are due. Returns their number.

    The transaction that makes the queue entries due also moves the copy from SCHEDULED to the
    mailbox for sent mail. If the owner has deleted the copy, or moved it to Trash, the submission
    is cancelled instead.
    """
    now = environment.now()
    rows = await environment.database.read_prepared(_SELECT_DUE, {"now": now})
    await _release_or_cancel_by_owner(environment, rows, due_by=now)
    return len(rows)


async def make_drafts_of_failed(environment: Environment, submission_ids: Collection[int]) -> None:
    """Make drafts of the held copies of those submissions whose recipients have all failed."""
    statement = select(col(Submission.id), col(Submission.user_id)).where(
        col(Submission.id).in_(submission_ids),
        col(Submission.release_at).is_not(None),
        col(Submission.state) == SubmissionState.FAILED,
    )
    await _release_or_cancel_by_owner(environment, await environment.database.read(statement))


async def _release_or_cancel_by_owner(
    environment: Environment, submissions: Sequence[ColumnRow], *, due_by: datetime | None = None
) -> None:
    """Run `release_or_cancel_submissions` for each owner, in a transaction of its own."""
    ids_by_user: defaultdict[int | None, list[int]] = defaultdict(list)
    for row in submissions:
        ids_by_user[row.user_id].append(row.id)
    for user_id, ids in ids_by_user.items():
        streams = {
            PLATFORM,
            PLATFORM if user_id is None else user_id,
        }  # copies of BCC rules are in this stream
        await environment.run_transaction(
            partial(release_or_cancel_submissions, submission_ids=ids, due_by=due_by),
            *sorted(streams),
        )


def release_or_cancel_submissions(
    transaction: DatabaseTransaction,
    submission_ids: Sequence[int],
    *,
    due_by: datetime | None = None,
) -> None:
    """Release these submissions of one owner that are still held. Their stream must be locked.

    With `due_by`, only those with a hold that ends at that time or earlier. The copy of a
    submission whose recipients have all failed during the hold becomes a draft.
    """
    names = ("id", "user_id", "state", "message_id", "sent_mailbox_id", "copy_of")
    statement = select(*select_columns(Submission, names)).where(
        col(Submission.id).in_(submission_ids), col(Submission.release_at).is_not(None)
    )
    if due_by is not None:
        statement = statement.where(col(Submission.release_at) <= due_by)
    rows = transaction.connection.execute(statement.order_by(col(Submission.id))).all()
    if not rows:
        return
    copy_by_message_id = _load_copies_by_message_id(
        transaction, [row.message_id for row in rows if row.message_id is not None]
    )
    deleted_ids = [row.id for row in rows if _has_deleted_copy(row, copy_by_message_id)]
    has_ended = False  # True if a deleted submission ends here
    if deleted_ids:
        cancelled_ids = bulk_updates.cancel_unleased_entries_and_rule_copies(
            transaction, deleted_ids
        )
        ended_count = _clear_release_times(transaction, deleted_ids, ~_HAS_OPEN_ENTRY)
        has_ended = bool(cancelled_ids or ended_count)
    released = [row for row in rows if row.id not in set(deleted_ids)]
    _clear_release_times(transaction, [row.id for row in released])
    held_ids = [row.id for row in released if row.state in HELD_STATES]
    held_submissions = update(Submission).where(col(Submission.id).in_(held_ids))
    transaction.connection.execute(held_submissions.values(state=SubmissionState.QUEUED))
    bulk_updates.refresh_and_journal_submission_states(transaction, held_ids)
    failed_ids = [row.id for row in released if row.state is SubmissionState.FAILED]
    make_drafts_of_unsent(transaction, failed_ids, only_held=True)
    sent = [row for row in released if row.state is not SubmissionState.FAILED]
    for user_id, user_rows in _submissions_to_move_by_user(sent).items():
        _move_scheduled_copies_to_sent(transaction, user_id, user_rows, copy_by_message_id)
    if released or has_ended:  # a worker that wakes itself without a change would never wait
        transaction.workers_to_wake.add(QUEUE)


def _load_copies_by_message_id(
    transaction: DatabaseTransaction, message_ids: Collection[int]
) -> dict[int, ColumnRow]:
    """Load the copies that are in a mailbox, with its special use, by message id."""
    statement = (
        select(*select_columns(Message, COLUMNS), col(Mailbox.special_use))
        .join(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
        .where(col(Message.id).in_(message_ids))
    )
    return {row.id: row for row in transaction.connection.execute(statement)} if message_ids else {}


def _has_deleted_copy(submission: ColumnRow, copy_by_message_id: Mapping[int, ColumnRow]) -> bool:
    """True if the submission had a copy that its owner has deleted.

    The copy for a BCC rule has none: it is cancelled with the submission that it copies.
    """
    if submission.sent_mailbox_id is None or submission.copy_of is not None:
        return False
    copy = copy_by_message_id.get(submission.message_id)
    return copy is None or copy.special_use is SpecialUse.TRASH


def _clear_release_times(
    transaction: DatabaseTransaction,
    submission_ids: Collection[int],
    *conditions: ColumnElement[bool],
) -> int:
    """Set `release_at` of submissions that meet all conditions to NULL. Returns their number."""
    submissions = update(Submission).where(col(Submission.id).in_(submission_ids), *conditions)
    return transaction.connection.execute(submissions.values(release_at=None)).rowcount


def _submissions_to_move_by_user(submissions: Sequence[ColumnRow]) -> dict[int, list[ColumnRow]]:
    """Submissions that have a copy to move, by user id."""
    rows_by_user: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in submissions:
        if row.user_id is not None and row.sent_mailbox_id is not None:
            rows_by_user[row.user_id].append(row)
    return rows_by_user


def _move_scheduled_copies_to_sent(
    transaction: DatabaseTransaction,
    user_id: int,
    submissions: Sequence[ColumnRow],
    copy_by_message_id: Mapping[int, ColumnRow],
) -> None:
    """Move the copies that are in SCHEDULED to the mailbox for sent mail."""
    mailboxes = _load_mailboxes_by_id_and_use(
        transaction, user_id, {row.sent_mailbox_id for row in submissions}
    )
    moved_copies, mailbox_by_copy_id = list[ColumnRow](), dict[int, ColumnRow]()
    for row in submissions:
        copy = copy_by_message_id.get(row.message_id)
        if copy is not None and copy.special_use is SpecialUse.SCHEDULED:
            moved_copies.append(copy)
            mailbox_by_copy_id[copy.id] = mailboxes.get(row.sent_mailbox_id) or _mailbox_or_inbox(
                mailboxes, SpecialUse.SENT
            )
    if moved_copies:
        now = transaction.environment.now()
        move_messages(transaction, user_id, moved_copies, mailbox_by_copy_id, {"listed_at": now})


def return_copy_to_scheduled(
    transaction: DatabaseTransaction, submission: ColumnRow, scheduled_mailbox: ColumnRow
) -> None:
    """Move the copy of a queued submission back to the mailbox SCHEDULED.

    A copy that its owner has deleted or moved to Trash is not changed. A redirected message, which
    is no copy of the submission, is not changed either.
    """
    copy = (
        _load_copies_by_message_id(transaction, [submission.message_id]).get(submission.message_id)
        if submission.message_id and submission.originates_here
        else None
    )
    if copy is None or copy.special_use in (SpecialUse.TRASH, SpecialUse.SCHEDULED):
        return
    move_messages(transaction, submission.user_id, [copy], {copy.id: scheduled_mailbox}, {})
    statement = update(Submission).where(col(Submission.id) == submission.id)
    transaction.connection.execute(statement.values(sent_mailbox_id=copy.mailbox_id))


def find_messages_without_hold(
    connection: Connection, mailbox_by_message_id: Mapping[int, ColumnRow]
) -> set[int]:
    """Return the messages that nothing would move from SCHEDULED again.

    The mailboxes are those that the messages return to, with `special_use`. No SQL statement if
    none is SCHEDULED.
    """
    scheduled_ids = {
        message_id
        for message_id, mailbox in mailbox_by_message_id.items()
        if mailbox.special_use is SpecialUse.SCHEDULED
    }
    if not scheduled_ids:
        return set()
    statement = select(col(Submission.message_id)).where(
        col(Submission.message_id).in_(scheduled_ids),
        col(Submission.release_at).is_not(None),
        col(Submission.sent_mailbox_id).is_not(None),
    )
    return scheduled_ids - {row.message_id for row in connection.execute(statement)}


def make_drafts_of_unsent(
    transaction: DatabaseTransaction, submission_ids: Sequence[int], *, only_held: bool = False
) -> None:
    """Make drafts of the copies of submissions that were cancelled, or failed during their hold.

    The copies move to the mailbox with the special use DRAFTS. Copies that the owner has deleted or
    moved to another mailbox stay there. With `only_held`, copies outside SCHEDULED stay too.
    """
    names = ("id", "user_id", "state", "message_id", "sent_mailbox_id")
    statement = select(*select_columns(Submission, names)).where(
        col(Submission.id).in_(submission_ids),
        col(Submission.state).in_((SubmissionState.CANCELLED, SubmissionState.FAILED)),
        col(Submission.user_id).is_not(None),
        col(Submission.originates_here),  # others have no copy of their own
    )
    rows = transaction.connection.execute(statement.order_by(col(Submission.id))).all()
    copy_by_message_id = _load_copies_by_message_id(
        transaction, [row.message_id for row in rows if row.message_id is not None]
    )
    copies_by_user: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in rows:
        copy = copy_by_message_id.get(row.message_id)
        if copy is None:
            continue
        is_held = copy.special_use is SpecialUse.SCHEDULED
        is_in_sent = copy.special_use is SpecialUse.SENT or copy.mailbox_id == row.sent_mailbox_id
        is_cancelled = row.state is SubmissionState.CANCELLED
        if is_held or (is_in_sent and is_cancelled and not only_held):
            copies_by_user[row.user_id].append(copy)
    for user_id, user_copies in copies_by_user.items():
        drafts_mailbox = _mailbox_or_inbox(
            _load_mailboxes_by_id_and_use(transaction, user_id, ()), SpecialUse.DRAFTS
        )
        changes: dict[str, Any] = {"draft": True, "envelope_from": None, "envelope_to": []}
        move_messages(
            transaction,
            user_id,
            user_copies,
            {copy.id: drafts_mailbox for copy in user_copies},
            changes,
        )


def cancel_and_make_drafts(
    transaction: DatabaseTransaction, submission_ids: Sequence[int]
) -> list[int]:
    """Cancel submissions and make drafts of held copies.

    Cancels as `bulk_updates.cancel_unleased_entries_and_rule_copies`. Returns the submission id of
    each cancelled queue entry.
    """
    cancelled_ids = bulk_updates.cancel_unleased_entries_and_rule_copies(
        transaction, submission_ids
    )
    make_drafts_of_unsent(transaction, submission_ids, only_held=True)
    return cancelled_ids


def _load_mailboxes_by_id_and_use(
    transaction: DatabaseTransaction, user_id: int, mailbox_ids: Collection[int]
) -> dict[Any, ColumnRow]:
    """Load these mailboxes by id, and SENT, DRAFTS and INBOX by special use."""
    uses = (SpecialUse.SENT, SpecialUse.DRAFTS, SpecialUse.INBOX)
    statement = select(*select_columns(Mailbox, ("id", "retention", "special_use"))).where(
        col(Mailbox.user_id) == user_id,
        col(Mailbox.id).in_(mailbox_ids) | col(Mailbox.special_use).in_(uses),
    )
    mailboxes: dict[Any, ColumnRow] = {}
    for row in transaction.connection.execute(statement):
        mailboxes[row.id] = row
        if row.special_use is not None:
            mailboxes[row.special_use] = row
    return mailboxes


def _mailbox_or_inbox(mailboxes: Mapping[Any, ColumnRow], special_use: SpecialUse) -> ColumnRow:
    """The mailbox with a special use, or INBOX if the user has none."""
    return mailboxes.get(special_use) or mailboxes[SpecialUse.INBOX]
