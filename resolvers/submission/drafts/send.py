"""Send a stored draft."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.authentication.results_removal import (
    own_authserv_ids,
    remove_authentication_results_of_servers,
)
from mail.compose import draft_validation
from mail.compose.submission_repair import RepairedMessage, repair_message_or_raise
from mail.storage import draft_replacement, message_open, openpgp_encryption
from mail.storage.blobs.blob_writer import BlobRowDeleted, StoredMessageBlobs
from mail.storage.draft_replacement import EarlierDraft
from mail.storage.message_content import read_all
from mail.storage.message_insert import MessagePlacement
from mail.storage.received_messages import parse_storable_message
from models.errors import (
    Conflict,
    InvalidInput,
    ServiceUnavailable,
    require_found,
    require_within_limit,
)
from models.mailboxes.tables import SpecialUse
from models.messages.tables import Message, MessageRelationKind
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.special_mailboxes import placement_in_ensured_scheduled_mailbox
from resolvers.messages import loaders as message_loaders
from resolvers.messages import message_import
from resolvers.messages.loaders import is_not_deleted_sql
from resolvers.queue import rate_limits
from resolvers.submission import composition, file_attachments, outgoing_scan
from resolvers.submission import create as submission_create
from resolvers.submission import loaders as submission_loaders
from resolvers.submission.create import SentMessage
from resolvers.submission.enqueue import enqueue_message
from resolvers.submission.identities import loaders as identity_loaders
from resolvers.submission.message_source import MessageSource, flag_own_source_message
from resolvers.submission.outgoing_messages import (
    SendRequest,
    future_send_at_within_limit,
    header_recipients,
)
from resolvers.submission.prepared_messages import (
    PreparedMessage,
    read_bcc_copy_recipients,
    store_blobs_of_message_and_copy,
)
from resolvers.submission.schedule import is_held
from resolvers.submission.sender_authorization import require_permitted_sender
from resolvers.users.quota import limits as quota_limits

INPUT_PATH = ["message"]
NO_SENT_FOLDER_WARNING = (
    "The message is sent. There is no mailbox with the special use SENT: the copy stays in the "
    "mailbox of the draft."
)


@dataclass(frozen=True, slots=True)
class DraftSendRequest:
    """The draft to send, the time, and whether its stored files are deleted."""

    message_id: int
    delete_files: bool = False  # the stored files of the draft
    send_at: datetime | None = None
    undo_window: timedelta | None = None


@dataclass(frozen=True, slots=True)
class _PreparedDraft:
    """A draft that is ready to be queued and moved to Sent."""

    draft_row: ColumnRow
    replaced: EarlierDraft
    sent_place: MessagePlacement
    message: PreparedMessage


class SubmittedDraft(NamedTuple):
    """A sent draft, with the facts that `store_blobs_for_draft_restoration` needs to undo it."""

    message: SentMessage
    restoration_facts: dict[str, Any]


async def submit_draft(ctx: Context, request: DraftSendRequest) -> SubmittedDraft:
    """Send a draft, which becomes the copy in Sent under the same id, all or nothing.

    The message gets a new Date. Also returns the facts that are needed to restore the draft. Raises
    Conflict if the message is no draft, NotFound, InvalidInput if it has no recipient or a wrong
    header, Forbidden if the account may not send as an author or the scanner rejects it, and
    RateLimited.
    """
    account = await composition.read_account(ctx, require_user_id(ctx))
    await quota_limits.require_below_sending_limits(ctx, account)
    prepared, warnings = await _repair_authorize_and_scan_draft(ctx, account, request)
    try:
        submission_id = await _store_blobs_queue_draft_return_submission(
            ctx, account, prepared, request, is_retry=False
        )
    except BlobRowDeleted:
        submission_id = await _store_blobs_queue_draft_return_submission(
            ctx, account, prepared, request, is_retry=True
        )
    row = prepared.draft_row
    sent_message = SentMessage(
        await ctx.load(submission_loaders.load_own_submissions_by_id, submission_id),
        await ctx.load(message_loaders.load_visible_by_ids, row.id),
        warnings,
    )
    return SubmittedDraft(
        sent_message, {"message": row.id, "mailbox": row.mailbox_id, "seen": row.seen}
    )


class _DraftWithWarnings(NamedTuple):
    """A draft that is ready to be queued, and the warnings for the sender."""

    draft: _PreparedDraft
    warnings: Sequence[tuple[WarningCode, str]]


async def _repair_authorize_and_scan_draft(
    ctx: Context, account: ColumnRow, request: DraftSendRequest
) -> _DraftWithWarnings:
    outgoing = SendRequest(send_at=request.send_at, undo_window=request.undo_window)
    row = await require_own_message(ctx, request.message_id)
    if not row.draft:
        raise Conflict("The message is not a draft: only drafts can be submitted.", path=INPUT_PATH)
    repaired = await _repair_draft(
        ctx, row, future_send_at_within_limit(ctx.environment, outgoing) or ctx.environment.now()
    )
    address_rows = [
        await require_permitted_sender(ctx, account, address, INPUT_PATH)
        for address in _author_addresses(repaired)
    ]
    sender = repaired.writers[0]
    recipients = _validated_header_recipients(ctx, repaired)
    await outgoing_scan.scan_and_require_sendable(ctx, account, repaired.raw, sender, recipients)
    message = copy = await parse_storable_message(repaired.raw)
    sent_mailbox, warnings = await _sent_or_current_mailbox(
        ctx, account, row, sender, address_rows[0]
    )
    try:
        copy = await openpgp_encryption.encrypt_if_required(
            ctx.environment, repaired.raw, message, account, sent_mailbox
        )
    except ServiceUnavailable as problem:
        raise Conflict(problem.message, path=INPUT_PATH) from problem
    placement = MessagePlacement(
        account.id,
        sent_mailbox.id,
        ctx.environment.now(),
        seen=True,
        envelope_from=sender,
        envelope_to=recipients,
        origin=ctx.origin,
    )
    final_mailbox_id = None
    if is_held(ctx.environment, outgoing):
        final_mailbox_id, placement = (
            placement.mailbox_id,
            await placement_in_ensured_scheduled_mailbox(ctx, placement),
        )
    replaced = await earlier_draft_from_row(ctx, row, must_be_draft=True)
    (copy_recipients,) = await read_bcc_copy_recipients(ctx, account, [(sender, recipients)])
    mail = PreparedMessage(
        message,
        copy,
        sender,
        recipients,
        placement,
        outgoing,
        copy_recipients,
        sent_mailbox_id=final_mailbox_id,
    )
    return _DraftWithWarnings(_PreparedDraft(row, replaced, placement, mail), warnings)


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


async def _repair_draft(ctx: Context, draft_row: ColumnRow, date: datetime) -> RepairedMessage:
    """Complete the header of a draft for sending, with this date.

    Raises InvalidInput if that is impossible.
    """
    (message,) = await message_open.open_messages_unlogged(ctx.environment, [draft_row], ctx.read)
    raw = await read_all(message.stream_raw())
    raw = remove_authentication_results_of_servers(raw, own_authserv_ids(ctx.environment.options))
    message_id = composition.new_message_id(ctx, draft_row.from_address or "")
    try:
        return await asyncio.to_thread(
            repair_message_or_raise, raw, date, message_id, replace_date=True
        )
    except InvalidInput as error:
        raise InvalidInput(error.message, constraint=error.constraint, path=INPUT_PATH) from error


def _author_addresses(repaired: RepairedMessage) -> list[str]:
    return [
        draft_validation.normalize_and_validate_address_with_index(writer, INPUT_PATH[0])
        for writer in dict.fromkeys(repaired.writers)
    ]


def _validated_header_recipients(ctx: Context, repaired: RepairedMessage) -> list[str]:
    """Return the recipients that the header names, each once.

    Raises InvalidInput if there are none.
    """
    addresses = dict[str, str]()
    for recipient in header_recipients(repaired, INPUT_PATH[0]):
        address = draft_validation.normalize_and_validate_address_with_index(
            recipient.address, INPUT_PATH[0]
        )
        addresses.setdefault(address.casefold(), address)
    max_recipients = ctx.environment.options.submission_max_recipients
    require_within_limit(
        len(addresses),
        max_recipients,
        f"A message has at most {max_recipients} recipients.",
        path=INPUT_PATH,
    )
    if not addresses:
        raise InvalidInput(
            "The message must have at least one recipient.",
            constraint=ValidationConstraint.REQUIRED,
            path=INPUT_PATH,
        )
    return list(addresses.values())


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
        ignores_quota=True,
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
    """Queue the message, replace the draft by the copy, and return the id of the submission."""
    owner, (message_blobs, copy), mail = require_user_id(ctx), stored_blobs, prepared.message
    submission_create.require_sending_allowed(transaction, owner)
    quota_limits.count_against_recipient_limit(transaction, owner, len(mail.recipients))
    inserted = draft_replacement.replace_draft_message(
        transaction, mail.copy, copy, prepared.sent_place, prepared.replaced
    )
    key = enqueue_message(transaction, ctx, mail, message_blobs, inserted)
    rate_limits.count_against_sending_rates(transaction, owner)
    return key


async def _mark_source_message(ctx: Context, session: AsyncSession, draft_row: ColumnRow) -> None:
    """Flag the message that the draft replies to or forwards, if it still exists."""
    if draft_row.source_id is not None and draft_row.source_relation:
        relation = MessageRelationKind(draft_row.source_relation)
        await flag_own_source_message(ctx, session, MessageSource(draft_row.source_id, relation))
