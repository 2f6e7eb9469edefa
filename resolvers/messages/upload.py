"""Storing of uploaded messages, complete or composed from fields; one can replace a draft."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import compress
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.authentication.results_removal import own_authserv_ids, remove_own_results, remove_results
from mail.compose import message_builder
from mail.mime.header_encoding import NamedAddress as Person
from mail.search import index_worker
from mail.storage import draft_replacement, message_opening, openpgp_encryption
from mail.storage.blobs.blob_writer import BlobRowDeleted, StoredMessageBlobs
from mail.storage.blobs.message_layout import NewBlob
from mail.storage.draft_replacement import INPUT_PATH, EarlierDraft
from mail.storage.message_content import StoredMessage
from mail.storage.message_insert import (
    SELECT_QUOTA,
    InsertedMessage,
    InsertItem,
    MessagePlacement,
    insert_message,
)
from mail.storage.received_messages import parse_storable_message, store_blobs
from mail.storage.storable_message import StorableMessage
from models.errors import (
    Conflict,
    ErrorCollector,
    Forbidden,
    InvalidInput,
    NotFound,
    OverQuota,
    check_limit,
    require_found,
)
from models.mailboxes.shares import ALL_RIGHTS, Rights, ShareRight
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import audit_log
from resolvers.context import Context
from resolvers.files import uploads
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.loaders import MailboxSelector, require_own_or_shared_mailbox
from resolvers.mailboxes.owners import load_managed_mail_owners, lock_mail_owners_and_log_change
from resolvers.messages import loaders as message_loaders
from resolvers.messages.loaders import is_not_deleted_sql
from resolvers.submission import composition, file_attachments, message_source
from resolvers.submission.attachments import AttachmentSelection
from resolvers.submission.composition import DraftBasis, MessageFields, PreviousDraft
from resolvers.submission.send_on_behalf import context_as_user
from resolvers.users.selection import UserSelector


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to store: complete (`raw`, `upload_id`, `received_source`), or from `fields`.

    `raw` is text or base64. With `fields` that refer to a message, and as a replacement of a draft,
    it is always a draft.
    """

    mailbox: MailboxSelector
    raw: str | None = None
    upload_id: int | None = None
    received_source: bytes | Path | None = None  # already received, within the limits
    fields: MessageFields | None = None
    is_seen: bool = True
    is_flagged: bool = False
    is_draft: bool = False
    received_at: datetime | None = None
    public_metadata: dict[str, Any] | None = None
    replaced_draft_id: int | None = None  # the draft that it replaces
    kept_attachments: AttachmentSelection | None = (
        None  # attachments of that draft, added to those in `fields`
    )


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """The stored message.

    `dropped_recipient_numbers` lists those in `to` without a complete address.
    """

    message: ColumnRow | None
    has_replaced_draft: bool = False
    dropped_recipient_numbers: Sequence[int] = ()


async def require_upload_allowed(ctx: Context, mailbox: MailboxSelector, byte_count: int) -> None:
    """Check that the viewer can store this many bytes in the mailbox, before they are received.

    Raises Forbidden, NotFound or OverQuota.
    """
    message_loaders.require_can_change_messages(ctx)
    box = await require_own_or_shared_mailbox(ctx, mailbox, ShareRight.INSERT)
    given = {"user": box.user_id, "platform": ctx.environment.options.users_default_quota}
    row = require_found(next(iter(await ctx.read(SELECT_QUOTA, given)), None))
    if row.allowed and row.used + byte_count > row.allowed:
        with mailbox_rights.hide_quota_figures_from_others(ctx, box.user_id):
            raise OverQuota(used=row.used, limit=row.allowed)


async def store_message(
    ctx: Context, new_message: NewMessage, problems: ErrorCollector | None = None
) -> StoredUpload:
    """Store the message.

    Raises OverQuota or NotFound, and Conflict or Stale for a draft that is replaced. All problems
    of the fields are raised together, with the `problems` found before.
    """
    problems = problems or ErrorCollector()
    user_id = require_user_id(ctx)
    mailbox = await require_own_or_shared_mailbox(ctx, new_message.mailbox, ShareRight.INSERT)
    account = await composition.read_account(ctx, user_id)
    previous = await _find_replaced_draft(ctx, new_message, mailbox)
    if new_message.fields:
        file_attachments.check_file_attachment_settings(new_message.fields.files, "files")
    new_message, dropped = _with_draft_mark_and_complete_recipients(new_message)
    if new_message.fields and not new_message.is_draft:
        _require_recipient_limit(ctx, new_message.fields)
    with problems.collecting():
        source = await _message_source(ctx, account, new_message, previous)
    problems.raise_collected()
    parsed_message = await parse_storable_message(source)
    to = _placement(
        ctx,
        new_message,
        mailbox,
        await ctx.load(mailbox_rights.load_rights, (mailbox.user_id, mailbox.id)),
    )
    before = await draft_to_replace(ctx, previous.message) if previous else None
    home = (
        account
        if mailbox.user_id == user_id
        else await composition.read_account(ctx, mailbox.user_id)
    )
    if not to.draft:
        parsed_message = await openpgp_encryption.encrypt_if_required(
            ctx.environment, source, parsed_message, home, mailbox
        )
    stored_blobs = await store_blobs(ctx.environment, home.tenant_id, parsed_message)
    files = [file.file_id for file in new_message.fields.files] if new_message.fields else []
    try:
        inserted = await _insert_or_replace_draft(
            ctx, parsed_message, stored_blobs, (to, before), files
        )
    except BlobRowDeleted:
        stored_blobs = await store_blobs(
            ctx.environment, home.tenant_id, parsed_message, store_again=True
        )
        inserted = await _insert_or_replace_draft(
            ctx, parsed_message, stored_blobs, (to, before), files
        )
    row = await ctx.load(message_loaders.load_visible_by_ids, inserted.message_id)
    return StoredUpload(row, before is not None, dropped)


async def store_for_users(
    ctx: Context,
    new_message: NewMessage,
    users: UserSelector,
    problems: ErrorCollector | None = None,
) -> tuple[list[ColumnRow], Sequence[int]]:
    """Store a message in the mailbox of each of these users: of all or of none.

    Only administrators can do this for other users. A message from fields is composed in the name
    of each user, without references and stored files, which administrators can't read. A draft can
    be replaced for one user only. Returns the messages, and the numbers of dropped recipients.
    Raises NotFound if a user lacks the mailbox, and OverQuota.
    """
    rows, problems = (
        await load_managed_mail_owners(ctx, users, "users"),
        problems or ErrorCollector(),
    )
    if len(rows) == 1 and (
        new_message.fields
        or new_message.replaced_draft_id is not None
        or new_message.kept_attachments
    ):
        return await _store_as_user(ctx, rows[0], new_message, problems)
    if new_message.replaced_draft_id is not None or new_message.kept_attachments:
        text = "a draft is replaced in one account: select one user"
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["users"])
    if new_message.fields:
        _require_recipient_limit(ctx, new_message.fields)
    new_message, dropped = _with_draft_mark_and_complete_recipients(new_message)
    mailboxes = await ctx.load_many(
        mailbox_loaders.load_by_selectors, [(row.id, new_message.mailbox) for row in rows]
    )
    for row, mailbox in zip(rows, mailboxes, strict=True):
        if mailbox is None:
            raise NotFound(f"{row.username}: {new_message.mailbox}", path=["mailbox"])
    problems.raise_collected()
    pairs = zip(rows, mailboxes, strict=True)
    targets = [
        UploadTarget(row, mailbox, _placement(ctx, new_message, mailbox))
        for row, mailbox in pairs
        if mailbox
    ]
    try:
        ids = await _compose_and_insert_for_each(
            ctx, new_message, targets, users, rewrite_blobs=False
        )
    except BlobRowDeleted:
        ids = await _compose_and_insert_for_each(
            ctx, new_message, targets, users, rewrite_blobs=True
        )
    return [
        row for row in await ctx.load_many(message_loaders.load_visible_by_ids, ids) if row
    ], dropped


async def _store_as_user(
    ctx: Context, user: ColumnRow, new_message: NewMessage, problems: ErrorCollector
) -> tuple[list[ColumnRow], Sequence[int]]:
    """Store a message as this user. It is logged if the viewer is another user."""
    async with ctx.combined_transaction():
        upload_result = await store_message(_context_of_user(ctx, user.id), new_message, problems)
        if user.id != ctx.viewer.user_id:
            async with ctx.write_session(user.id) as session:
                log = audit_log.NewAuditLogEntry("messageUpload", "User", user.id, user.domain_id)
                await audit_log.log_changes(ctx, session, log)
        ctx.clear_loaded()
        key = [upload_result.message.id] if upload_result.message else []
        return [
            one for one in await ctx.load_many(message_loaders.load_visible_by_ids, key) if one
        ], upload_result.dropped_recipient_numbers


def _context_of_user(ctx: Context, user_id: int) -> Context:
    """Return a context in which this user composes a message. It can't read mail or files."""
    return ctx if user_id == ctx.viewer.user_id else context_as_user(ctx, user_id)


async def _source_and_parsed_message(
    ctx: Context, new_message: NewMessage, user: ColumnRow | None
) -> tuple[bytes | Path, StorableMessage]:
    """Return the source of a message, complete or composed by this user, and the parsed message."""
    if user is not None:
        ctx = _context_of_user(ctx, user.id)
        user = await composition.read_account(ctx, user.id)
    source = await _message_source(ctx, user, new_message, None)
    return source, await parse_storable_message(source)


@dataclass(frozen=True, slots=True)
class UploadTarget:
    """A user and mailbox that an uploaded message is stored for, with the placement."""

    user: ColumnRow
    mailbox: ColumnRow
    placement: MessagePlacement


async def _compose_and_insert_for_each(
    ctx: Context,
    new_message: NewMessage,
    targets: Sequence[UploadTarget],
    users: UserSelector,
    *,
    rewrite_blobs: bool,
) -> list[int]:
    whole = None if new_message.fields else await _source_and_parsed_message(ctx, new_message, None)
    prepared_inserts = list[InsertItem]()
    stored_digests = set[tuple[int, str]]()  # with the tenant id
    for target in targets:
        source, unencrypted = whole or await _source_and_parsed_message(
            ctx, new_message, target.user
        )
        parsed_message = unencrypted
        if not target.placement.draft:
            parsed_message = await openpgp_encryption.encrypt_if_required(
                ctx.environment, source, unencrypted, target.user, target.mailbox
            )
        tenant_and_digest = (target.user.tenant_id, parsed_message.layout_blob.digest)
        stored_blobs = await store_blobs(
            ctx.environment,
            target.user.tenant_id,
            parsed_message,
            store_again=rewrite_blobs and tenant_and_digest not in stored_digests,
        )
        stored_digests.add(tenant_and_digest)
        if not whole or parsed_message is not unencrypted:
            parsed_message = _without_content(parsed_message)
        prepared_inserts.append(InsertItem(parsed_message, stored_blobs, target.placement))

    def insert_in_transaction(transaction: DatabaseTransaction) -> list[int]:
        return [insert_message(transaction, *item).message_id for item in prepared_inserts]

    async with lock_mail_owners_and_log_change(ctx, users, "messageUpload") as locked_owners:
        return await ctx.environment.run_in_session(locked_owners.session, insert_in_transaction)


def _without_content(parsed_message: StorableMessage) -> StorableMessage:
    """Return a parsed message without its bytes, which are stored already."""
    return replace(
        parsed_message,
        layout_blob=NewBlob(parsed_message.layout_blob.digest, b""),
        part_blobs=(),
        stored_blobs_by_tenant={},
    )


def _placement(
    ctx: Context, new_message: NewMessage, mailbox: Any, rights: Rights = ALL_RIGHTS
) -> MessagePlacement:
    """Return the placement in the mailbox.

    Flags that the rights exclude are left out (RFC 4314, section 4).
    """
    return MessagePlacement(
        mailbox.user_id,
        mailbox.id,
        new_message.received_at or ctx.environment.now(),
        seen=new_message.is_seen and ShareRight.SEEN in rights,
        flagged=new_message.is_flagged and ShareRight.WRITE in rights,
        draft=new_message.is_draft and ShareRight.WRITE in rights,
        public_metadata=new_message.public_metadata if ShareRight.WRITE in rights else None,
        source=message_source.source_columns(
            new_message.fields.source if new_message.fields else None
        ),
        origin=ctx.origin,
    )


async def _insert_or_replace_draft(
    ctx: Context,
    parsed_message: StorableMessage,
    stored_blobs: StoredMessageBlobs,
    placement_and_draft: tuple[MessagePlacement, EarlierDraft | None],
    file_ids: Sequence[int] = (),
) -> InsertedMessage:
    to, before = placement_and_draft

    def insert_in_transaction(transaction: DatabaseTransaction) -> InsertedMessage:
        if before:
            inserted = draft_replacement.replace_message(
                transaction, parsed_message, stored_blobs, to, before
            )
        else:
            inserted = insert_message(transaction, parsed_message, stored_blobs, to)
        if file_ids and to.draft:
            file_attachments.replace_file_list_of_draft(transaction, inserted.message_id, file_ids)
        return inserted

    async with ctx.write_session(to.user_id) as session:
        if to.user_id != require_user_id(ctx):  # the share may have ended
            await require_own_or_shared_mailbox(
                ctx, MailboxSelector(id=to.mailbox_id), ShareRight.INSERT
            )
        with mailbox_rights.hide_quota_figures_from_others(ctx, to.user_id):
            return await ctx.environment.run_in_session(session, insert_in_transaction)


def _require_recipient_limit(ctx: Context, fields: MessageFields) -> None:
    """Raise LimitReached for too many recipients or Reply-To addresses."""
    most = ctx.environment.options.submission_max_recipients
    used = sum(len(people or ()) for people in (fields.to, fields.cc, fields.bcc))
    check_limit(used, most, f"more than {most} recipients", path=["to"])
    check_limit(len(fields.reply_to or ()), most, f"more than {most} addresses", path=["replyTo"])


def _with_draft_mark_and_complete_recipients(
    new_message: NewMessage,
) -> tuple[NewMessage, list[int]]:
    """Return the message without recipients with an incomplete address, and their numbers."""
    fields = new_message.fields
    if new_message.replaced_draft_id is not None or (fields and fields.source):
        new_message = replace(new_message, is_draft=True)
    if not fields or not fields.to:
        return new_message, []
    whole = [_has_complete_address(person) for person in fields.to]
    to = list(compress(fields.to, whole))
    dropped = [nth for nth, fits in enumerate(whole) if not fits]
    return replace(new_message, fields=replace(fields, to=to)), dropped


def _has_complete_address(person: Person) -> bool:
    try:
        message_builder.validate_address(person.address, "to")
    except InvalidInput:
        return False
    return True


async def _find_replaced_draft(
    ctx: Context, new_message: NewMessage, mailbox: ColumnRow
) -> PreviousDraft | None:
    """Return the viewer's draft to replace. Raises NotFound, or Conflict if it is no draft."""
    if new_message.replaced_draft_id is None:
        if new_message.kept_attachments:
            raise InvalidInput(
                "attachments are kept of a draft that is replaced: name it in replaces",
                constraint=ValidationConstraint.REQUIRED,
                path=["keepAttachments"],
            )
        return None
    if mailbox.user_id != require_user_id(ctx):
        raise Forbidden("a draft stays with its account", path=["mailbox"])
    statement = select(*select_columns(Message)).where(
        col(Message.user_id) == require_user_id(ctx),
        is_not_deleted_sql(),
        col(Message.id) == new_message.replaced_draft_id,
    )
    row = require_found(
        next(iter(await ctx.read(statement)), None),
        str(new_message.replaced_draft_id),
        path=INPUT_PATH,
    )
    if not row.draft:
        raise Conflict("only a draft can be replaced", path=INPUT_PATH)
    (message,) = await message_opening.open_messages_unlogged(ctx.environment, [row], ctx.read)
    return PreviousDraft(message, new_message.kept_attachments)


async def draft_to_replace(ctx: Context, message: StoredMessage) -> EarlierDraft:
    """Return the draft to replace, with the search words it had when it was read."""
    row = message.row
    index_row = await index_worker.load_index_values(ctx.environment, row, message)
    return EarlierDraft(row.id, row.digest, index_row)


async def _message_source(
    ctx: Context,
    account: ColumnRow | None,
    new_message: NewMessage,
    replaced_draft: PreviousDraft | None,
) -> bytes | Path:
    """Return the bytes of the message. Raises InvalidInput unless exactly one source is given.

    `account` is the author if the message is composed from fields.
    """
    raw = "rawUpload" if new_message.upload_id is not None else "raw"
    sources = (
        new_message.raw,
        new_message.upload_id,
        new_message.received_source,
        new_message.fields,
    )
    given = sum(source_value is not None for source_value in sources)
    if given != 1:
        text = "give raw, rawUpload, or fields to write it from: one of them"
        raise InvalidInput(
            text,
            constraint=ValidationConstraint.EXCLUSIVE if given else ValidationConstraint.REQUIRED,
            path=[raw],
        )
    if new_message.received_source is not None:
        return await remove_own_results(ctx.environment.options, new_message.received_source)
    if new_message.fields is not None and account is not None:
        date = new_message.received_at or ctx.environment.now()
        head = await composition.resolve_sender_fields(
            ctx, account, new_message.fields, must_be_allowed=new_message.is_draft
        )
        draft = await composition.compose_draft(
            ctx, head, new_message.fields, DraftBasis(date, replaced_draft)
        )
        return await composition.build_message(draft)
    if new_message.kept_attachments:
        raise InvalidInput(
            "a whole message has its attachments",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["keepAttachments"],
        )
    return await bytes_of_complete_message(ctx, new_message.raw, new_message.upload_id)


async def bytes_of_complete_message(
    ctx: Context, raw_message: str | None, upload_id: int | None
) -> bytes:
    """Return a complete message, given as text or base64 or uploaded before.

    Raises InvalidInput.
    """
    path = ["rawUpload" if upload_id is not None else "raw"]
    if upload_id is not None:
        content = await uploads.read_and_verify_upload(ctx, upload_id, path="rawUpload")
    else:
        content = decode_raw_message(raw_message or "")
    limit = ctx.environment.options.message_max_size
    if not content.strip():
        raise InvalidInput(
            "the message is empty", constraint=ValidationConstraint.REQUIRED, path=path
        )
    check_limit(len(content), limit, f"a message has at most {limit} bytes", path=path)
    return remove_results(content, own_authserv_ids(ctx.environment.options))


def decode_raw_message(text: str) -> bytes:
    """Return the bytes of a message, given as text with any line ends or as base64.

    A message begins with a field name and a colon, which base64 never contains. Raises
    InvalidInput.
    """
    if ":" not in text:
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as problem:
            raise InvalidInput(
                "neither a message nor base64",
                constraint=ValidationConstraint.ENCODING,
                path=["raw"],
            ) from problem
    return text.replace("\r\n", "\n").replace("\n", "\r\n").encode()
