"""Send messages: store message, copy in Sent, and queue entries in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col

from mail.storage.blobs.blob_writer import BlobRowDeleted, StoredMessageBlobs
from mail.storage.message_insert import InsertedMessage, InsertItem, insert_messages_and_take_quota
from mail.storage.quota import InsertKind
from models.errors import ErrorCollector, Forbidden, NotFound, OverQuota
from models.files.tables import FileShare
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow
from models.store.prepared_statements import PreparedStatement, integer_parameter
from models.users.tables import User
from models.warning_codes import WarningCode
from resolvers.access import require_user_id
from resolvers.context import BatchFunction, Context
from resolvers.files import shares as file_shares
from resolvers.messages import loaders as message_loaders
from resolvers.queue import rate_limits
from resolvers.submission import composition
from resolvers.submission import loaders as submission_loaders
from resolvers.submission.enqueue import QueueableMessage, enqueue_messages_with_bcc_and_held_copies
from resolvers.submission.message_envelope import EnvelopeOverride
from resolvers.submission.message_source import flag_own_source_message
from resolvers.submission.outgoing_messages import (
    ComposedMessage,
    SendRequest,
    compose_messages_of_request,
)
from resolvers.submission.prepared_messages import (
    NO_FOLDER_WARNING,
    NO_ROOM_WARNING,
    PreparedMessage,
    parse_and_encrypt_message,
    read_bcc_copy_recipients,
    scan_composed_message,
    store_blobs_of_message_and_copy,
)
from resolvers.users.quota import limits as quota_limits

__all__ = ["ComposedMessage", "EnvelopeOverride", "SendRequest"]

_USER_ALLOWED_TO_SEND = PreparedStatement(
    select(col(User.id)).where(
        col(User.id) == integer_parameter("user"), col(User.active), ~col(User.suspended)
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

    Each row is None if it was not requested; `message` also if no copy was stored.
    """

    submission: ColumnRow | None
    message: ColumnRow | None
    warnings: Sequence[tuple[WarningCode, str]] = ()


class _CopyMailboxGone(Exception):
    """Raised if the mailbox for a copy was deleted since it was looked up."""

    def __init__(self, mailbox_id: int) -> None:
        super().__init__(mailbox_id)
        self.mailbox_id = mailbox_id

    def without_copy_in_deleted_mailbox(self, prepared: PreparedMessage) -> PreparedMessage:
        """Return the message without a copy if the copy was to be stored in the deleted mailbox."""
        if prepared.copy_place is None or prepared.copy_place.mailbox_id != self.mailbox_id:
            return prepared
        return replace(prepared, copy_place=None, no_copy_reason=NO_FOLDER_WARNING)


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """The ids of the submission and the copy of a message. `message_id` is None without a copy."""

    submission_id: int
    message_id: int | None
    no_copy_reason: str


async def compose_and_queue_message(
    ctx: Context, request: SendRequest, problems: ErrorCollector | None = None
) -> SentMessage:
    """Build one message, store its copy and queue it.

    Raises as `compose_and_queue_messages` does.
    """
    (sent_message,) = await compose_and_queue_messages(ctx, request, problems)
    return sent_message


async def compose_and_queue_messages(
    ctx: Context,
    request: SendRequest,
    problems: ErrorCollector | None = None,
    needed_rows: SentRowSelection = ALL_SENT_ROWS,
) -> list[SentMessage]:
    """Build the messages of a request, store their copies and queue them: all or none.

    A request with `merge` has several messages. If a copy can't be stored, the message is sent
    with a warning. Raises InvalidInput for all wrong fields together with the errors already in
    `problems`, Forbidden if the account may not send or not as this sender or the scanner rejects
    the message, NotFound for a missing mailbox or file, and RateLimited if a limit on recipients
    or messages of the account, domain or platform is reached.
    """
    user_id = require_user_id(ctx)
    account = await composition.read_account(ctx, user_id)
    await quota_limits.require_below_sending_limits(ctx, account, request.limited_message())
    batch = await compose_messages_of_request(ctx, account, request, problems or ErrorCollector())
    stored_submissions = await scan_and_queue_messages_with_copies(
        ctx, account, batch.messages, batch.shares
    )
    return await load_sent_messages(ctx, stored_submissions, needed_rows)


async def load_sent_messages(
    ctx: Context,
    stored_submissions: Sequence[QueuedMessage],
    needed_rows: SentRowSelection = ALL_SENT_ROWS,
) -> list[SentMessage]:
    """Load the rows of queued messages, with a warning for each without a stored copy."""
    submission_ids = [
        submission.submission_id if needed_rows.submissions else None
        for submission in stored_submissions
    ]
    copy_ids = [
        submission.message_id if needed_rows.messages else None for submission in stored_submissions
    ]
    submission_rows = await _load_optional_rows(
        ctx, submission_loaders.load_own_submissions_by_id, submission_ids
    )
    copy_rows = await _load_optional_rows(ctx, message_loaders.load_visible_by_ids, copy_ids)
    return [
        SentMessage(
            row,
            copy,
            ()
            if submission.message_id is not None
            else ((WarningCode.NOT_SAVED_TO_SENT, submission.no_copy_reason),),
        )
        for submission, row, copy in zip(
            stored_submissions, submission_rows, copy_rows, strict=True
        )
    ]


async def _load_optional_rows(
    ctx: Context, load_by_id: BatchFunction[int, ColumnRow | None], ids: Sequence[int | None]
) -> list[ColumnRow | None]:
    """Load the rows with these ids. A None among the ids gives None."""
    given_ids = [key for key in ids if key is not None]
    rows = iter(await ctx.load_many(load_by_id, given_ids) if given_ids else ())
    return [None if key is None else next(rows) for key in ids]


class StoredSubmission(NamedTuple):
    """The ids of a submission and of the copy that is stored for the sender."""

    submission_id: int
    copy_id: int | None


async def scan_and_queue_message_with_copy(
    ctx: Context, account: ColumnRow, composed: ComposedMessage
) -> StoredSubmission:
    """Store a copy of a message and queue it.

    Returns the ids of the submission and of the copy; None if no copy was stored.

    Raises the errors of `scan_and_queue_messages_with_copies`.
    """
    (stored,) = await scan_and_queue_messages_with_copies(ctx, account, [composed])
    return StoredSubmission(stored.submission_id, stored.message_id)


async def scan_and_queue_messages_with_copies(
    ctx: Context,
    account: ColumnRow,
    composed_messages: Sequence[ComposedMessage],
    shares: Sequence[FileShare] = (),
) -> list[QueuedMessage]:
    """Store copies of messages, queue the messages, and insert the shares, in one transaction.

    Raises Forbidden if the scanner rejects a message or the account may not send, and RateLimited.
    """
    envelopes = [(message.sender, message.recipients) for message in composed_messages]
    copy_recipients = await read_bcc_copy_recipients(ctx, account, envelopes)
    for message in composed_messages:  # all of them before a transaction begins
        await scan_composed_message(ctx, account, message)
    prepared_messages = [
        await parse_and_encrypt_message(ctx, account, message, recipients_of_copies)
        for message, recipients_of_copies in zip(composed_messages, copy_recipients, strict=True)
    ]
    is_retry = False
    while True:
        try:
            return await _store_and_queue_messages_within_limits(
                ctx, account, prepared_messages, shares, is_retry=is_retry
            )
        except BlobRowDeleted:
            if is_retry:
                raise
            is_retry = True
        except _CopyMailboxGone as error:
            prepared_messages = [
                error.without_copy_in_deleted_mailbox(message) for message in prepared_messages
            ]


async def _store_and_queue_messages_within_limits(
    ctx: Context,
    account: ColumnRow,
    prepared_messages: Sequence[PreparedMessage],
    shares: Sequence[FileShare],
    *,
    is_retry: bool,
) -> list[QueuedMessage]:
    """Store the blobs, and write all rows in one transaction."""
    stored_blobs = [
        await store_blobs_of_message_and_copy(ctx, account, message, is_retry=is_retry)
        for message in prepared_messages
    ]
    stream_ids = {
        stream for message in prepared_messages for stream in message.copy_recipients.stream_ids
    }
    outgoing = prepared_messages[0].request

    def insert_copies_and_queue_within_limits(
        transaction: DatabaseTransaction,
    ) -> list[QueuedMessage]:
        require_sending_allowed(transaction, account.id)
        recipient_count = sum(len(message.recipients) for message in prepared_messages)
        quota_limits.count_against_recipient_limit(transaction, account.id, recipient_count)
        stored = _insert_copies_and_queue_messages(
            transaction, ctx, prepared_messages, stored_blobs
        )
        rate_limits.count_against_sending_rates(transaction, account.id, len(prepared_messages))
        return stored

    limited = prepared_messages[0].limited_message()
    if not shares and not outgoing.source:
        with quota_limits.convert_and_log_exceeded_limits(ctx, limited):
            return await ctx.run_transaction(
                insert_copies_and_queue_within_limits, account.id, *stream_ids
            )
    with quota_limits.convert_and_log_exceeded_limits(ctx, limited):
        async with ctx.write_session(account.id, *stream_ids) as session:
            await file_shares.insert_shares(ctx, session, shares)
            stored = await ctx.environment.run_in_session(
                session, insert_copies_and_queue_within_limits
            )
            if outgoing.source:
                await flag_own_source_message(ctx, session, outgoing.source)
    return stored


def _insert_copies_and_queue_messages(
    transaction: DatabaseTransaction,
    ctx: Context,
    prepared_messages: Sequence[PreparedMessage],
    stored_blobs: Sequence[tuple[StoredMessageBlobs, StoredMessageBlobs]],
) -> list[QueuedMessage]:
    """Insert the copies, submissions and queue entries of prepared messages."""
    copies = _insert_copies(transaction, prepared_messages, [copy for _, copy in stored_blobs])
    messages_to_queue = [
        QueueableMessage(prepared, message_blobs, copy)
        for prepared, (message_blobs, _), (copy, _) in zip(
            prepared_messages, stored_blobs, copies, strict=True
        )
    ]
    submission_ids = enqueue_messages_with_bcc_and_held_copies(transaction, ctx, messages_to_queue)
    return [
        QueuedMessage(submission_id, inserted.message_id if inserted else None, warning)
        for submission_id, (inserted, warning) in zip(submission_ids, copies, strict=True)
    ]


def require_sending_allowed(transaction: DatabaseTransaction, user_id: int) -> None:
    """Raise Forbidden if the account is not active, or suspended."""
    if not transaction.fetch_rows(_USER_ALLOWED_TO_SEND, user=user_id):
        raise Forbidden("The account is not allowed to send.")


def _insert_copies(
    transaction: DatabaseTransaction,
    prepared_messages: Sequence[PreparedMessage],
    copy_blobs: Sequence[StoredMessageBlobs],
) -> list[tuple[InsertedMessage | None, str]]:
    """Insert the copies. Returns for each message its stored copy or None, and a text.

    The text is the warning if there is no copy; ignore it if there is one. Raises _CopyMailboxGone
    if a mailbox was just deleted; then the transaction must be rolled back.
    """
    copies_to_insert = [
        InsertItem(message.copy, stored_blobs, message.copy_place)
        for message, stored_blobs in zip(prepared_messages, copy_blobs, strict=True)
        if message.copy_place
    ]
    try:
        inserted = iter(_insert_as_quota_allows(transaction, copies_to_insert))
    except NotFound as error:
        raise _CopyMailboxGone(copies_to_insert[0].placement.mailbox_id) from error
    return [
        (next(inserted), NO_ROOM_WARNING) if message.copy_place else (None, message.no_copy_reason)
        for message in prepared_messages
    ]


def _insert_as_quota_allows(
    transaction: DatabaseTransaction, items: Sequence[InsertItem]
) -> list[InsertedMessage | None]:
    """Insert messages; None for each that does not fit the quota."""
    if not items:
        return []
    try:
        return [*insert_messages_and_take_quota(transaction, items, kind=InsertKind.ADDED_BY_USER)]
    except OverQuota:  # raised before anything is written
        if len(items) == 1:
            return [None]
    return [allow for item in items for allow in _insert_as_quota_allows(transaction, [item])]
