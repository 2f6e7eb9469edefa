"""Build replies and forwards: what a message inherits from the message it refers to."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail import mime
from mail.addresses.address_syntax import Normal, normal
from mail.compose import reply_quote
from mail.compose.message_builder import Attachment
from mail.compose.reply_quote import Original, Quote
from mail.mime.header_encoding import Named
from mail.storage.message_content import Stored, gathered
from models.addresses.tables import Address
from models.domains.tables import Domain, DomainAlias
from models.errors import found
from models.messages.tables import Message
from models.store.columns import Picked, picked
from models.users.roles import Scope
from resolvers.access import own, visible
from resolvers.context import Context
from resolvers.messages import content
from resolvers.messages.bulk import flags, row_changes
from resolvers.messages.content import Showing
from resolvers.submission import attachments
from resolvers.submission.attachments import Chosen, Room

FORWARDED = "$Forwarded"
_PREFIX = re.compile(r"\w+:(?:\s|$)")
_COLUMNS = frozenset(
    {"id", "subject", "message_id", "references", "from_name", "from_address", "sender"}
    | {"reply_to", "to", "cc", "date"}
)


class ReferenceAction(StrEnum):
    """What a message does with the message it refers to."""

    REPLY = "REPLY"
    REPLY_ALL = "REPLY_ALL"
    FORWARD = "FORWARD"


class ReferenceQuote(StrEnum):
    """Whether and where the text quotes the message referred to."""

    NONE = "NONE"
    BELOW = "BELOW"
    ABOVE = "ABOVE"


@dataclass(frozen=True, slots=True)
class Reference:
    """The message that a new message refers to, the action, and the content taken from it."""

    message_id: int
    action: ReferenceAction
    attachments: Chosen | None = None  # to copy
    quote: ReferenceQuote = ReferenceQuote.NONE
    whole: bool = False  # attach the whole message


@dataclass(frozen=True, slots=True)
class Taken:
    """Subject, recipients, attachments and quote inherited from the message referred to."""

    subject: str
    to: Sequence[Named] = ()
    cc: Sequence[Named] = ()
    in_reply_to: str | None = None
    references: Sequence[str] = ()
    attachments: Sequence[Attachment] = ()
    quote: Quote | None = None


def referred(reference: Reference | None) -> tuple[int, str] | None:
    """Return id and action of a reference for the columns of a message."""
    return (reference.message_id, reference.action.value) if reference else None


async def taken(ctx: Context, reference: Reference, room: Room) -> Taken:
    """Read what a reply or forward inherits from a message of the viewer.

    A forward has no recipients yet.

    Raises NotFound, Invalid if the budget is exceeded, and Forbidden without the scope MAIL_READ:
    subject and recipients are taken from the stored message.
    """
    ctx.viewer.require_scope(Scope.MAIL_READ)
    asked = select(*picked(Message, _COLUMNS)).where(
        col(Message.id) == reference.message_id, visible(ctx, Message)
    )
    path = ["reference", "message"]
    row = found(next(iter(await ctx.read(asked)), None), str(reference.message_id), path=path)
    references = [*row.references, *([row.message_id] if row.message_id else [])]
    files = await _copied(ctx, reference, room)
    quote = None
    if reference.quote is not ReferenceQuote.NONE:
        quote, images = await _quote(ctx, row, reference, room)
        files += images
    if reference.whole:
        files.append(await _whole(ctx, row, room))
    if reference.action is ReferenceAction.FORWARD:
        subject = _subject(row.subject, "Fwd: ")
        return Taken(subject, references=references, attachments=files, quote=quote)
    to, cc = await _answering(ctx, row, everybody=reference.action is ReferenceAction.REPLY_ALL)
    return Taken(_subject(row.subject, "Re: "), to, cc, row.message_id, references, files, quote)


async def _copied(ctx: Context, reference: Reference, room: Room) -> list[Attachment]:
    if reference.attachments is None:
        return []
    path = ["reference", "attachments"]
    message = await _message(ctx, reference.message_id)
    which = attachments.numbers(message, reference.attachments, path)
    return await attachments.copied(message, which, room, path)


async def _message(ctx: Context, key: int) -> Stored:
    return found(await content.one(ctx, key), path=["reference", "message"])


async def _quote(
    ctx: Context, row: Picked, reference: Reference, room: Room
) -> tuple[Quote, list[Attachment]]:
    """Return the quote and the images that its HTML shows."""
    message, html, images = await _message(ctx, row.id), None, list[Attachment]()
    known = content.cids(message)
    shown = set[str]()

    def cid_url(cid: str) -> str | None:
        shown.add(cid)
        return f"cid:{cid}" if cid in known else None

    if any(each.content_type == "text/html" for each, _ in mime.within(message.structure)):
        safe = await content.htmls(message, Showing(cid_url))
        html = "<br>".join(safe.bodies)
        html = None if len(html) > reply_quote.LONG else html
    if html is not None:
        which = sorted(known[cid] for cid in shown if cid in known)
        images = await attachments.copied(message, which, room, ["reference", "quote"])
    people = [Named(row.from_address, row.from_name)] if row.from_address else []
    original = Original(
        await content.texts(message) or "",
        html,
        row.subject,
        row.date,
        people or _people([row.sender] if row.sender else []),
        _people(row.to),
        _people(row.cc),
    )
    forwards = reference.action is ReferenceAction.FORWARD
    return reply_quote.forward(original) if forwards else reply_quote.reply(original), images


async def _whole(ctx: Context, row: Picked, room: Room) -> Attachment:
    """Return the whole message as an attachment with the suffix .eml."""
    message = await _message(ctx, row.id)
    room.take(message.size, ["reference", "includeMessage"])
    name = attachments.plain_name(row.subject) or "message"
    raw = await gathered(message.whole())
    return Attachment(raw, f"{name}.eml", whole=True)


def _subject(subject: str, prefix: str) -> str:
    return subject if _PREFIX.match(subject) else prefix + subject


async def _answering(
    ctx: Context, row: Picked, *, everybody: bool
) -> tuple[list[Named], list[Named]]:
    """Return To and Cc of a reply.

    To is Reply-To, else From, else Sender; with `reply_all` also the recipients in To and Cc.

    The user's own addresses are left out, unless there is no other recipient.
    """
    mine = await _own_addresses(ctx)
    people = _people(row.reply_to)
    if not people and row.from_address:
        people = [Named(row.from_address, row.from_name)]
    if not people and row.sender:
        people = _people([row.sender])
    to = _others(people, mine, ())
    if not to:  # a reply to an own message goes to its recipients
        to = _others(_people(row.to), mine, ()) or people
    cc: list[Named] = []
    if everybody:
        to += _others(_people(row.to), mine, to)
        cc = _others(_people(row.cc), mine, to)
    return to, cc


def _people(pairs: Sequence[Sequence[str | None]]) -> list[Named]:
    return [Named(address, name) for name, address in pairs if address and "@" in address]


def _others(
    people: Sequence[Named], mine: Collection[Normal], known: Sequence[Named]
) -> list[Named]:
    """Return the addresses that are neither the user's own nor known already, each once."""
    seen = {person.address.casefold() for person in known}
    others = []
    for person in people:
        key = person.address.casefold()
        if key not in seen and normal(person.address) not in mine:
            seen.add(key)
            others.append(person)
    return others


async def _own_addresses(ctx: Context) -> set[Normal]:
    """Return the user's addresses in normal form, under every alias of their domains."""
    own_ones = (
        select(col(Address.local), col(Domain.name), col(DomainAlias.alias))
        .join(Domain, col(Domain.id) == col(Address.domain_id))
        .outerjoin(DomainAlias, col(DomainAlias.domain_id) == col(Domain.id))
        .where(col(Address.user_id) == own(ctx))
    )
    rows = await ctx.read(own_ones)
    names = {Normal(row.local, row.name) for row in rows}
    return names | {Normal(row.local, row.alias) for row in rows if row.alias}


async def answered(ctx: Context, session: AsyncSession, reference: Reference) -> None:
    """Set the answered flag, or $Forwarded, on the message referred to, in the sending transaction.

    A message that another account shares is not changed.
    """
    rows = await row_changes.chosen(session, [reference.message_id])
    if any(row.user_id != own(ctx) for row in rows):  # the transaction has no lock on its stream
        return
    forward = reference.action is ReferenceAction.FORWARD
    changes = row_changes.Changes.of({"answered": True}, add=[FORWARDED] if forward else [])
    await flags.change(ctx, session, rows, changes)
