"""Send messages: store message, copy in Sent, and queue entries in one transaction."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, select
from sqlmodel import col

from mail.delivery import recipient_rewrites
from mail.envelope.dsn_parameters import ALL_REPORTS, DsnRequest
from mail.queue import enqueue
from mail.queue.enqueue import NewSubmission, SubmissionOwner
from mail.storage import openpgp_encryption
from mail.storage.blobs.blob_writer import BlobRowDeleted, StoredMessageBlobs
from mail.storage.message_insert import (
    InsertedMessage,
    InsertItem,
    MessagePlacement,
    StorableMessage,
    insert_messages,
)
from mail.storage.received_messages import read_message, store_blobs
from models.errors import (
    ErrorCollector,
    Forbidden,
    InvalidInput,
    NotFound,
    OverQuota,
    ServiceUnavailable,
)
from models.events.journal import PLATFORM
from models.files.tables import FileShare
from models.queue.tables import QueueEntry
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest, ordering_name
from models.store.prepared_statements import PreparedStatement, integer_parameter
from models.submission.tables import Submission, SubmissionState
from models.users.tables import User
from resolvers import pagination
from resolvers.access import is_visible, is_visible_record, require_user_id
from resolvers.context import BatchFunction, Context
from resolvers.files import shares as file_shares
from resolvers.mailboxes.special_mailboxes import placement_in_scheduled
from resolvers.messages import loaders as message_loaders
from resolvers.pagination import PageScan
from resolvers.queue import rate_limits
from resolvers.submission import composition, outgoing_scan
from resolvers.submission.outgoing_messages import (
    ComposedMessage,
    EnvelopeOverride,
    SendRequest,
    compose_messages,
    future_send_time,
)
from resolvers.submission.reply_references import mark_referenced_message, reference_columns
from resolvers.users.quota import limits as quota_limits

__all__ = ["ComposedMessage", "EnvelopeOverride", "SendRequest"]

NOT_SAVED_TO_SENT = "NOT_SAVED_TO_SENT"
NO_ROOM_WARNING = "It is sent, but there was no room for a copy."
NO_FOLDER_WARNING = "It is sent, but there is no folder for a copy."
UNUSABLE_KEY_WARNING = "It is sent, but the key the copy would be encrypted to is of no use."
MAX_UNDO_WINDOW = timedelta(days=1)
_SUBMISSION_BY_ID = PreparedStatement(
    select(*select_columns(Submission)).where(
        col(Submission.user_id) == integer_parameter("viewer"),
        col(Submission.id) == integer_parameter("id"),
    )
)
_USER_ALLOWED_TO_SEND = PreparedStatement(
    select(col(User.id)).where(
        col(User.id) == integer_parameter("user"), ~col(User.disabled), ~col(User.suspended)
    )
)


@dataclass(frozen=True, slots=True)
class SentRowSelection:
    """Which rows of sent messages are read for the response."""

    submissions: bool = True
    messages: bool = True


ALL_SENT_ROWS = SentRowSelection()


@dataclass(frozen=True, slots=True)
class SentMessage:
    """The submission and stored copy of a sent message, with warnings as pairs of code and text.

    `submission` is None if the message was only stored. Both rows are None if they were not
    requested.
    """

    submission: ColumnRow | None
    message: ColumnRow | None
    warnings: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class CopyRecipients:
    """The addresses that BCC rules of a tenant copy a message to.

    The copies belong to the tenant, and no account has an event of them.
    """

    tenant_id: int
    addresses: Sequence[str] = ()

    @property
    def stream_ids(self) -> list[int]:
        """The streams that the transaction must lock because of the copies."""
        return [PLATFORM] if self.addresses else []


@dataclass(frozen=True, slots=True)
class PreparedMessage:
    """A message that is ready to be stored and queued."""

    message: StorableMessage
    copy: StorableMessage  # for the sender; can be encrypted
    sender: str
    recipients: Sequence[str]
    copy_place: MessagePlacement | None  # None: no copy is stored
    request: SendRequest
    copy_recipients: CopyRecipients
    dsn_requests: Mapping[str, DsnRequest] = field(default_factory=dict)
    no_copy_reason: str = NO_ROOM_WARNING  # warning text if no copy is stored
    sent_mailbox_id: int | None = None  # of a held message: the mailbox of the copy after the hold


class _CopyMailboxGone(Exception):
    """Raised if the mailbox for a copy was deleted since it was looked up."""

    def __init__(self, mailbox_id: int) -> None:
        super().__init__(mailbox_id)
        self.mailbox_id = mailbox_id

    def without_copy(self, prepared: PreparedMessage) -> PreparedMessage:
        """Return the message without a copy if the copy was to be stored in the deleted mailbox."""
        if prepared.copy_place is None or prepared.copy_place.mailbox_id != self.mailbox_id:
            return prepared
        return replace(prepared, copy_place=None, no_copy_reason=NO_FOLDER_WARNING)


@dataclass(frozen=True, slots=True)
class _StoredSubmission:
    """The ids of a stored submission and copy. Each is None if there is none."""

    submission_id: int | None
    message_id: int | None
    no_copy_reason: str


async def send_message(
    ctx: Context, request: SendRequest, problems: ErrorCollector | None = None
) -> SentMessage:
    """Build one message, store its copy and queue it. See `send_messages` for errors."""
    (sent_message,) = await send_messages(ctx, request, problems)
    return sent_message


async def send_messages(
    ctx: Context,
    request: SendRequest,
    problems: ErrorCollector | None = None,
    needed_rows: SentRowSelection = ALL_SENT_ROWS,
) -> list[SentMessage]:
    """Build the messages of a request, store their copies and queue them: all or none.

    A request with `merge` has several messages. If a copy can't be stored, the message is sent
    with a warning. Raises Invalid for all wrong fields together with the errors already in
    `problems`, Forbidden if the account may not send or not as this sender or the scanner rejects
    the message, NotFound for a missing mailbox or file, and RateLimited if a limit on recipients
    or messages of the account, domain or platform is reached.
    """
    user_id = require_user_id(ctx)
    account = await composition.read_account(ctx, user_id)
    if not request.is_only_stored:
        await quota_limits.require_can_write(ctx, account)
    batch = await compose_messages(ctx, account, request, problems or ErrorCollector())
    stored_submissions = await store_submissions(ctx, account, batch.messages, batch.shares)
    submission_ids = [
        one.submission_id if needed_rows.submissions else None for one in stored_submissions
    ]
    copy_ids = [one.message_id if needed_rows.messages else None for one in stored_submissions]
    submission_rows, copy_rows = (
        await _load_optional_rows(ctx, load_submissions_by_id, submission_ids),
        await _load_optional_rows(ctx, message_loaders.load_by_ids, copy_ids),
    )
    return [
        SentMessage(
            row,
            copy,
            () if one.message_id is not None else ((NOT_SAVED_TO_SENT, one.no_copy_reason),),
        )
        for one, row, copy in zip(stored_submissions, submission_rows, copy_rows, strict=True)
    ]


async def _load_optional_rows(
    ctx: Context, load_by_id: BatchFunction[int, ColumnRow | None], ids: Sequence[int | None]
) -> list[ColumnRow | None]:
    """Load the rows with these ids. A None among the ids gives None."""
    given_ids = [key for key in ids if key is not None]
    found = iter(await ctx.load_many(load_by_id, given_ids) if given_ids else ())
    return [None if key is None else next(found) for key in ids]


async def store_submission(
    ctx: Context, account: ColumnRow, composed: ComposedMessage
) -> tuple[int | None, int | None]:
    """Store a copy of a message and queue it.

    Returns the ids of the submission and the copy, or None.

    Raises the errors of `store_submissions`.
    """
    (stored,) = await store_submissions(ctx, account, [composed])
    return stored.submission_id, stored.message_id


async def store_submissions(
    ctx: Context,
    account: ColumnRow,
    composed_messages: Sequence[ComposedMessage],
    shares: Sequence[FileShare] = (),
) -> list[_StoredSubmission]:
    """Store copies of messages, queue the messages, and insert the shares, in one transaction.

    Raises Forbidden if the scanner rejects a message or the account may not send, OverQuota if a
    message that is only stored does not fit, and RateLimited.
    """
    envelopes = [
        (one.sender, one.recipients) for one in composed_messages if not one.request.is_only_stored
    ]
    copy_recipients, prepared_messages, is_retry = (
        iter(await read_copy_recipients(ctx, account, envelopes)),
        list[PreparedMessage](),
        False,
    )
    for one in composed_messages:
        recipients_of_copies = (
            CopyRecipients(account.tenant_id)
            if one.request.is_only_stored
            else next(copy_recipients)
        )
        prepared_messages.append(await _prepare_message(ctx, account, one, recipients_of_copies))
    while True:
        try:
            return await _store_prepared(ctx, account, prepared_messages, shares, is_retry=is_retry)
        except BlobRowDeleted:
            if is_retry:
                raise
            is_retry = True
        except _CopyMailboxGone as error:
            prepared_messages = [error.without_copy(one) for one in prepared_messages]


async def _prepare_message(
    ctx: Context, account: ColumnRow, composed: ComposedMessage, copy_recipients: CopyRecipients
) -> PreparedMessage:
    """Parse, scan and encrypt a message, and decide where its copy is stored.

    Raises Forbidden if the scanner rejects it. Raises Unavailable if a message that is only stored
    can't be encrypted; a copy is left out then.
    """
    raw, copy_mailbox, outgoing = composed.raw, composed.copy_mailbox, composed.request
    message = copy = await read_message(raw)
    if composed.readable_copy is not None:
        raw, copy = composed.readable_copy, await read_message(composed.readable_copy)
    if not outgoing.is_only_stored:
        await outgoing_scan.scan_message(ctx, account, raw, composed.sender, composed.recipients)
    copy_place, no_copy_reason = None, NO_FOLDER_WARNING
    if copy_mailbox is not None:
        copy_place, no_copy_reason = _copy_place(ctx, composed, copy_mailbox), NO_ROOM_WARNING
        if not outgoing.is_draft:
            try:
                copy = await openpgp_encryption.encrypt_for_mailbox(
                    ctx.environment, raw, copy, account, copy_mailbox
                )
            except ServiceUnavailable:  # never store it unencrypted
                if outgoing.is_only_stored:
                    raise
                copy_place, no_copy_reason = None, UNUSABLE_KEY_WARNING
            message = copy if outgoing.is_only_stored else message
    sent_mailbox_id = None
    if copy_place is not None and is_held(ctx.environment, outgoing):
        sent_mailbox_id, copy_place = (
            copy_place.mailbox_id,
            await placement_in_scheduled(ctx, copy_place),
        )
    dsn_requests = (
        dict.fromkeys(composed.recipients, ALL_REPORTS)
        if outgoing.request_dsn
        else composed.dsn_requests
    )
    envelope = composed.sender, composed.recipients
    return PreparedMessage(
        message,
        copy,
        *envelope,
        copy_place,
        outgoing,
        copy_recipients,
        dsn_requests,
        no_copy_reason,
        sent_mailbox_id,
    )


def is_held(environment: Environment, request: SendRequest) -> bool:
    """True if the message is sent later: at a scheduled time, or after its undo window."""
    return (
        not request.is_only_stored
        and initial_schedule(environment, request).state is not SubmissionState.QUEUED
    )


def _copy_place(
    ctx: Context, composed: ComposedMessage, copy_mailbox: ColumnRow
) -> MessagePlacement:
    """Return the mailbox, flags and envelope that the copy is stored with."""
    outgoing = composed.request
    return MessagePlacement(
        require_user_id(ctx),
        copy_mailbox.id,
        ctx.environment.now(),
        seen=True,
        draft=outgoing.is_draft,
        envelope_from=None if outgoing.is_only_stored else composed.sender,
        envelope_to=() if outgoing.is_only_stored else composed.recipients,
        meta_data=outgoing.meta_data,
        reference=reference_columns(outgoing.reference),
        origin=ctx.origin,
    )


async def _store_prepared(
    ctx: Context,
    account: ColumnRow,
    prepared_messages: Sequence[PreparedMessage],
    shares: Sequence[FileShare],
    *,
    is_retry: bool,
) -> list[_StoredSubmission]:
    """Store the blobs, and write all rows in one transaction."""
    stored_blobs = [
        await store_message_blobs(ctx, account, one, is_retry=is_retry) for one in prepared_messages
    ]
    stream_ids = {stream for one in prepared_messages for stream in one.copy_recipients.stream_ids}
    outgoing = prepared_messages[0].request

    def write_rows(transaction: DatabaseTransaction) -> list[_StoredSubmission]:
        leaving = [one for one in prepared_messages if not one.request.is_only_stored]
        check_may_send(transaction, account.id)
        if leaving:
            many = sum(len(one.recipients) for one in leaving)
            quota_limits.count_recipients(transaction, account.id, many)
        stored = _insert_rows(transaction, ctx, prepared_messages, stored_blobs)
        if leaving:
            rate_limits.count_messages(transaction, account.id, len(leaving))
        return stored

    if not shares and not (outgoing.reference and not outgoing.is_only_stored):
        with quota_limits.raise_rate_limited(ctx):
            return await ctx.run_transaction(write_rows, account.id, *stream_ids)
    with quota_limits.raise_rate_limited(ctx):
        async with ctx.write_session(account.id, *stream_ids) as session:
            await file_shares.insert_shares(ctx, session, shares)
            stored = await ctx.environment.run_in_session(session, write_rows)
            if outgoing.reference and not outgoing.is_only_stored:
                await mark_referenced_message(ctx, session, outgoing.reference)
    return stored


async def store_message_blobs(
    ctx: Context, account: ColumnRow, prepared: PreparedMessage, *, is_retry: bool
) -> tuple[StoredMessageBlobs, StoredMessageBlobs]:
    """Store the blobs of a message and of its copy.

    Raises BlobRowDeleted if a reused blob was just deleted.

    With `is_retry`, no stored blob is reused.
    """
    message_blobs = copy_blobs = await store_blobs(
        ctx.environment, account.tenant_id, prepared.message, store_again=is_retry
    )
    if prepared.copy is not prepared.message:
        copy_blobs = await store_blobs(
            ctx.environment, account.tenant_id, prepared.copy, store_again=is_retry
        )
    return message_blobs, copy_blobs


def _insert_rows(
    transaction: DatabaseTransaction,
    ctx: Context,
    prepared_messages: Sequence[PreparedMessage],
    stored_blobs: Sequence[tuple[StoredMessageBlobs, StoredMessageBlobs]],
) -> list[_StoredSubmission]:
    """Insert the copies, submissions and queue entries of prepared messages."""
    copies = _insert_copies(transaction, prepared_messages, [copy for _, copy in stored_blobs])
    messages_to_queue = [
        QueueableMessage(prepared, message_blobs, copy)
        for prepared, (message_blobs, _), (copy, _) in zip(
            prepared_messages, stored_blobs, copies, strict=True
        )
        if not prepared.request.is_only_stored
    ]
    submission_ids = iter(
        enqueue_messages(transaction, ctx, messages_to_queue) if messages_to_queue else ()
    )
    return [
        _StoredSubmission(
            None if one.request.is_only_stored else next(submission_ids),
            inserted.message_id if inserted else None,
            warning,
        )
        for one, (inserted, warning) in zip(prepared_messages, copies, strict=True)
    ]


def check_may_send(transaction: DatabaseTransaction, user_id: int) -> None:
    """Raise Forbidden if the account is disabled or suspended."""
    if not transaction.fetch_rows(_USER_ALLOWED_TO_SEND, user=user_id):
        raise Forbidden("this account may not send")


def _insert_copies(
    transaction: DatabaseTransaction,
    prepared_messages: Sequence[PreparedMessage],
    copy_blobs: Sequence[StoredMessageBlobs],
) -> list[tuple[InsertedMessage | None, str]]:
    """Insert the copies. Returns each stored copy, or None with the text of the warning.

    Raises _CopyMailboxGone if a mailbox was just deleted; the transaction must be rolled back.
    Raises OverQuota or NotFound if a message that is only stored can't be stored.
    """
    copies_to_insert = [
        InsertItem(one.copy, stored_blobs, one.copy_place)
        for one, stored_blobs in zip(prepared_messages, copy_blobs, strict=True)
        if one.copy_place
    ]
    try:
        inserted = iter(
            _insert_as_quota_allows(
                transaction,
                copies_to_insert,
                must_fit=any(one.request.is_only_stored for one in prepared_messages),
            )
        )
    except NotFound as error:
        if prepared_messages[0].request.is_only_stored:
            raise
        raise _CopyMailboxGone(copies_to_insert[0].placement.mailbox_id) from error
    return [
        (next(inserted), NO_ROOM_WARNING) if one.copy_place else (None, one.no_copy_reason)
        for one in prepared_messages
    ]


def _insert_as_quota_allows(
    transaction: DatabaseTransaction, items: Sequence[InsertItem], *, must_fit: bool
) -> list[InsertedMessage | None]:
    """Insert messages; None for each that does not fit the quota.

    With `must_fit`, raises OverQuota.
    """
    if not items:
        return []
    try:
        return [*insert_messages(transaction, items)]
    except OverQuota:  # raised before anything is written
        if must_fit:
            raise
        if len(items) == 1:
            return [None]
    return [
        one
        for item in items
        for one in _insert_as_quota_allows(transaction, [item], must_fit=must_fit)
    ]


@dataclass(frozen=True, slots=True)
class QueueableMessage:
    """A prepared message with its stored blobs, and its stored copy if there is one."""

    prepared: PreparedMessage
    stored_blobs: StoredMessageBlobs
    copy: InsertedMessage | None


def enqueue_message(
    transaction: DatabaseTransaction,
    ctx: Context,
    prepared: PreparedMessage,
    stored_blobs: StoredMessageBlobs,
    copy: InsertedMessage | None,
) -> int:
    """Queue one message and return the id of its submission. `copy` is its copy.

    The caller counts it for the rate limits.
    """
    (submission_id,) = enqueue_messages(
        transaction, ctx, [QueueableMessage(prepared, stored_blobs, copy)]
    )
    return submission_id


def enqueue_messages(
    transaction: DatabaseTransaction, ctx: Context, messages: Sequence[QueueableMessage]
) -> list[int]:
    """Queue messages of one account and return the ids of their submissions.

    A message without a copy is copied to the audits of the account here.
    """
    new_submissions = [_new_submission(transaction, message) for message in messages]
    submission_ids = _enqueue_all_with_copies(
        transaction,
        ctx,
        new_submissions,
        [message.prepared.copy_recipients for message in messages],
    )
    for message, new_submission, submission_id in zip(
        messages, new_submissions, submission_ids, strict=True
    ):
        if message.copy is None:
            enqueue.record_audit_copy(
                transaction,
                (require_user_id(ctx), submission_id),
                message.prepared.message,
                new_submission,
            )
    return submission_ids


def _new_submission(transaction: DatabaseTransaction, queueable: QueueableMessage) -> NewSubmission:
    prepared, copy = queueable.prepared, queueable.copy
    schedule = initial_schedule(transaction.environment, prepared.request)
    return enqueue.submission_from_message(
        transaction,
        prepared.message,
        queueable.stored_blobs,
        prepared.sender,
        prepared.recipients,
        stored_copy=copy if prepared.copy is prepared.message else None,
        stored_message_id=copy.message_id if copy else None,
        due_at=schedule.first_attempt_at,
        state=schedule.state,
        send_time=future_send_time(transaction.environment, prepared.request),
        undo_until=schedule.undo_until,
        sent_mailbox_id=prepared.sent_mailbox_id if copy else None,
        priority=prepared.request.priority,
        dsn_requests=prepared.dsn_requests,
        originates_here=True,
    )


async def read_copy_recipients(
    ctx: Context, account: ColumnRow, envelopes: Sequence[tuple[str, Collection[str]]]
) -> list[CopyRecipients]:
    """Read the addresses that BCC rules copy each message to, in the order of the envelopes.

    The transaction that queues a message must lock the streams of its copies too.
    """
    copy_addresses = await recipient_rewrites.find_bcc_addresses_of_sent(
        ctx.environment, account.id, envelopes
    )
    return [CopyRecipients(account.tenant_id, to) for to in copy_addresses]


def enqueue_with_copies(
    transaction: DatabaseTransaction,
    ctx: Context,
    new_submission: NewSubmission,
    copy_recipients: CopyRecipients,
) -> int:
    """Queue a submission of the viewer and its copies by BCC rules, and return its id.

    Counts one message for the rate limits. Call it inside `quota_limits.raise_rate_limited`.
    """
    (key,) = _enqueue_all_with_copies(transaction, ctx, [new_submission], [copy_recipients])
    rate_limits.count_messages(transaction, require_user_id(ctx))
    return key


def _enqueue_all_with_copies(
    transaction: DatabaseTransaction,
    ctx: Context,
    new_submissions: Sequence[NewSubmission],
    copy_recipients: Sequence[CopyRecipients],
) -> list[int]:
    tenant = copy_recipients[0].tenant_id
    keys = enqueue.enqueue_all(
        transaction, SubmissionOwner(require_user_id(ctx), tenant, ctx.origin), new_submissions
    )
    copies = [
        replace(one, recipients=to.addresses, endpoints=(), stored_message_id=None, copy_of=key)
        for one, to, key in zip(new_submissions, copy_recipients, keys, strict=True)
        if to.addresses
    ]
    if copies:
        enqueue.enqueue_all(transaction, SubmissionOwner(None, tenant), copies)
    return keys


@dataclass(frozen=True, slots=True)
class SubmissionSchedule:
    """When a submission is first sent, its state until then, and the end of its undo window."""

    first_attempt_at: datetime
    state: SubmissionState
    undo_until: datetime | None


def initial_schedule(environment: Environment, request: SendRequest) -> SubmissionSchedule:
    """Return the schedule of a new submission.

    Raises Invalid if the undo window is longer than a day.
    """
    now, scheduled_at = environment.now(), future_send_time(environment, request)
    undo_window = request.undo_window or timedelta()
    if not timedelta() <= undo_window <= MAX_UNDO_WINDOW:
        raise InvalidInput("from nothing to a day", constraint="range", path=["undoWindow"])
    undo_until = now + undo_window if undo_window else None
    if scheduled_at:
        first_attempt_at = max(scheduled_at, undo_until or scheduled_at)
        return SubmissionSchedule(first_attempt_at, SubmissionState.SCHEDULED, undo_until)
    if undo_until:
        return SubmissionSchedule(undo_until, SubmissionState.HELD_FOR_UNDO, undo_until)
    return SubmissionSchedule(now, SubmissionState.QUEUED, None)


async def load_submissions_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load the viewer's submissions, in the order of the ids; None for an unknown id."""
    if len(ids) == 1:
        return [next(iter(await ctx.read_prepared(_SUBMISSION_BY_ID, id=ids[0])), None)]
    own_submissions = select(*select_columns(Submission)).where(is_visible(ctx, Submission))
    return await pagination.read_by_keys(ctx, own_submissions, col(Submission.id), ids)


async def load_visible_submissions_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load the submissions that the viewer sees, in the order of the ids; None for any other id.

    Administrators see those of the accounts that they manage.
    """
    visible_submissions = select(*select_columns(Submission)).where(
        is_visible_record(ctx, Submission)
    )
    return await pagination.read_by_keys(ctx, visible_submissions, col(Submission.id), ids)


async def load_submissions_by_queue_id(
    ctx: Context, queue_ids: list[str]
) -> list[ColumnRow | None]:
    """Load the viewer's submissions by queue id, in that order; None for an unknown id."""
    own_submissions = select(*select_columns(Submission)).where(is_visible(ctx, Submission))
    return await pagination.read_by_keys(ctx, own_submissions, col(Submission.queue_id), queue_ids)


async def load_queue_entries_by_submission(
    ctx: Context, submission_ids: list[int]
) -> list[list[ColumnRow]]:
    """Load the queue entries of each submission, in the order of its recipients."""
    statement = select(*select_columns(QueueEntry)).where(
        col(QueueEntry.submission_id).in_(submission_ids), is_visible_record(ctx, QueueEntry)
    )
    entries_by_submission: Mapping[int, list[ColumnRow]] = defaultdict(list)
    for row in await ctx.read(statement.order_by(col(QueueEntry.id))):
        entries_by_submission[row.submission_id].append(row)
    return [entries_by_submission[key] for key in submission_ids]


@dataclass(frozen=True, slots=True)
class SubmissionPageKey:
    """A page of a user's submissions, newest first. `states` None selects all."""

    user_id: int
    page_request: PageRequest
    columns: frozenset[str]
    states: frozenset[SubmissionState] | None = None


def ordering_with_states(states: frozenset[SubmissionState] | None = None) -> str:
    """Return the name of the ordering that cursors of such a page belong to."""
    return ordering_name("submissions-", None if states is None else ("states", *sorted(states)))


async def load_submission_pages(
    ctx: Context, page_keys: list[SubmissionPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of submissions, each in reading order."""
    columns = frozenset({"id", "created_at"}).union(*(key.columns for key in page_keys))
    order_columns = (col(Submission.created_at), col(Submission.id))
    scans = []
    for key in page_keys:
        rows = select(*select_columns(Submission, columns)).where(*_list_conditions(ctx, key))
        scans.append(PageScan(rows, key.page_request, order_columns, is_descending=True))
    return await pagination.read_pages(ctx, scans)


async def count_submissions(ctx: Context, page_keys: list[SubmissionPageKey]) -> list[int]:
    """Count the submissions of each list, in the order of the keys."""
    count_column = func.count().label("many")
    scans = [
        select(count_column).select_from(Submission).where(*_list_conditions(ctx, key))
        for key in page_keys
    ]
    return [row.many for (row,) in await pagination.read_union(ctx, scans)]


def _list_conditions(ctx: Context, page_key: SubmissionPageKey) -> list[ColumnElement[bool]]:
    terms = [col(Submission.user_id) == page_key.user_id, is_visible_record(ctx, Submission)]
    return (
        [*terms, col(Submission.state).in_(page_key.states)]
        if page_key.states is not None
        else terms
    )
