"""Send a stored draft, and make a message that is still held a draft again."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.authentication.results_removal import own_authserv_ids, remove_results
from mail.compose import message_builder
from mail.compose.submission_repair import RepairedMessage, repair_message
from mail.storage import draft_replacement, message_open, openpgp_encryption
from mail.storage.blobs.blob_writer import BlobRowDeleted, StoredMessageBlobs
from mail.storage.draft_replacement import EarlierDraft
from mail.storage.message_content import read_all
from mail.storage.message_insert import MessagePlacement
from mail.storage.received_messages import parse_storable_message, store_blobs
from mail.storage.storable_message import StorableMessage
from models.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    ServiceUnavailable,
    check_limit,
    require_found,
)
from models.mailboxes.tables import SpecialUse
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.submission.tables import Submission
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.special_mailboxes import placement_in_scheduled
from resolvers.messages import loaders as message_loaders
from resolvers.messages import message_import
from resolvers.messages.loaders import is_not_deleted_sql
from resolvers.queue import rate_limits
from resolvers.submission import composition, file_attachments, identities, outgoing_scan
from resolvers.submission import create as submission_create
from resolvers.submission import loaders as submission_loaders
from resolvers.submission.create import SentMessage
from resolvers.submission.enqueue import enqueue_message
from resolvers.submission.message_source import (
    MessageRelationKind,
    MessageSource,
    mark_source_message,
)
from resolvers.submission.outgoing_messages import SendRequest, future_send_at, header_recipients
from resolvers.submission.prepared_messages import (
    PreparedMessage,
    read_bcc_copy_recipients,
    store_message_blobs,
)
from resolvers.submission.schedule import is_held
from resolvers.submission.sender_authorization import authorize_sender
from resolvers.users.quota import limits as quota_limits

INPUT_PATH = ["message"]
NO_SENT_FOLDER_WARNING = "It is sent, but there is no folder Sent: it lies where it lay."


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


async def submit_draft(
    ctx: Context, request: DraftSendRequest
) -> tuple[SentMessage, dict[str, Any]]:
    """Send a draft, which becomes the copy in Sent under the same id, all or nothing.

    The message gets a new Date. Also returns the facts that `prepare_draft_restoration` needs to
    undo it. Raises Conflict if the message is no draft, NotFound, Invalid if it has no recipient
    or a wrong header, Forbidden if the account may not send as an author or the scanner rejects
    it, and RateLimited.
    """
    account = await composition.read_account(ctx, require_user_id(ctx))
    await quota_limits.require_below_sending_limits(ctx, account)
    prepared, warnings = await _prepare_draft(ctx, account, request)
    try:
        submission_id = await _store_prepared_draft(ctx, account, prepared, request, is_retry=False)
    except BlobRowDeleted:
        submission_id = await _store_prepared_draft(ctx, account, prepared, request, is_retry=True)
    row = prepared.draft_row
    sent_message = SentMessage(
        await ctx.load(submission_loaders.load_own_submissions_by_id, submission_id),
        await ctx.load(message_loaders.load_visible_by_ids, row.id),
        warnings,
    )
    return sent_message, {"message": row.id, "mailbox": row.mailbox_id, "seen": row.seen}


async def _prepare_draft(
    ctx: Context, account: ColumnRow, request: DraftSendRequest
) -> tuple[_PreparedDraft, Sequence[tuple[WarningCode, str]]]:
    outgoing = SendRequest(send_at=request.send_at, undo_window=request.undo_window)
    row = await _read_own_message(ctx, request.message_id)
    if not row.draft:
        raise Conflict("this is no draft: only drafts are submitted", path=INPUT_PATH)
    repaired = await _repair_draft(
        ctx, row, future_send_at(ctx.environment, outgoing) or ctx.environment.now()
    )
    address_rows = [
        await authorize_sender(ctx, account, each, INPUT_PATH)
        for each in _author_addresses(repaired)
    ]
    sender = repaired.writers[0]
    recipients = _recipients_of_header(ctx, repaired)
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
            await placement_in_scheduled(ctx, placement),
        )
    replaced = await _earlier_draft_from_row(ctx, row, must_be_draft=True)
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
    return _PreparedDraft(row, replaced, placement, mail), warnings


async def _read_own_message(ctx: Context, message_id: int) -> ColumnRow:
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


async def _repair_draft(ctx: Context, row: ColumnRow, date: datetime) -> RepairedMessage:
    """Complete the header of a draft for sending, with this date.

    Raises Invalid if that is impossible.
    """
    (message,) = await message_open.open_messages_unlogged(ctx.environment, [row], ctx.read)
    raw = await read_all(message.stream_raw())
    raw = remove_results(raw, own_authserv_ids(ctx.environment.options))
    message_id = composition.new_message_id(ctx, row.from_address or "")
    try:
        return await asyncio.to_thread(repair_message, raw, date, message_id, replace_date=True)
    except InvalidInput as error:
        raise InvalidInput(error.message, constraint=error.constraint, path=INPUT_PATH) from error


def _author_addresses(repaired: RepairedMessage) -> list[str]:
    return [
        message_builder.validate_address(each, INPUT_PATH[0])
        for each in dict.fromkeys(repaired.writers)
    ]


def _recipients_of_header(ctx: Context, repaired: RepairedMessage) -> list[str]:
    """Return the recipients that the header names, each once. Raises Invalid if there are none."""
    addresses = dict[str, str]()
    for recipient in header_recipients(repaired, INPUT_PATH[0]):
        address = message_builder.validate_address(recipient.address, INPUT_PATH[0])
        addresses.setdefault(address.casefold(), address)
    max_recipients = ctx.environment.options.submission_max_recipients
    check_limit(
        len(addresses), max_recipients, f"more than {max_recipients} recipients", path=INPUT_PATH
    )
    if not addresses:
        raise InvalidInput(
            "nobody to send it to", constraint=ValidationConstraint.REQUIRED, path=INPUT_PATH
        )
    return list(addresses.values())


async def _sent_mailbox(
    ctx: Context, account: ColumnRow, sender: str, address_row: ColumnRow | None
) -> ColumnRow | None:
    """Return the mailbox for copies of this sender, or None if there is none."""
    identity = await identities.identity_of_sender(ctx, account, sender, address_row)
    mailbox_refs = [mailbox_loaders.MailboxSelector(special_use=SpecialUse.SENT)]
    if identity and identity.mailbox_id is not None:
        mailbox_refs.insert(0, mailbox_loaders.MailboxSelector(id=identity.mailbox_id))
    boxes = await mailbox_loaders.load_by_selectors(
        ctx, [(account.id, name) for name in mailbox_refs]
    )
    return next((box for box in boxes if box is not None), None)


async def _sent_or_current_mailbox(
    ctx: Context, account: ColumnRow, row: ColumnRow, sender: str, address_row: ColumnRow | None
) -> tuple[ColumnRow, Sequence[tuple[WarningCode, str]]]:
    """Return the mailbox for copies of this sender, or else the draft's own with a warning."""
    sent_mailbox = await _sent_mailbox(ctx, account, sender, address_row)
    if sent_mailbox is not None:
        return sent_mailbox, []
    (current_mailbox,) = await mailbox_loaders.load_by_selectors(
        ctx, [(account.id, mailbox_loaders.MailboxSelector(id=row.mailbox_id))]
    )
    return require_found(current_mailbox, path=INPUT_PATH), [
        (WarningCode.NOT_SAVED_TO_SENT, NO_SENT_FOLDER_WARNING)
    ]


async def _earlier_draft_from_row(
    ctx: Context, row: ColumnRow, *, must_be_draft: bool
) -> EarlierDraft:
    (message,) = await message_open.open_messages_unlogged(ctx.environment, [row], ctx.read)
    readable = await message_import.draft_to_replace(ctx, message, INPUT_PATH)
    return EarlierDraft(
        row.id,
        row.digest,
        readable.indexed_words,
        tuple(INPUT_PATH),
        must_be_draft=must_be_draft,
        ignores_quota=True,
    )


async def _store_prepared_draft(
    ctx: Context,
    account: ColumnRow,
    prepared: _PreparedDraft,
    request: DraftSendRequest,
    *,
    is_retry: bool,
) -> int:
    stored_blobs = await store_message_blobs(ctx, account, prepared.message, is_retry=is_retry)
    with quota_limits.convert_exceeded_limits(ctx):
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
    submission_create.check_may_send(transaction, owner)
    quota_limits.count_against_recipient_limit(transaction, owner, len(mail.recipients))
    inserted = draft_replacement.replace_message(
        transaction, mail.copy, copy, prepared.sent_place, prepared.replaced
    )
    key = enqueue_message(transaction, ctx, mail, message_blobs, inserted)
    rate_limits.count_against_sending_rates(transaction, owner)
    return key


async def _mark_source_message(ctx: Context, session: AsyncSession, draft_row: ColumnRow) -> None:
    """Flag the message that the draft replies to or forwards, if it still exists."""
    if draft_row.source_id is not None and draft_row.source_relation:
        relation = MessageRelationKind(draft_row.source_relation)
        await mark_source_message(ctx, session, MessageSource(draft_row.source_id, relation))


@dataclass(frozen=True, slots=True)
class RestoredDraft:
    """A sent message that becomes a draft again."""

    message: StorableMessage
    stored_blobs: StoredMessageBlobs
    place: MessagePlacement
    replaced: EarlierDraft


async def prepare_draft_restoration(
    ctx: Context, undo_facts: Mapping[str, Any]
) -> RestoredDraft | None:
    """Prepare what an undo token restores, or None if the message was deleted."""
    draft = undo_facts.get("draft")
    if not draft:
        return None
    try:
        row = await _read_own_message(ctx, draft["message"])
    except NotFound:
        return None
    statement = select(*select_columns(Submission, {"id", "blob_id", "tenant_id"})).where(
        col(Submission.id) == undo_facts["submissions"][0],
        col(Submission.user_id) == require_user_id(ctx),
    )
    submission = require_found(next(iter(await ctx.read(statement)), None), path=["token"])
    content = await message_open.open_submission(ctx.environment, submission.id, submission.blob_id)
    message = await parse_storable_message(await read_all(content.stream_raw()))
    stored_blobs = await store_blobs(ctx.environment, submission.tenant_id, message)
    placement = MessagePlacement(
        require_user_id(ctx),
        await _draft_mailbox_id(ctx, draft["mailbox"]),
        ctx.environment.now(),
        seen=draft["seen"],
        draft=True,
        origin=ctx.origin,
    )
    return RestoredDraft(
        message,
        stored_blobs,
        placement,
        await _earlier_draft_from_row(ctx, row, must_be_draft=False),
    )


async def _draft_mailbox_id(ctx: Context, previous_mailbox_id: int) -> int:
    """Return the mailbox the draft was in if it still exists, else Drafts, else INBOX."""
    mailbox_refs = [
        mailbox_loaders.MailboxSelector(id=previous_mailbox_id),
        mailbox_loaders.MailboxSelector(special_use=SpecialUse.DRAFTS),
        mailbox_loaders.MailboxSelector(path="INBOX"),
    ]
    boxes = await mailbox_loaders.load_by_selectors(
        ctx, [(require_user_id(ctx), name) for name in mailbox_refs]
    )
    box = require_found(next((box for box in boxes if box is not None), None), path=["token"])
    return int(box.id)


async def restore_draft(ctx: Context, session: AsyncSession, restored: RestoredDraft) -> None:
    """Make the message a draft again, in the transaction that cancels the submission."""
    await ctx.environment.run_in_session(
        session,
        lambda transaction: draft_replacement.replace_message(
            transaction, restored.message, restored.stored_blobs, restored.place, restored.replaced
        ),
    )
