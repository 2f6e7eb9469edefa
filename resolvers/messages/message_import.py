"""Store complete messages in mailboxes; one can replace a draft."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.authentication.results_removal import (
    own_authserv_ids,
    remove_authentication_results_of_servers,
    remove_own_results,
)
from mail.search import index_worker
from mail.storage import draft_replacement, message_open, openpgp_encryption
from mail.storage.blobs.blob_writer import BlobRowDeleted, StoredMessageBlobs
from mail.storage.blobs.message_layout import NewBlob
from mail.storage.draft_replacement import INPUT_PATH, EarlierDraft
from mail.storage.message_content import StoredMessage
from mail.storage.message_flags import MAX_KEYWORDS, unique_keywords
from mail.storage.message_insert import (
    InsertedMessage,
    InsertItem,
    MessagePlacement,
    insert_message_and_take_quota,
)
from mail.storage.quota import SELECT_QUOTA, InsertKind
from mail.storage.received_messages import parse_storable_message, store_blobs_once_per_tenant
from mail.storage.storable_message import StorableMessage
from models.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    OverQuota,
    require_found,
    require_within_limit,
)
from models.files.tables import FileShare
from models.mailboxes.shares import ALL_RIGHTS, Rights, ShareRight
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import audit_log
from resolvers.context import Context
from resolvers.files import shares as file_shares
from resolvers.files import uploads
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.loaders import MailboxSelector, require_own_or_shared_mailbox
from resolvers.mailboxes.owners import (
    lock_mail_owners_and_audit_change,
    require_permitted_mail_owners,
)
from resolvers.messages import loaders as message_loaders
from resolvers.messages.bulk import flag_changes
from resolvers.messages.listing import is_not_deleted_sql
from resolvers.submission import composition, file_attachments
from resolvers.submission.file_attachments import DraftFileChanges
from resolvers.submission.send_on_behalf import context_as_user
from resolvers.users.selection import UserSelector


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A complete message to store: `raw`, `upload_id` or `received_source`.

    `raw` is text or base64. As a replacement of a draft, it is always a draft.
    """

    mailbox: MailboxSelector
    raw: str | None = None
    upload_id: int | None = None
    received_source: bytes | Path | None = None  # already received, within the limits
    is_seen: bool = True
    is_flagged: bool = False
    is_draft: bool = False
    keywords: Sequence[str] = ()
    received_at: datetime | None = None
    public_metadata: dict[str, Any] | None = None
    replaced_draft_id: int | None = None


async def require_message_storable_in_mailbox(
    ctx: Context, mailbox: MailboxSelector, byte_count: int
) -> None:
    """Check that the viewer can store this many bytes in the mailbox, before they are received.

    Raises Forbidden, NotFound or OverQuota.
    """
    message_loaders.require_can_change_messages(ctx)
    mailbox_row = await require_own_or_shared_mailbox(ctx, mailbox, ShareRight.INSERT)
    parameters = {
        "user": mailbox_row.user_id,
        "platform": ctx.environment.options.users_default_quota,
    }
    row = require_found(next(iter(await ctx.read(SELECT_QUOTA, parameters)), None))
    if row.allowed and row.used + byte_count > row.allowed:
        with mailbox_rights.hide_quota_figures_from_others(ctx, mailbox_row.user_id):
            raise OverQuota(used=row.used, limit=row.allowed)


async def store_imported_message_and_load_if_readable(
    ctx: Context, new_message: NewMessage
) -> ColumnRow | None:
    """Store the message and return it; None if the viewer can't read it.

    Raises OverQuota or NotFound, and Conflict or StaleObject for a draft that is replaced.
    """
    mailbox = await require_own_or_shared_mailbox(ctx, new_message.mailbox, ShareRight.INSERT)
    replaced = await _require_replaced_draft_if_given(ctx, new_message, mailbox)
    if replaced:
        new_message = replace(new_message, is_draft=True)
    source = await _read_single_source_without_own_results(ctx, new_message)
    parsed_message = await parse_storable_message(source)
    share_rights = await ctx.load(mailbox_rights.load_viewer_rights, (mailbox.user_id, mailbox.id))
    placement = _placement_within_rights(ctx, new_message, mailbox, share_rights)
    earlier = await draft_to_replace(ctx, replaced, INPUT_PATH) if replaced else None
    owner = await composition.read_account(ctx, mailbox.user_id)
    if not placement.draft:
        parsed_message = await openpgp_encryption.encrypt_if_required(
            ctx.environment, source, parsed_message, owner, mailbox
        )
    insert = MessageInsert(parsed_message, owner.tenant_id, placement, earlier)
    message_id = await insert_message_or_replace_draft(ctx, insert)
    return await ctx.load(message_loaders.load_visible_by_ids, message_id)


async def store_message_for_users(
    ctx: Context, new_message: NewMessage, users: UserSelector
) -> list[ColumnRow]:
    """Store a message in the mailbox of each of these users: of all or of none.

    Only administrators can do this for other users. A draft can be replaced for one user only.
    Raises NotFound if a user lacks the mailbox, and OverQuota.
    """
    rows = await require_permitted_mail_owners(ctx, users, "users")
    if new_message.replaced_draft_id is not None:
        if len(rows) == 1:
            return await _store_as_user_and_log(ctx, rows[0], new_message)
        text = "A draft can only be replaced in one account: select one user."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["users"])
    mailboxes = await ctx.load_many(
        mailbox_loaders.load_visible_by_selectors, [(row.id, new_message.mailbox) for row in rows]
    )
    for row, mailbox in zip(rows, mailboxes, strict=True):
        if mailbox is None:
            raise NotFound(f"{row.username}: {new_message.mailbox}", path=["mailbox"])
    pairs = zip(rows, mailboxes, strict=True)
    targets = [
        ImportTarget(row, mailbox, _placement_within_rights(ctx, new_message, mailbox))
        for row, mailbox in pairs
        if mailbox
    ]
    try:
        ids = await _insert_message_for_each_user(
            ctx, new_message, targets, users, rewrite_blobs=False
        )
    except BlobRowDeleted:
        ids = await _insert_message_for_each_user(
            ctx, new_message, targets, users, rewrite_blobs=True
        )
    return [row for row in await ctx.load_many(message_loaders.load_visible_by_ids, ids) if row]


async def _store_as_user_and_log(
    ctx: Context, user: ColumnRow, new_message: NewMessage
) -> list[ColumnRow]:
    """Store a message as this user. It is logged if the viewer is another user."""
    async with ctx.combined_transaction():
        stored = await store_imported_message_and_load_if_readable(
            _context_of_user(ctx, user.id), new_message
        )
        if user.id != ctx.viewer.user_id:
            async with ctx.write_session(user.id) as session:
                log = audit_log.NewAuditLogEntry("messageImport", "User", user.id, user.domain_id)
                await audit_log.insert_audit_log_entries(ctx, session, log)
        ctx.clear_loaded()
        ids = [stored.id] if stored else []
        return [row for row in await ctx.load_many(message_loaders.load_visible_by_ids, ids) if row]


def _context_of_user(ctx: Context, user_id: int) -> Context:
    """Return a context in which this user stores a message. It can't read mail or files."""
    return ctx if user_id == ctx.viewer.user_id else context_as_user(ctx, user_id)


@dataclass(frozen=True, slots=True)
class ImportTarget:
    """A user and mailbox that a message is stored for, with the placement."""

    user: ColumnRow
    mailbox: ColumnRow
    placement: MessagePlacement


async def _insert_message_for_each_user(
    ctx: Context,
    new_message: NewMessage,
    targets: Sequence[ImportTarget],
    users: UserSelector,
    *,
    rewrite_blobs: bool,
) -> list[int]:
    source = await _read_single_source_without_own_results(ctx, new_message)
    unencrypted = await parse_storable_message(source)
    prepared_inserts = list[InsertItem]()
    stored_digests = set[tuple[int, str]]()  # with the tenant id
    for target in targets:
        parsed_message = unencrypted
        if not target.placement.draft:
            parsed_message = await openpgp_encryption.encrypt_if_required(
                ctx.environment, source, unencrypted, target.user, target.mailbox
            )
        tenant_and_digest = (target.user.tenant_id, parsed_message.layout_blob.digest)
        stored_blobs = await store_blobs_once_per_tenant(
            ctx.environment,
            target.user.tenant_id,
            parsed_message,
            store_again=rewrite_blobs and tenant_and_digest not in stored_digests,
        )
        stored_digests.add(tenant_and_digest)
        if parsed_message is not unencrypted:
            parsed_message = _without_message_bytes(parsed_message)
        prepared_inserts.append(InsertItem(parsed_message, stored_blobs, target.placement))

    def insert_in_transaction(transaction: DatabaseTransaction) -> list[int]:
        return [
            insert_message_and_take_quota(
                transaction, *item, kind=InsertKind.ADDED_BY_USER
            ).message_id
            for item in prepared_inserts
        ]

    async with lock_mail_owners_and_audit_change(ctx, users, "messageImport") as locked_owners:
        return await ctx.environment.run_in_session(locked_owners.session, insert_in_transaction)


def _without_message_bytes(parsed_message: StorableMessage) -> StorableMessage:
    """Return a parsed message without its bytes, which are stored already."""
    return replace(
        parsed_message,
        layout_blob=NewBlob(parsed_message.layout_blob.digest, b""),
        part_blobs=(),
        stored_blobs_by_tenant={},
    )


def _placement_within_rights(
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
        keywords=new_message.keywords if ShareRight.WRITE in rights else (),
        public_metadata=new_message.public_metadata if ShareRight.WRITE in rights else None,
        origin=ctx.origin,
    )


@dataclass(frozen=True, slots=True)
class MessageInsert:
    """A message to insert, or to put in the place of an earlier draft."""

    message: StorableMessage
    tenant_id: int
    placement: MessagePlacement
    earlier: EarlierDraft | None = None
    files: DraftFileChanges | None = None
    shares: Sequence[FileShare] = ()  # links to stored files of the viewer, to create


async def insert_message_or_replace_draft(ctx: Context, insert: MessageInsert) -> int:
    """Store the blobs of a message, and its row in one transaction. Return the id of the message.

    If a blob is deleted in between, both are done once more.
    """
    environment, tenant_id, message = ctx.environment, insert.tenant_id, insert.message
    try:
        blobs = await store_blobs_once_per_tenant(environment, tenant_id, message)
        return (await _insert_in_session(ctx, insert, blobs)).message_id
    except BlobRowDeleted:
        blobs = await store_blobs_once_per_tenant(environment, tenant_id, message, store_again=True)
        return (await _insert_in_session(ctx, insert, blobs)).message_id


async def _insert_in_session(
    ctx: Context, insert: MessageInsert, blobs: StoredMessageBlobs
) -> InsertedMessage:
    placement = insert.placement

    def insert_in_transaction(transaction: DatabaseTransaction) -> InsertedMessage:
        if insert.earlier:
            inserted = draft_replacement.replace_draft_message(
                transaction, InsertItem(insert.message, blobs, placement), insert.earlier
            )
        else:
            inserted = insert_message_and_take_quota(
                transaction, insert.message, blobs, placement, kind=InsertKind.ADDED_BY_USER
            )
        if placement.draft and insert.files:
            file_attachments.change_file_list_of_draft(
                transaction, inserted.message_id, insert.files
            )
        return inserted

    owner_ids = {placement.user_id, *(share.user_id for share in insert.shares)}
    async with ctx.write_session(*sorted(owner_ids)) as session:
        await file_shares.insert_shares(ctx, session, insert.shares)
        if placement.user_id != require_user_id(ctx):  # the share may have ended
            await require_own_or_shared_mailbox(
                ctx, MailboxSelector(id=placement.mailbox_id), ShareRight.INSERT
            )
        with mailbox_rights.hide_quota_figures_from_others(ctx, placement.user_id):
            return await ctx.environment.run_in_session(session, insert_in_transaction)


def validated_keywords(names: Sequence[str]) -> list[str]:
    """Return valid keywords, each once. Raises InvalidInput if there are too many."""
    keywords = list[str]()
    for index, name in enumerate(names):
        try:
            keywords.append(flag_changes.validate_keyword(name))
        except InvalidInput as error:
            path = ["keywords", str(index)]
            raise InvalidInput(error.message, constraint=error.constraint, path=path) from error
    keywords = unique_keywords(keywords)
    if len(keywords) > MAX_KEYWORDS:
        text = f"A message has at most {MAX_KEYWORDS} keywords."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["keywords"])
    return keywords


async def _require_replaced_draft_if_given(
    ctx: Context, new_message: NewMessage, mailbox: ColumnRow
) -> StoredMessage | None:
    """Return the viewer's draft to replace; None if none is given.

    Raises NotFound, Conflict if it is no draft, and Forbidden for a mailbox of another user.
    """
    if new_message.replaced_draft_id is None:
        return None
    if mailbox.user_id != require_user_id(ctx):
        raise Forbidden("A draft can't be moved to another user's mailbox.", path=["mailbox"])
    return await require_own_draft(ctx, new_message.replaced_draft_id, INPUT_PATH)


async def require_own_draft(ctx: Context, message_id: int, path: Sequence[str]) -> StoredMessage:
    """Return a draft of the viewer. Raises NotFound, or Conflict if it is no draft."""
    statement = select(*select_columns(Message)).where(
        col(Message.user_id) == require_user_id(ctx),
        is_not_deleted_sql(),
        col(Message.id) == message_id,
    )
    draft_row = next(iter(await ctx.read(statement)), None)
    row = require_found(draft_row, str(message_id), path=path)
    if not row.draft:
        raise Conflict("The message is not a draft.", path=path)
    (message,) = await message_open.open_messages_unlogged(ctx.environment, [row], ctx.read)
    return message


async def draft_to_replace(
    ctx: Context, message: StoredMessage, path: Sequence[str]
) -> EarlierDraft:
    """Return the draft to replace, with the search words it had when it was read.

    `path` is that of the input field with the draft, for errors.
    """
    row = message.row
    index_row = await index_worker.load_index_values(ctx.environment, row, message)
    return EarlierDraft(row.id, row.sha256, index_row, path)


async def _read_single_source_without_own_results(
    ctx: Context, new_message: NewMessage
) -> bytes | Path:
    """Read the message to import, and remove Authentication-Results in the name of this server.

    `received_source` is used if it is given; a file is rewritten in place. Otherwise raises
    InvalidInput unless exactly one of `raw` and `rawUpload` is given and is valid.
    """
    if new_message.received_source is not None:
        return await remove_own_results(ctx.environment.options, new_message.received_source)
    has_raw, has_upload = new_message.raw is not None, new_message.upload_id is not None
    if has_raw is has_upload:
        text = "Exactly one of `raw` and `rawUpload` is required."
        if has_raw:
            path = ["rawUpload"]
            raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=path)
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=["raw"])
    return await read_message_bytes_without_own_results(ctx, new_message.raw, new_message.upload_id)


async def read_message_bytes_without_own_results(
    ctx: Context, raw_message: str | None, upload_id: int | None
) -> bytes:
    """Return a complete message, given as text or base64 or uploaded before.

    Raises InvalidInput.
    """
    path = ["rawUpload" if upload_id is not None else "raw"]
    if upload_id is not None:
        content = await uploads.read_and_verify_upload(ctx, upload_id, path="rawUpload")
    else:
        content = message_bytes_from_text_or_base64(raw_message or "")
    limit = ctx.environment.options.message_max_size
    if not content.strip():
        raise InvalidInput(
            "The message must not be empty.", constraint=ValidationConstraint.REQUIRED, path=path
        )
    require_within_limit(len(content), limit, f"A message has at most {limit} bytes.", path=path)
    return remove_authentication_results_of_servers(
        content, own_authserv_ids(ctx.environment.options)
    )


def message_bytes_from_text_or_base64(text: str) -> bytes:
    """Return the bytes of a message, given as text with any line ends or as base64.

    A message begins with a field name and a colon, which base64 never contains. Raises
    InvalidInput.
    """
    if ":" not in text:
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as problem:
            raise InvalidInput(
                "`raw` must be an RFC 5322 message or base64.",
                constraint=ValidationConstraint.ENCODING,
                path=["raw"],
            ) from problem
    return text.replace("\r\n", "\n").replace("\n", "\r\n").encode()
