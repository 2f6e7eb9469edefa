"""Send a stored draft."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.envelope.dsn_parameters import ALL_REPORTS
from mail.storage import draft_replacement, message_open, openpgp_encryption
from mail.storage.blobs.blob_writer import BlobRowDeleted, StoredMessageBlobs
from mail.storage.draft_replacement import EarlierDraft
from mail.storage.message_content import StoredMessage
from mail.storage.message_insert import InsertItem, MessagePlacement
from mail.storage.received_messages import parse_storable_message
from mail.storage.storable_message import StorableMessage
from models.errors import (
    Conflict,
    InvalidInput,
    ServiceUnavailable,
    require_found,
)
from models.files.blobs import MessageBlob
from models.mailboxes.tables import SpecialUse
from models.messages.tables import Message, MessageRelationKind
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.special_mailboxes import placement_in_ensured_scheduled_mailbox
from resolvers.messages import loaders as message_loaders
from resolvers.messages import message_import
from resolvers.messages.listing import is_not_deleted_sql
from resolvers.queue import rate_limits
from resolvers.submission import composition, file_attachments, outgoing_scan
from resolvers.submission import create as submission_create
from resolvers.submission import loaders as submission_loaders
from resolvers.submission.create import SentMessage
from resolvers.submission.drafts import outgoing as outgoing_drafts
from resolvers.submission.drafts.outgoing import INPUT_PATH
from resolvers.submission.enqueue import QueueableMessage, enqueue_message
from resolvers.submission.identities import loaders as identity_loaders
from resolvers.submission.message_source import MessageSource, flag_own_source_message
from resolvers.submission.outgoing_messages import (
    ComposedMessage,
    SendRequest,
    encrypt_if_requested,
)
from resolvers.submission.prepared_messages import (
    PreparedMessage,
    read_bcc_copy_recipients,
    store_blobs_of_message_and_copy,
)
from resolvers.submission.schedule import is_held
from resolvers.submission.sender_authorization import require_permitted_sender
from resolvers.users.quota import limits as quota_limits

NO_SENT_FOLDER_WARNING = (
    "The message is sent. There is no mailbox with the special use SENT: the copy stays in the "
    "mailbox of the draft."
)
NO_OPTIONS = SendRequest()


@dataclass(frozen=True, slots=True)
class DraftSendRequest:
    """The draft to send, its options, and whether its stored files are deleted.

    `options` has no content: that is the draft's.
    """

    message_id: int
    delete_files: bool = False  # the stored files of the draft
    options: SendRequest = NO_OPTIONS

    @property
    def undo_window(self) -> timedelta | None:
        """The time for which sending can be undone."""
        return self.options.undo_window

    @property
    def changes_content(self) -> bool:
        """True if the sent message has not the content of the draft."""
        return self.options.encrypt or self.options.template is not None

    @property
    def names_recipients(self) -> bool:
        """True if the message is sent to other recipients than those of the draft."""
        options = self.options
        return options.envelope.recipients is not None or options.mail_merge is not None


@dataclass(frozen=True, slots=True)
class _PreparedDraft:
    """A draft that is ready to be queued and moved to Sent."""

    draft_row: ColumnRow
    replaced: EarlierDraft
    sent_place: MessagePlacement
    message: PreparedMessage
    keeps_draft_blobs: bool  # an undo needs the content of the draft


class SubmittedDraft(NamedTuple):
    """The sent messages of a draft, with the facts to restore the draft.

    `store_blobs_for_draft_restoration` needs the facts. They are None if the draft stays a draft.
    """

    messages: list[SentMessage]
    restoration_facts: dict[str, Any] | None


async def submit_draft(ctx: Context, request: DraftSendRequest) -> SubmittedDraft:
    """Send a draft, which becomes the copy in Sent under the same id, all or nothing.

    The message gets a new Date. A mail merge sends a message for each entry, and the draft stays a
    draft. Also returns the facts that are needed to restore the draft. Raises Conflict if the
    message is no draft, NotFound, InvalidInput if it has no recipient or a wrong header, Forbidden
    if the account may not send as an author, the scanner rejects the message, or the request names
    recipients without the scope MAIL_READ, and RateLimited.
    """
    account = await composition.read_account(ctx, require_user_id(ctx))
    await quota_limits.require_below_sending_limits(ctx, account)
    row = await require_own_message(ctx, request.message_id)
    if not row.draft:
        raise Conflict("The message is not a draft: only drafts can be submitted.", path=INPUT_PATH)
    if request.names_recipients:
        ctx.viewer.require_scope(Scope.MAIL_READ)  # or a caller who may only send could read drafts
    (draft,) = await message_open.open_messages_unlogged(ctx.environment, [row], ctx.read)
    if request.options.mail_merge is not None:
        return SubmittedDraft(await _send_mail_merge(ctx, account, draft, request), None)
    prepared, warnings = await _compose_scan_and_encrypt(ctx, account, draft, request)
    try:
        submission_id = await _store_blobs_queue_draft_return_submission(
            ctx, account, prepared, request, is_retry=False
        )
    except BlobRowDeleted:
        submission_id = await _store_blobs_queue_draft_return_submission(
            ctx, account, prepared, request, is_retry=True
        )
    sent_message = SentMessage(
        await ctx.load(submission_loaders.load_own_submissions_by_id, submission_id),
        await ctx.load(message_loaders.load_visible_by_ids, row.id),
        warnings,
    )
    facts = {"message": row.id, "mailbox": row.mailbox_id, "seen": row.seen}
    if prepared.keeps_draft_blobs:
        facts["blob"] = row.blob_id
    return SubmittedDraft([sent_message], facts)


async def _send_mail_merge(
    ctx: Context, account: ColumnRow, draft: StoredMessage, request: DraftSendRequest
) -> list[SentMessage]:
    """Send a message for each entry of the mail merge. The draft does not change."""
    if request.delete_files:
        raise InvalidInput(
            "`deleteFiles` can't be combined with `mailMerge`, after which the draft stays.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["deleteFiles"],
        )
    composed = await outgoing_drafts.compose_filled_drafts(ctx, account, draft, request.options)
    source, metadata = _source_of_draft(draft.row), draft.row.public_metadata
    messages = [
        replace(item, request=replace(item.request, source=source, public_metadata=metadata))
        for item in composed
    ]
    queued_messages = await submission_create.scan_and_queue_messages_with_copies(
        ctx, account, messages
    )
    return await submission_create.load_sent_messages(ctx, queued_messages)


class _DraftWithWarnings(NamedTuple):
    """A draft that is ready to be queued, and the warnings for the sender."""

    draft: _PreparedDraft
    warnings: Sequence[tuple[WarningCode, str]]


class _MessageAndCopy(NamedTuple):
    """An outgoing message, and the sender's copy."""

    message: StorableMessage
    copy_of_sender: StorableMessage


async def _compose_scan_and_encrypt(
    ctx: Context, account: ColumnRow, draft: StoredMessage, request: DraftSendRequest
) -> _DraftWithWarnings:
    row = draft.row
    composed = await _compose_unencrypted(ctx, account, draft, request)
    await outgoing_scan.scan_and_require_sendable(
        ctx, account, composed.raw, composed.sender, composed.recipients
    )
    # the mailbox of the copy depends on From, not on a requested envelope
    author = composed.sender if request.options.envelope.sender is None else row.from_address
    address_row = await require_permitted_sender(ctx, account, author, INPUT_PATH)
    sent_mailbox, warnings = await _sent_or_current_mailbox(ctx, account, row, author, address_row)
    message, copy = await _encrypted_message_and_copy(ctx, account, composed, sent_mailbox)
    placement = MessagePlacement(
        account.id,
        sent_mailbox.id,
        ctx.environment.now(),
        seen=True,
        envelope_from=composed.sender,
        envelope_to=composed.recipients,
        origin=ctx.origin,
    )
    final_mailbox_id = None
    if is_held(ctx.environment, composed.request):
        final_mailbox_id = placement.mailbox_id
        placement = await placement_in_ensured_scheduled_mailbox(ctx, placement)
    envelope = composed.sender, composed.recipients
    (copy_recipients,) = await read_bcc_copy_recipients(ctx, account, [envelope])
    mail = PreparedMessage(
        message,
        copy,
        *envelope,
        placement,
        composed.request,
        copy_recipients,
        dict.fromkeys(composed.recipients, ALL_REPORTS) if request.options.request_dsn else {},
        sent_mailbox_id=final_mailbox_id,
    )
    replaced = await earlier_draft_from_row(ctx, row, must_be_draft=True)
    keeps_blobs = request.changes_content and bool(request.undo_window)
    return _DraftWithWarnings(_PreparedDraft(row, replaced, placement, mail, keeps_blobs), warnings)


async def _compose_unencrypted(
    ctx: Context, account: ColumnRow, draft: StoredMessage, request: DraftSendRequest
) -> ComposedMessage:
    """Return the message that a draft sends, with filled placeholders if there is a template."""
    options = request.options
    if options.template is None:
        return await outgoing_drafts.compose_stored_draft(ctx, account, draft, options)
    (filled,) = await outgoing_drafts.compose_filled_drafts(
        ctx, account, draft, replace(options, encrypt=False)
    )
    return replace(filled, request=replace(filled.request, encrypt=options.encrypt))


async def _encrypted_message_and_copy(
    ctx: Context, account: ColumnRow, composed: ComposedMessage, copy_mailbox: ColumnRow
) -> _MessageAndCopy:
    """Return the message, encrypted if requested, and the copy as account and mailbox require it.

    Raises InvalidInput if a recipient has no key, or if the message to encrypt has a Bcc, and
    Conflict if the key for the copy is not usable.
    """
    message = await parse_storable_message(composed.raw)
    if composed.request.encrypt:
        outgoing_drafts.require_no_bcc(message.facts)
        composed = await encrypt_if_requested(ctx, account, composed)
        message = await parse_storable_message(composed.raw)
    copy, copy_raw = message, composed.raw
    if composed.readable_copy is not None:
        copy_raw = composed.readable_copy
        copy = await parse_storable_message(copy_raw)
    try:
        copy = await openpgp_encryption.encrypt_if_required(
            ctx.environment, copy_raw, copy, account, copy_mailbox
        )
    except ServiceUnavailable as problem:
        raise Conflict(problem.message, path=INPUT_PATH) from problem
    return _MessageAndCopy(message, copy)


async def require_own_message(ctx: Context, message_id: int) -> ColumnRow:
    """Read a message of the viewer's own account. Raises NotFound."""
    statement = select(*select_columns(Message)).where(
        col(Message.user_id) == require_user_id(ctx),
        is_not_deleted_sql(),
        col(Message.id) == message_id,
    )
    row: ColumnRow = require_found(
        next(iter(await ctx.read(statement)), None), str(message_id), path=INPUT_PATH
    )
    return row


async def _sent_mailbox(
    ctx: Context, account: ColumnRow, sender: str, address_row: ColumnRow | None
) -> ColumnRow | None:
    """Return the mailbox for copies of this sender, or None if there is none."""
    identity = await identity_loaders.identity_of_sender_or_none(ctx, account, sender, address_row)
    mailbox_refs = [mailbox_loaders.MailboxSelector(special_use=SpecialUse.SENT)]
    if identity and identity.mailbox_id is not None:
        mailbox_refs.insert(0, mailbox_loaders.MailboxSelector(id=identity.mailbox_id))
    mailboxes = await mailbox_loaders.load_visible_by_selectors(
        ctx, [(account.id, name) for name in mailbox_refs]
    )
    return next((mailbox for mailbox in mailboxes if mailbox is not None), None)


class _CopyMailbox(NamedTuple):
    """The mailbox of the sent copy, and the warnings if it is not the usual one."""

    mailbox: ColumnRow
    warnings: Sequence[tuple[WarningCode, str]]


async def _sent_or_current_mailbox(
    ctx: Context,
    account: ColumnRow,
    draft_row: ColumnRow,
    sender: str,
    address_row: ColumnRow | None,
) -> _CopyMailbox:
    """Return the mailbox for copies of this sender, or else the draft's own with a warning."""
    sent_mailbox = await _sent_mailbox(ctx, account, sender, address_row)
    if sent_mailbox is not None:
        return _CopyMailbox(sent_mailbox, [])
    (current_mailbox,) = await mailbox_loaders.load_visible_by_selectors(
        ctx, [(account.id, mailbox_loaders.MailboxSelector(id=draft_row.mailbox_id))]
    )
    return _CopyMailbox(
        require_found(current_mailbox, path=INPUT_PATH),
        [(WarningCode.NOT_SAVED_TO_SENT, NO_SENT_FOLDER_WARNING)],
    )


async def earlier_draft_from_row(
    ctx: Context, draft_row: ColumnRow, *, must_be_draft: bool
) -> EarlierDraft:
    """Return the stored message to replace, with its words in the text index."""
    (message,) = await message_open.open_messages_unlogged(ctx.environment, [draft_row], ctx.read)
    readable = await message_import.draft_to_replace(ctx, message, INPUT_PATH)
    return EarlierDraft(
        draft_row.id,
        draft_row.sha256,
        readable.indexed_words,
        tuple(INPUT_PATH),
        must_be_draft=must_be_draft,
    )


async def _store_blobs_queue_draft_return_submission(
    ctx: Context,
    account: ColumnRow,
    prepared: _PreparedDraft,
    request: DraftSendRequest,
    *,
    is_retry: bool,
) -> int:
    stored_blobs = await store_blobs_of_message_and_copy(
        ctx, account, prepared.message, is_retry=is_retry
    )
    with quota_limits.convert_and_log_exceeded_limits(ctx, prepared.message.limited_message()):
        async with ctx.write_session(
            account.id, *prepared.message.copy_recipients.stream_ids
        ) as session:
            submission_id = await ctx.environment.run_in_session(
                session,
                lambda transaction: _enqueue_and_replace_draft(
                    transaction, ctx, prepared, stored_blobs
                ),
            )
            await _mark_source_message(ctx, session, prepared.draft_row)
            if request.delete_files:
                await file_attachments.delete_files_of_draft(ctx, session, prepared.draft_row.id)
    return submission_id


def _enqueue_and_replace_draft(
    transaction: DatabaseTransaction,
    ctx: Context,
    prepared: _PreparedDraft,
    stored_blobs: tuple[StoredMessageBlobs, StoredMessageBlobs],
) -> int:
    """Queue the message, replace the draft by the copy, and return the id of the submission.

    Checks that the user may send, and counts the message against the limit of recipients and the
    sending rates. Raises their errors; then the transaction must be rolled back.
    """
    owner, (message_blobs, copy), mail = require_user_id(ctx), stored_blobs, prepared.message
    submission_create.require_sending_allowed(transaction, owner)
    quota_limits.count_against_recipient_limit(transaction, owner, len(mail.recipients))
    draft_blob_ids = (
        _load_blob_ids(transaction, prepared.draft_row.id) if prepared.keeps_draft_blobs else []
    )
    inserted = draft_replacement.replace_draft_message(
        transaction,
        InsertItem(mail.copy, copy, prepared.sent_place),
        prepared.replaced,
        ignores_quota=True,
    )
    queueable = QueueableMessage(mail, message_blobs, inserted, draft_blob_ids)
    key = enqueue_message(transaction, ctx, queueable)
    rate_limits.count_against_sending_rates(transaction, owner)
    return key


def _load_blob_ids(transaction: DatabaseTransaction, message_id: int) -> list[int]:
    """Return the blobs of a message, so that the submission can keep them for an undo."""
    statement = select(col(MessageBlob.blob_id)).where(col(MessageBlob.message_id) == message_id)
    return list(transaction.connection.execute(statement).scalars())


async def _mark_source_message(ctx: Context, session: AsyncSession, draft_row: ColumnRow) -> None:
    """Flag the message that the draft replies to or forwards, if it still exists."""
    if source := _source_of_draft(draft_row):
        await flag_own_source_message(ctx, session, source)


def _source_of_draft(draft_row: ColumnRow) -> MessageSource | None:
    """Return the message that the draft replies to or forwards, None if there is none."""
    if draft_row.source_id is None or not draft_row.source_relation:
        return None
    return MessageSource(draft_row.source_id, MessageRelationKind(draft_row.source_relation))
