"""Save drafts: create one, or change fields of one that keeps its id."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from mail.compose import draft_validation
from mail.compose.message_draft import OutgoingFile
from mail.mime.header_encoding import NamedAddress
from mail.storage import openpgp_encryption
from mail.storage.draft_replacement import EarlierDraft
from mail.storage.message_content import StoredMessage
from mail.storage.message_insert import MessagePlacement
from mail.storage.received_messages import parse_storable_message
from models.errors import (
    ErrorCollector,
    Forbidden,
    InvalidInput,
    NotFound,
    RequestError,
    StaleObject,
    raise_errors,
    require_found,
)
from models.files.tables import FileShare
from models.mailboxes.shares import Rights, ShareRight
from models.mailboxes.tables import SpecialUse
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import audit_log
from resolvers.context import Context
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.loaders import MailboxSelector, require_own_or_shared_mailbox
from resolvers.mailboxes.owners import require_permitted_mail_owners
from resolvers.messages import loaders as message_loaders
from resolvers.messages import message_import
from resolvers.messages.message_import import MessageInsert
from resolvers.submission import composition, file_attachments, message_source
from resolvers.submission.attachments import UploadedAttachment
from resolvers.submission.composition import (
    DraftBasis,
    MessageFields,
    PreviousDraft,
    SenderFields,
)
from resolvers.submission.drafts import content as draft_content
from resolvers.submission.file_attachments import (
    DraftFileChanges,
    StoredFileAttachment,
    UrlFromPath,
    path_unchanged,
)
from resolvers.submission.message_source import MessageSource
from resolvers.submission.send_on_behalf import context_as_user
from resolvers.users.selection import UserSelector

DRAFT_PATH = ("draft",)
_ADDED_PATH = ("set", "addAttachments")
_REMOVED_PATH = ("set", "removeAttachments")
_BODY_FIELDS = frozenset({"text", "html"})
_SENDER_FIELDS = frozenset({"from_", "identity"})


@dataclass(frozen=True, slots=True)
class DraftChanges:
    """Changes to the fields of a draft.

    `fields` has the new value of each field of MessageFields that changes, by its name.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    added_attachments: Sequence[OutgoingFile | UploadedAttachment] = ()
    removed_attachments: Sequence[tuple[int, int]] = ()  # message id, and number from 0
    added_files: Sequence[StoredFileAttachment] = ()
    added_links: Sequence[StoredFileAttachment] = ()
    public_metadata: dict[str, Any] | None = None
    clears_metadata: bool = False

    @property
    def changes_body(self) -> bool:
        """True if the text, the HTML or an attachment changes."""
        return bool(
            _BODY_FIELDS & self.fields.keys()
            or self.added_attachments
            or self.removed_attachments
            or self.added_files
            or self.added_links
        )

    @property
    def is_empty(self) -> bool:
        """True if nothing changes."""
        has_metadata = self.public_metadata is not None or self.clears_metadata
        return not (self.fields or self.changes_body or has_metadata)


@dataclass(frozen=True, slots=True)
class DraftSaveRequest:
    """The draft to save. Without `draft_id`, a new one is created."""

    changes: DraftChanges
    draft_id: int | None = None
    mailbox: MailboxSelector | None = None  # None: the draft's own, or Drafts for a new one
    source: MessageSource | None = None  # the message that a new draft answers or forwards
    unchanged_since_modseq: int | None = None
    url_from_path: UrlFromPath = path_unchanged  # returns the URL of a path on this server


@dataclass(frozen=True, slots=True)
class SavedDraft:
    """The saved draft, and the positions in `to` of recipients without a complete address."""

    message: ColumnRow | None  # None if the viewer can't read it
    dropped_recipient_numbers: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class _ComposedDraft:
    """The bytes of a draft, its mailbox, and the draft that it replaces."""

    raw: bytes
    mailbox: ColumnRow
    placement: MessagePlacement
    earlier: EarlierDraft | None
    files: DraftFileChanges
    shares: Sequence[FileShare] = ()  # links to create


async def save_draft_of_user(
    ctx: Context,
    request: DraftSaveRequest,
    user: UserSelector | None,
    problems: ErrorCollector,
) -> SavedDraft:
    """Save a draft of this user, by default of the viewer.

    Only administrators can save drafts of other users, without reading their mail and files; this
    is logged. Raises as `save_draft`.
    """
    if user is None:
        return await save_draft(ctx, request, problems)
    (owner,) = await require_permitted_mail_owners(ctx, user, "user")
    if owner.id == ctx.viewer.user_id:
        return await save_draft(ctx, request, problems)
    async with ctx.combined_transaction():
        saved = await save_draft(context_as_user(ctx, owner.id), request, problems)
        async with ctx.write_session(owner.id) as session:
            log = audit_log.NewAuditLogEntry("draftSave", "User", owner.id, owner.domain_id)
            await audit_log.insert_audit_log_entries(ctx, session, log)
        ctx.clear_loaded()
        if saved.message is None:
            return saved
        row = await ctx.load(message_loaders.load_visible_by_ids, saved.message.id)
        return SavedDraft(row, saved.dropped_recipient_numbers)


async def save_draft(
    ctx: Context, request: DraftSaveRequest, problems: ErrorCollector
) -> SavedDraft:
    """Create a draft, or change one of the viewer, which keeps its id and gets a new UID.

    Raises NotFound, OverQuota, Conflict if the message is no draft, and StaleObject if it changed
    during the save or after `unchanged_since_modseq`. All problems of the fields are raised
    together, with the `problems` found before.
    """
    account = await composition.read_account(ctx, require_user_id(ctx))
    previous = await _require_unchanged_draft_if_given(ctx, request)
    if previous is not None:
        _require_valid_draft_update(request)
    mailbox = await _require_mailbox_of_draft(ctx, request, previous)
    file_attachments.require_valid_file_attachments(request.changes.added_files, "addFiles")
    file_attachments.require_valid_file_attachments(
        request.changes.added_links, file_attachments.LINKS_FIELD_NAME
    )
    changes, dropped = _without_incomplete_recipients(request.changes)
    composed: _ComposedDraft | None = None
    with problems.collecting():
        composed = await _compose_draft(
            ctx, account, mailbox, replace(request, changes=changes), previous
        )
    problems.raise_collected()
    message_id = await _store_draft(ctx, account, require_found(composed))
    row = await ctx.load(message_loaders.load_visible_by_ids, message_id)
    return SavedDraft(row, dropped)


def _require_valid_draft_update(request: DraftSaveRequest) -> None:
    """Raise InvalidInput if a change of a draft has nothing to change, or a source."""
    if request.source is not None:
        text = "The source of a draft can only be set when it is created."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["original"])
    if request.changes.is_empty and request.mailbox is None:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )


async def _require_unchanged_draft_if_given(
    ctx: Context, request: DraftSaveRequest
) -> PreviousDraft | None:
    """Return the viewer's draft to change. Raises NotFound, Conflict and StaleObject."""
    removed = request.changes.removed_attachments
    if request.draft_id is None:
        if removed:
            raise NotFound(str(removed[0][0]), path=[*_REMOVED_PATH, "0"])
        return None
    message = await message_import.require_own_draft(ctx, request.draft_id, DRAFT_PATH)
    row = message.row
    since = request.unchanged_since_modseq
    if since is not None and row.modseq > since:
        raise StaleObject(current_modseq=row.modseq, path=["ifUnchangedSince"])
    for index, (message_id, number) in enumerate(removed):
        if message_id != row.id or number >= len(row.attachments):
            raise NotFound(str(message_id), path=[*_REMOVED_PATH, str(index)])
    return PreviousDraft(message, removed_numbers=frozenset(number for _, number in removed))


async def _require_mailbox_of_draft(
    ctx: Context, request: DraftSaveRequest, previous: PreviousDraft | None
) -> ColumnRow:
    """Return the mailbox to store the draft in. Raises NotFound, and Forbidden."""
    drafts_selector = MailboxSelector(special_use=SpecialUse.DRAFTS)
    if previous is not None:
        drafts_selector = MailboxSelector(id=previous.message.row.mailbox_id)
    mailbox = await require_own_or_shared_mailbox(
        ctx, request.mailbox or drafts_selector, ShareRight.INSERT
    )
    if previous is not None and mailbox.user_id != require_user_id(ctx):
        raise Forbidden("A draft can't be moved to another user's mailbox.", path=["mailbox"])
    return mailbox


class _CompleteDraftChanges(NamedTuple):
    """Changes without incomplete recipients, and the indexes of those left out."""

    changes: DraftChanges
    omitted_indexes: list[int]


def _without_incomplete_recipients(changes: DraftChanges) -> _CompleteDraftChanges:
    """Return the changes without recipients in To with an incomplete address, and their numbers."""
    people: Sequence[NamedAddress] = changes.fields.get("to") or ()
    dropped: list[int] = [n for n, person in enumerate(people) if not _has_complete_address(person)]
    if not dropped:
        return _CompleteDraftChanges(changes, [])
    complete_people = [person for n, person in enumerate(people) if n not in dropped]
    return _CompleteDraftChanges(
        replace(changes, fields={**changes.fields, "to": complete_people}), dropped
    )


def _has_complete_address(person: NamedAddress) -> bool:
    try:
        draft_validation.normalize_and_validate_address_with_index(person.address, "to")
    except InvalidInput:
        return False
    return True


async def _compose_draft(
    ctx: Context,
    account: ColumnRow,
    mailbox: ColumnRow,
    request: DraftSaveRequest,
    previous: PreviousDraft | None,
) -> _ComposedDraft:
    """Compose the draft. Raises InvalidInput for all wrong fields."""
    changes = request.changes
    if previous is None:
        fields = MessageFields(
            **changes.fields,
            attachments=changes.added_attachments,
            source=request.source,
            files=changes.added_files,
        )
        sender = await composition.authorize_sender_and_resolve_fields(ctx, account, fields)
    else:
        fields, sender = await _merge_with_stored_draft(ctx, account, changes, previous)
    basis = DraftBasis(ctx.environment.now(), previous)
    links = await file_attachments.prepare_links_of_unattached_files(
        ctx, changes.added_links, request.url_from_path, file_attachments.LINKS_FIELD_NAME
    )
    if previous is None or changes.changes_body:
        with _translate_error_paths_to_patch():
            draft = await composition.compose_draft(ctx, sender, fields, basis, "addFiles")
        text, html = file_attachments.append_links(draft.text, draft.html, links)
        draft = replace(draft, text=text, html=html)
        new_count = len(changes.added_attachments) + len(changes.added_files)
        kept_count = len(draft.attachments) - new_count if previous else 0
        with _translate_error_paths_to_patch(kept_count):
            raw = await composition.build_message(draft)
    else:
        raw = await _build_with_stored_body(ctx, sender, fields, basis, previous.message)
    share_rights = await ctx.load(mailbox_rights.load_viewer_rights, (mailbox.user_id, mailbox.id))
    return _ComposedDraft(
        raw,
        mailbox,
        _draft_placement_within_rights(ctx, request, mailbox, share_rights, previous),
        await _draft_to_replace_with_index_words(ctx, changes, previous) if previous else None,
        _file_list_changes(changes, previous),
        [link.share for link in links],
    )


def _file_list_changes(changes: DraftChanges, previous: PreviousDraft | None) -> DraftFileChanges:
    """Return the changes to the list of stored files of a draft."""
    added_ids = [file.file_id for file in changes.added_files]
    if previous is None:
        return DraftFileChanges(added_ids)
    attachments = previous.message.row.attachments
    removed_digests = {attachments[number]["sha256"] for number in previous.removed_numbers}
    return DraftFileChanges(added_ids, frozenset(removed_digests))


@contextmanager
def _translate_error_paths_to_patch(kept_attachment_count: int = 0) -> Generator[None]:
    """Change the paths of errors raised in the block to those in the input of `draftSave`.

    The draft has `kept_attachment_count` stored attachments before the added ones, so this number
    is subtracted from the index of an attachment.
    """
    try:
        yield
    except RequestError as error:
        errors = [
            error.copy_with_path(_path_in_patch(list(error.path), kept_attachment_count))
            for error in error.all_errors
        ]
        raise_errors(errors)


def _path_in_patch(path: list[str], kept_attachment_count: int) -> list[str]:
    """Return the path of an error in the input of a change, from its path in the whole draft."""
    match path:
        case ["attachments", number, *rest] if number.isdecimal():
            return [*_ADDED_PATH, str(int(number) - kept_attachment_count), *rest]
        case ["attachments", *rest]:
            return [*_ADDED_PATH, *rest]
        case ["addFiles", number, "file"]:
            return ["set", "addFiles", number, "id"]
    return path


class _MergedDraftFields(NamedTuple):
    """The fields of a stored draft after the changes."""

    message_fields: MessageFields
    sender_fields: SenderFields


async def _merge_with_stored_draft(
    ctx: Context, account: ColumnRow, changes: DraftChanges, previous: PreviousDraft
) -> _MergedDraftFields:
    """Return all fields of the changed draft, and its sender.

    A stored sender is kept even if the account may not use it any more: `draftSend` checks it.
    """
    stored = await draft_content.read_draft_fields(previous.message)
    values: dict[str, Any] = dict(changes.fields)
    stored_sender = await _stored_sender_even_if_forbidden(ctx, account, stored)
    if _SENDER_FIELDS & values.keys():
        values = {"from_": None, **values}
        default_reply_to = stored_sender.reply_to if stored_sender else ()
        if _address_texts(stored.reply_to) == _address_texts(default_reply_to):
            values.setdefault("reply_to", None)
        if stored_sender:
            values.setdefault("bcc", _without_addresses(stored.bcc, stored_sender.always_bcc))
    if values.get("html") is not None:
        values.setdefault("text", None)
    merged = replace(
        stored, **values, attachments=changes.added_attachments, files=changes.added_files
    )
    if stored_sender is None or _SENDER_FIELDS & values.keys():
        return _MergedDraftFields(
            merged, await composition.authorize_sender_and_resolve_fields(ctx, account, merged)
        )
    reply_to = stored_sender.reply_to if merged.reply_to is None else merged.reply_to
    return _MergedDraftFields(merged, replace(stored_sender, reply_to=reply_to))


async def _stored_sender_even_if_forbidden(
    ctx: Context, account: ColumnRow, stored: MessageFields
) -> SenderFields | None:
    """Return the sender of the stored draft with the defaults of its identity; None without From.

    If the account may not use the address, there are no defaults.
    """
    if stored.from_ is None:
        return None
    fields = MessageFields(from_=stored.from_)
    try:
        return await composition.authorize_sender_and_resolve_fields(ctx, account, fields)
    except (Forbidden, InvalidInput):
        return SenderFields(stored.from_, ())


def _address_texts(people: Sequence[NamedAddress] | None) -> list[str]:
    return [person.address.casefold() for person in people or ()]


def _without_addresses(
    people: Sequence[NamedAddress], addresses: Sequence[str]
) -> list[NamedAddress]:
    removed = {address.casefold() for address in addresses}
    return [person for person in people if person.address.casefold() not in removed]


async def _build_with_stored_body(
    ctx: Context,
    sender: SenderFields,
    fields: MessageFields,
    basis: DraftBasis,
    message: StoredMessage,
) -> bytes:
    """Build the draft with a new header and the stored body, which is not decoded."""
    header_fields = replace(fields, text=None, html=None)
    draft = await composition.compose_draft(
        ctx, sender, header_fields, replace(basis, keeps_attachments=False)
    )
    return await composition.build_message(draft, await draft_content.read_mime_entity(message))


async def _draft_to_replace_with_index_words(
    ctx: Context, changes: DraftChanges, previous: PreviousDraft
) -> EarlierDraft:
    """Return the draft to replace, with its words in the text index."""
    earlier = await message_import.draft_to_replace(ctx, previous.message, DRAFT_PATH)
    return replace(earlier, clears_metadata=changes.clears_metadata)


def _draft_placement_within_rights(
    ctx: Context,
    request: DraftSaveRequest,
    mailbox: ColumnRow,
    share_rights: Rights,
    previous: PreviousDraft | None,
) -> MessagePlacement:
    """Return the placement. Flags that the rights exclude are left out (RFC 4314, section 4)."""
    can_write = ShareRight.WRITE in share_rights
    is_seen = previous is None or previous.message.row.seen
    return MessagePlacement(
        mailbox.user_id,
        mailbox.id,
        ctx.environment.now(),
        seen=is_seen and ShareRight.SEEN in share_rights,
        draft=can_write,
        public_metadata=request.changes.public_metadata if can_write else None,
        source=message_source.source_id_and_relation_or_none(request.source),
        origin=ctx.origin,
    )


async def _store_draft(ctx: Context, account: ColumnRow, composed: _ComposedDraft) -> int:
    """Store the draft and return its id."""
    mailbox = composed.mailbox
    owner = account
    if mailbox.user_id != account.id:
        owner = await composition.read_account(ctx, mailbox.user_id)
    message = await parse_storable_message(composed.raw)
    if not composed.placement.draft:
        message = await openpgp_encryption.encrypt_if_required(
            ctx.environment, composed.raw, message, owner, mailbox
        )
    insert = MessageInsert(
        message,
        owner.tenant_id,
        composed.placement,
        composed.earlier,
        composed.files,
        composed.shares,
    )
    return await message_import.insert_message_or_replace_draft(ctx, insert)
