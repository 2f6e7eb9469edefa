"""Build a draft from the fields of a request, an earlier draft, and the message it replies to."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NoReturn
from urllib.parse import unquote

from sqlalchemy import select
from sqlmodel import col

from mail.compose import draft_validation, message_builder, reply_quote
from mail.compose.message_draft import CustomHeader, MessageDraft, OutgoingFile, Priority
from mail.mime.header_encoding import NamedAddress
from mail.storage.message_content import StoredMessage
from models.errors import InvalidInput, NotFound, require_found
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import PreparedStatement, integer_parameter
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.submission import attachments, file_attachments
from resolvers.submission.attachments import (
    AttachmentBudget,
    UploadedAttachment,
)
from resolvers.submission.file_attachments import StoredFileAttachment
from resolvers.submission.identities import loaders as identity_loaders
from resolvers.submission.identities.loaders import SenderIdentity
from resolvers.submission.message_source import (
    InheritedContent,
    MessageSource,
    QuotePosition,
    read_inherited_header_and_content,
)
from resolvers.submission.sender_authorization import require_main_address, require_permitted_sender

ACCOUNT_COLUMNS = frozenset(  # columns of the sending account
    {
        *(
            "id",
            "tenant_id",
            "domain_id",
            "username",
            "name",
            "recipients_per_day",
            "allowed_senders",
            "openpgp_public_key",
        ),
        "encrypt_messages",
    }
)
_ACCOUNT_BY_ID = PreparedStatement(
    select(*select_columns(User, ACCOUNT_COLUMNS)).where(col(User.id) == integer_parameter("user"))
)
MAX_INLINE_BYTES = 64 * 1024  # larger messages are built in a thread


@dataclass(frozen=True, slots=True)
class MessageFields:
    """The fields of a message. `to`, `cc` and `subject` can come from a reference."""

    from_: NamedAddress | None = None  # if the name is None, that of the identity is used
    identity: int | None = None  # instead of `from_`; if both are None, the default
    to: Sequence[NamedAddress] | None = None
    cc: Sequence[NamedAddress] | None = None
    bcc: Sequence[NamedAddress] = ()
    reply_to: Sequence[NamedAddress] | None = None  # None: Reply-To of the identity
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    headers: Sequence[CustomHeader] = ()
    attachments: Sequence[OutgoingFile | UploadedAttachment] | None = None
    priority: Priority = Priority.NORMAL
    source: MessageSource | None = None
    files: Sequence[StoredFileAttachment] = ()


@dataclass(frozen=True, slots=True)
class PreviousDraft:
    """An earlier version of a draft with all columns, and the attachments to remove."""

    message: StoredMessage
    removed_numbers: Collection[int] = ()  # of attachments; all others are kept


@dataclass(frozen=True, slots=True)
class DraftBasis:
    """The date of a draft and its earlier version."""

    date: datetime
    previous: PreviousDraft | None = None
    keeps_attachments: bool = True  # copies the attachments of the earlier version


@dataclass(frozen=True, slots=True)
class SenderFields:
    """From, Reply-To and the other fields that follow from the sender of a message."""

    from_: NamedAddress
    reply_to: Sequence[NamedAddress]
    always_bcc: Sequence[str] = ()
    sent_mailbox_id: int | None = None  # where the copy is stored; None: Sent


async def read_account(ctx: Context, user_id: int) -> ColumnRow:
    """Read the columns of the sending account. Raises NotFound if there is no such account."""
    account: ColumnRow = require_found(
        next(iter(await ctx.read_prepared(_ACCOUNT_BY_ID, user=user_id)), None)
    )
    return account


async def authorize_sender_and_resolve_fields(
    ctx: Context, account: ColumnRow, fields: MessageFields
) -> SenderFields:
    """Determine the sender of a message from its address, its identity, or the default identity.

    Raises Forbidden if the account may not send as the address, InvalidInput if both an address and
    an identity are given, and NotFound if the identity is not the account's.
    """
    if fields.from_ is not None:
        if fields.identity is not None:
            _refuse_identity_besides_from()
        from_address = NamedAddress(
            draft_validation.normalize_and_validate_address_with_index(
                fields.from_.address, "from"
            ),
            fields.from_.name,
        )
        address_row = await require_permitted_sender(ctx, account, from_address.address, ["from"])
        identity = await identity_loaders.identity_of_sender_or_none(
            ctx, account, from_address.address, address_row
        )
        if identity is None:
            return SenderFields(from_address, fields.reply_to or ())
        name = identity.name if from_address.name is None else from_address.name
        return _sender_fields_of_identity(
            NamedAddress(from_address.address, name), identity, fields
        )
    if fields.identity is None:
        identity = await identity_loaders.require_default_identity(ctx, account)
    else:
        identity = await _read_own_identity(ctx, account, fields.identity)
    await require_permitted_sender(ctx, account, identity.address, ["from"])
    return _sender_fields_of_identity(
        NamedAddress(identity.address, identity.name), identity, fields
    )


def _refuse_identity_besides_from() -> NoReturn:
    text = "`from` and `identity` can't be combined."
    raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["identity"])


async def _read_own_identity(ctx: Context, account: ColumnRow, identity_id: int) -> SenderIdentity:
    (identity,) = await identity_loaders.load_visible_identities_by_id(ctx, [identity_id])
    if identity is None or identity.user_id != account.id:
        raise NotFound(str(identity_id), path=["identity"])
    return identity


def _sender_fields_of_identity(
    from_: NamedAddress, identity: SenderIdentity, fields: MessageFields
) -> SenderFields:
    identity_reply_to = [NamedAddress(identity.reply_to)] if identity.reply_to else []
    reply_to = identity_reply_to if fields.reply_to is None else fields.reply_to
    return SenderFields(from_, reply_to, identity.bcc, identity.mailbox_id)


async def compose_draft(
    ctx: Context,
    sender_fields: SenderFields,
    fields: MessageFields,
    basis: DraftBasis,
    files_field: str = file_attachments.FIELD_NAME,
) -> MessageDraft:
    """Build the draft.

    An earlier version provides its Message-ID and the message that it replied to.

    Raises NotFound if an attachment or the referenced message is missing, and InvalidInput if the
    attachments are too large.
    """
    environment = ctx.environment
    budget = AttachmentBudget(environment.options.message_max_size)
    kept_attachments = (
        await _read_kept_attachments(fields, basis.previous, budget)
        if basis.previous and basis.keeps_attachments
        else []
    )
    files = await attachments.read_attachments(ctx, fields.attachments or (), budget)
    files += await file_attachments.read_attached_files(ctx, fields.files, budget, files_field)
    inherited = await _read_source_or_previous_references(ctx, fields, basis, budget)
    filled_fields = _with_inherited_content(fields, inherited)
    to_people, cc = filled_fields.to or (), filled_fields.cc or ()
    return MessageDraft(
        from_=sender_fields.from_,
        date=basis.date,
        message_id=_previous_or_new_message_id(ctx, sender_fields.from_, basis),
        reply_to=sender_fields.reply_to,
        to=to_people,
        cc=cc,
        bcc=[
            *fields.bcc,
            *always_bcc_addresses_to_add(sender_fields.always_bcc, [*to_people, *cc, *fields.bcc]),
        ],
        subject=filled_fields.subject,
        text=filled_fields.text,
        html=filled_fields.html,
        headers=fields.headers,
        attachments=[*kept_attachments, *files, *inherited.attachments],
        in_reply_to=inherited.in_reply_to,
        references=inherited.references,
        priority=fields.priority,
        most=environment.options.message_max_size,
    )


def _with_inherited_content(fields: MessageFields, inherited: InheritedContent) -> MessageFields:
    """Return the fields, with recipients, subject and quote of the referenced message added."""
    text, html = fields.text, fields.html
    if inherited.quote and fields.source:
        is_quote_above = fields.source.quote is QuotePosition.ABOVE
        text, html = reply_quote.combine_with_quote(
            text, html, inherited.quote, quote_above=is_quote_above
        )
    takes_recipients = fields.to is None and fields.cc is None
    return replace(
        fields,
        to=inherited.to if takes_recipients else fields.to,
        cc=inherited.cc if takes_recipients else fields.cc,
        subject=inherited.subject if fields.subject is None else fields.subject,
        text=text,
        html=html,
    )


async def with_source_content(ctx: Context, fields: MessageFields) -> MessageFields:
    """Return the fields, with recipients, subject and quote of the referenced message.

    Attachments are not copied. Raises NotFound if the viewer has no such message.
    """
    if not fields.source:
        return fields
    return _with_inherited_content(
        fields,
        await read_inherited_header_and_content(
            ctx, fields.source, AttachmentBudget(ctx.environment.options.message_max_size)
        ),
    )


def always_bcc_addresses_to_add(
    always_bcc: Sequence[str], recipients: Sequence[NamedAddress]
) -> list[NamedAddress]:
    """Return the addresses that are always copied and are not yet recipients.

    If the message has no recipient, the result is empty.
    """
    known_addresses = {person.address.casefold() for person in recipients}
    return [
        NamedAddress(text)
        for text in always_bcc
        if known_addresses and text.casefold() not in known_addresses
    ]


def _previous_or_new_message_id(ctx: Context, from_: NamedAddress, basis: DraftBasis) -> str:
    """Return the Message-ID of the earlier version, or a new one."""
    previous_id = basis.previous.message.row.message_id if basis.previous else None
    if previous_id and message_builder.is_message_id(previous_id):
        return str(previous_id)
    return new_message_id(ctx, from_.address)


def new_message_id(ctx: Context, sender_address: str) -> str:
    """Create a Message-ID in the domain of this host.

    If the host name has no dot, the domain of the sender is used.
    """
    hostname = ctx.environment.options.hostname
    domain = hostname if "." in hostname else sender_address.rpartition("@")[2]
    return message_builder.new_message_id(ctx.environment.random_bytes(16), domain)


async def _read_source_or_previous_references(
    ctx: Context, fields: MessageFields, basis: DraftBasis, budget: AttachmentBudget
) -> InheritedContent:
    """Read what the draft takes from the referenced message, or took when it was saved earlier."""
    if fields.source:
        return await read_inherited_header_and_content(ctx, fields.source, budget)
    if not basis.previous:
        return InheritedContent("")
    row = basis.previous.message.row
    return InheritedContent("", in_reply_to=row.in_reply_to, references=row.references)


async def _read_kept_attachments(
    fields: MessageFields, previous: PreviousDraft, budget: AttachmentBudget
) -> list[OutgoingFile]:
    """Return the attachments of the earlier version that stay.

    Images stay if the new HTML shows them and no new attachment has their Content-ID.
    """
    message, path = previous.message, ["attachments"]
    new_content_ids = {file.content_id for file in fields.attachments or ()}
    kept_numbers = [
        number
        for number, attachment in enumerate(message.row.attachments)
        if number not in previous.removed_numbers
        and not (attachment["inline"] and attachment["content_id"] in new_content_ids)
        and (
            not attachment["inline"]
            or _html_shows_content_id(attachment["content_id"], fields.html)
        )
    ]
    return await attachments.read_selected_attachments(message, kept_numbers, budget, path)


def _html_shows_content_id(content_id: str | None, html: str | None) -> bool:
    if not content_id or not html:
        return False
    return f"cid:{content_id}" in html or f"cid:{content_id}" in unquote(html)  # RFC 2392: a URL


async def build_message(draft: MessageDraft, mime_entity: bytes | None = None) -> bytes:
    """Build the bytes of a message, in a thread if it is large.

    A `mime_entity` replaces text, HTML and attachments. Raises InvalidInput if a field is wrong.
    """
    size = sum(len(attachment.content) for attachment in draft.attachments) + len(draft.html or "")
    if size < MAX_INLINE_BYTES:
        return message_builder.validate_and_build_message(draft, mime_entity)
    return await asyncio.to_thread(message_builder.validate_and_build_message, draft, mime_entity)


async def main_sender(ctx: Context, account: ColumnRow) -> NamedAddress:
    """Return the main address of the account with its From name.

    Raises InvalidInput if it has none.
    """
    row = await require_main_address(ctx, account)
    return NamedAddress(row.display_address, row.name or account.name)
