"""Build replies and forwards: what a message takes from the message it replies to or forwards."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail import mime
from mail.addresses.address_syntax import NormalizedAddress, normalized_address
from mail.compose import reply_quote
from mail.compose.message_draft import OutgoingFile
from mail.compose.reply_quote import OriginalMessage, QuotedMessage
from mail.mime.header_encoding import NamedAddress
from mail.storage.message_content import StoredMessage, read_all
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import require_found
from models.messages.tables import Message, MessageRelationKind
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Scope
from resolvers.access import is_own_or_shared, require_user_id
from resolvers.context import Context
from resolvers.messages import content
from resolvers.messages.bulk import flag_changes, flags, row_changes
from resolvers.messages.content import HtmlOptions
from resolvers.submission import attachments
from resolvers.submission.attachments import AttachmentBudget, AttachmentSelection

FORWARDED_KEYWORD = "$Forwarded"
_SUBJECT_PREFIX = re.compile(r"\w+:(?:\s|$)")
_MESSAGE_COLUMNS = frozenset(
    {"id", "subject", "message_id", "references", "from_name", "from_address", "sender"}
    | {"reply_to", "to", "cc", "date"}
)


class QuotePosition(StrEnum):
    """Whether and where the text quotes the message replied to or forwarded."""

    NONE = "NONE"
    BELOW = "BELOW"
    ABOVE = "ABOVE"


@dataclass(frozen=True, slots=True)
class MessageSource:
    """The message that a new message replies to or forwards, and the content taken from it."""

    message_id: int
    relation: MessageRelationKind
    attachments: AttachmentSelection | None = None  # to copy
    quote: QuotePosition = QuotePosition.NONE
    includes_message: bool = False  # attach the whole message


@dataclass(frozen=True, slots=True)
class InheritedContent:
    """Subject, recipients, attachments and quote inherited from the message referred to."""

    subject: str
    to: Sequence[NamedAddress] = ()
    cc: Sequence[NamedAddress] = ()
    in_reply_to: str | None = None
    references: Sequence[str] = ()
    attachments: Sequence[OutgoingFile] = ()
    quote: QuotedMessage | None = None


def source_id_and_relation_or_none(source: MessageSource | None) -> tuple[int, str] | None:
    """Return id and relation of a source for the columns of a message."""
    return (source.message_id, source.relation.value) if source else None


async def read_inherited_header_and_content(
    ctx: Context, source: MessageSource, budget: AttachmentBudget
) -> InheritedContent:
    """Read what a reply or forward inherits from a message of the viewer.

    A forward has no recipients yet.

    Raises NotFound, InvalidInput if the budget is exceeded, and Forbidden without the scope
    MAIL_READ: subject and recipients are taken from the stored message.
    """
    ctx.viewer.require_scope(Scope.MAIL_READ)
    statement = select(*select_columns(Message, _MESSAGE_COLUMNS)).where(
        col(Message.id) == source.message_id, is_own_or_shared(ctx, Message)
    )
    path = ["original", "message"]
    row = require_found(
        next(iter(await ctx.read(statement)), None), str(source.message_id), path=path
    )
    references = [*row.references, *([row.message_id] if row.message_id else [])]
    copied_attachments = await _read_source_attachments(ctx, source, budget)
    quote = None
    if source.quote is not QuotePosition.NONE:
        quote, images = await _build_quote(ctx, row, source, budget)
        copied_attachments += images
    if source.includes_message:
        copied_attachments.append(await _message_as_attachment(ctx, row, budget))
    if source.relation is MessageRelationKind.FORWARD:
        subject = _prefixed_subject(row.subject, "Fwd: ")
        return InheritedContent(
            subject, references=references, attachments=copied_attachments, quote=quote
        )
    to_addresses, cc = await _reply_recipients(
        ctx, row, reply_all=source.relation is MessageRelationKind.REPLY_ALL
    )
    return InheritedContent(
        _prefixed_subject(row.subject, "Re: "),
        to_addresses,
        cc,
        row.message_id,
        references,
        copied_attachments,
        quote,
    )


async def _read_source_attachments(
    ctx: Context, source: MessageSource, budget: AttachmentBudget
) -> list[OutgoingFile]:
    if source.attachments is None:
        return []
    path = ["original", "attachments"]
    message = await _read_content(ctx, source.message_id)
    numbers = attachments.require_attachment_numbers(message, source.attachments, path)
    return await attachments.read_selected_attachments(message, numbers, budget, path)


async def _read_content(ctx: Context, message_id: int) -> StoredMessage:
    return require_found(
        await content.load_stored_message(ctx, message_id), path=["original", "message"]
    )


class _QuoteWithFiles(NamedTuple):
    """A quoted message, and the files that its HTML shows."""

    quote: QuotedMessage
    files: list[OutgoingFile]


async def _build_quote(
    ctx: Context, message_row: ColumnRow, source: MessageSource, budget: AttachmentBudget
) -> _QuoteWithFiles:
    """Return the quote and the images that its HTML shows."""
    message, html, images = await _read_content(ctx, message_row.id), None, list[OutgoingFile]()
    numbers_by_content_id = content.attachment_numbers_by_content_id(message)
    shown_numbers = set[int]()

    def cid_url(cid: str) -> str | None:
        number = content.attachment_number_of_cid_or_none(numbers_by_content_id, cid)
        if number is None:
            return None
        shown_numbers.add(number)
        return f"cid:{cid}"

    if any(
        part.content_type == "text/html"
        for part, _ in mime.walk_own_parts_with_parents(message.structure)
    ):
        sanitized = await content.html_bodies(message, HtmlOptions(cid_url))
        html = "<br>".join(sanitized.bodies)
        html = None if len(html) > reply_quote.MAX_ORIGINAL_LENGTH else html
    if html is not None:
        images = await attachments.read_selected_attachments(
            message, sorted(shown_numbers), budget, ["original", "quote"]
        )
    authors = (
        [NamedAddress(message_row.from_address, message_row.from_name)]
        if message_row.from_address
        else []
    )
    original = OriginalMessage(
        await content.plain_text(message) or "",
        html,
        message_row.subject,
        message_row.date,
        authors or _addresses_from_pairs([message_row.sender] if message_row.sender else []),
        _addresses_from_pairs(message_row.to),
        _addresses_from_pairs(message_row.cc),
    )
    is_forward = source.relation is MessageRelationKind.FORWARD
    return _QuoteWithFiles(
        reply_quote.forwarded_quote(original) if is_forward else reply_quote.reply_quote(original),
        images,
    )


async def _message_as_attachment(
    ctx: Context, message_row: ColumnRow, budget: AttachmentBudget
) -> OutgoingFile:
    """Return the whole message as an attachment with the suffix .eml."""
    message = await _read_content(ctx, message_row.id)
    budget.count_file_or_raise(message.size, ["original", "includeMessage"])
    name = attachments.filename_from_text_or_empty(message_row.subject) or "message"
    raw = await read_all(message.stream_raw())
    return OutgoingFile(raw, f"{name}.eml", is_message=True)


def _prefixed_subject(subject: str, prefix: str) -> str:
    return subject if _SUBJECT_PREFIX.match(subject) else prefix + subject


class _ReplyRecipients(NamedTuple):
    """The recipients of a reply."""

    to: list[NamedAddress]
    cc: list[NamedAddress]


async def _reply_recipients(
    ctx: Context, message_row: ColumnRow, *, reply_all: bool
) -> _ReplyRecipients:
    """Return To and Cc of a reply.

    To is Reply-To, else From, else Sender; with `reply_all` also the recipients in To and Cc.

    The user's own addresses are left out, unless there is no other recipient.
    """
    own_addresses = await _read_own_addresses(ctx)
    authors = _addresses_from_pairs(message_row.reply_to)
    if not authors and message_row.from_address:
        authors = [NamedAddress(message_row.from_address, message_row.from_name)]
    if not authors and message_row.sender:
        authors = _addresses_from_pairs([message_row.sender])
    to_addresses = _other_addresses(authors, own_addresses, ())
    if not to_addresses:  # a reply to an own message goes to its recipients
        to_addresses = (
            _other_addresses(_addresses_from_pairs(message_row.to), own_addresses, ()) or authors
        )
    cc: list[NamedAddress] = []
    if reply_all:
        to_addresses += _other_addresses(
            _addresses_from_pairs(message_row.to), own_addresses, to_addresses
        )
        cc = _other_addresses(_addresses_from_pairs(message_row.cc), own_addresses, to_addresses)
    return _ReplyRecipients(to_addresses, cc)


def _addresses_from_pairs(pairs: Sequence[Sequence[str | None]]) -> list[NamedAddress]:
    return [NamedAddress(address, name) for name, address in pairs if address and "@" in address]


def _other_addresses(
    addresses: Sequence[NamedAddress],
    own_addresses: Collection[NormalizedAddress],
    known_addresses: Sequence[NamedAddress],
) -> list[NamedAddress]:
    """Return the addresses that are neither the user's own nor known already, each once."""
    seen_addresses = {person.address.casefold() for person in known_addresses}
    other_people = []
    for person in addresses:
        key = person.address.casefold()
        if key not in seen_addresses and normalized_address(person.address) not in own_addresses:
            seen_addresses.add(key)
            other_people.append(person)
    return other_people


async def _read_own_addresses(ctx: Context) -> set[NormalizedAddress]:
    """Return the user's addresses in normal form, under every alias of their domains."""
    statement = (
        select(col(Address.local), col(Domain.name), col(DomainAlias.alias))
        .join(Domain, col(Domain.id) == col(Address.domain_id))
        .outerjoin(DomainAlias, col(DomainAlias.domain_id) == col(Domain.id))
        .where(col(Address.user_id) == require_user_id(ctx))
    )
    rows = await ctx.read(statement)
    names = {NormalizedAddress(row.local, row.name) for row in rows}
    return names | {NormalizedAddress(row.local, row.alias) for row in rows if row.alias}


async def flag_own_source_message(
    ctx: Context, session: AsyncSession, source: MessageSource
) -> None:
    """Set the flag answered on the message referred to, and $Forwarded if it is forwarded.

    A message that another account shares is not changed.
    """
    rows = await row_changes.load_rows_in_transaction(session, [source.message_id])
    if any(
        row.user_id != require_user_id(ctx) for row in rows
    ):  # the transaction has no lock on its stream
        return
    is_forward = source.relation is MessageRelationKind.FORWARD
    changes = flag_changes.FlagChanges.from_flag_names(
        {"answered": True}, added=[FORWARDED_KEYWORD] if is_forward else []
    )
    await flags.change_flags(ctx, session, rows, changes)
