"""Build a draft from the fields of a request, an earlier draft, and the message it replies to."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import quote

from sqlalchemy import select
from sqlmodel import col

from mail.compose import message_builder, reply_quote
from mail.compose.message_builder import Attachment, Draft, HeaderLine, Priority
from mail.mime.header_encoding import Named
from mail.storage.message_content import Stored
from models.errors import Invalid, NotFound, found
from models.store.columns import Picked, picked
from models.store.prepared_statements import Prepared, number
from models.users.tables import User
from resolvers.context import Context
from resolvers.submission import attachments, file_attachments, identities
from resolvers.submission.attachments import Chosen, Room, Uploaded
from resolvers.submission.file_attachments import Given
from resolvers.submission.identities import Sender
from resolvers.submission.reply_references import Reference, ReferenceQuote, Taken, taken
from resolvers.submission.sender_authorization import main_of, may_send_as

ACCOUNT = frozenset(  # columns of the sending account
    {
        *("id", "tenant_id", "username", "name", "recipients", "from_whitelist", "pub_key"),
        "encrypt_messages",
    }
)
_MINE = Prepared(select(*picked(User, ACCOUNT)).where(col(User.id) == number("user")))
SMALL = 64 * 1024  # larger messages are built in a thread


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a message. `to`, `cc` and `subject` can come from a reference."""

    from_: Named | None = None  # if the name is None, that of the identity is used
    identity: int | None = None  # instead of `from_`; if both are None, the default
    to: Sequence[Named] | None = None
    cc: Sequence[Named] | None = None
    bcc: Sequence[Named] = ()
    reply_to: Sequence[Named] | None = None  # None: Reply-To of the identity
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    headers: Sequence[HeaderLine] = ()
    attachments: Sequence[Attachment | Uploaded] | None = None
    priority: Priority = Priority.NORMAL
    reference: Reference | None = None
    files: Sequence[Given] = ()


@dataclass(frozen=True, slots=True)
class Previous:
    """An earlier version of a draft with all columns, and its attachments to keep."""

    message: Stored
    keep: Chosen | None = None  # None: all, unless new ones are given


@dataclass(frozen=True, slots=True)
class How:
    """The date of a draft and its earlier version."""

    date: datetime
    previous: Previous | None = None


@dataclass(frozen=True, slots=True)
class Letterhead:
    """From, Reply-To and the other fields that follow from the sender of a message."""

    from_: Named
    reply_to: Sequence[Named]
    bcc: Sequence[str] = ()
    mailbox_id: int | None = None  # where the copy is stored; None: Sent


async def account_of(ctx: Context, owner: int) -> Picked:
    """Read the columns of the sending account. Raises NotFound if there is no such account."""
    account: Picked = found(next(iter(await ctx.find(_MINE, user=owner)), None))
    return account


async def letterhead(
    ctx: Context, account: Picked, fields: Fields, *, checked: bool = True
) -> Letterhead:
    """Determine the sender of a message from its address, its identity, or the default identity.

    With `must_be_allowed`, raises Forbidden if the account may not send as the address. Otherwise
    any From address is accepted, without the fields of an identity. Raises Invalid if both an
    address and an identity are given, and NotFound if the identity is not the account's.
    """
    if fields.from_ is not None and fields.identity is not None:
        text = "who it is from says from, or an identity: not both"
        raise Invalid(text, constraint="exclusive", path=["identity"])
    if fields.from_ is not None:
        given = Named(message_builder.address(fields.from_.address, "from"), fields.from_.name)
        if not checked:
            return Letterhead(given, fields.reply_to or ())
        row = await may_send_as(ctx, account, given.address, ["from"])
        sender = await identities.of_sender(ctx, account, given.address, row)
        if sender is None:
            return Letterhead(given, fields.reply_to or ())
        name = sender.name if given.name is None else given.name
        return _headed(Named(given.address, name), sender, fields)
    if fields.identity is None:
        sender = await identities.default_of(ctx, account)
    else:
        sender = await _identity(ctx, account, fields.identity)
    if checked:
        await may_send_as(ctx, account, sender.address, ["from"])
    return _headed(Named(sender.address, sender.name), sender, fields)


async def _identity(ctx: Context, account: Picked, key: int) -> Sender:
    (sender,) = await identities.by_ids(ctx, [key])
    if sender is None or sender.user_id != account.id:
        raise NotFound(str(key), path=["identity"])
    return sender


def _headed(from_: Named, sender: Sender, fields: Fields) -> Letterhead:
    own = [Named(sender.reply_to)] if sender.reply_to else []
    reply_to = own if fields.reply_to is None else fields.reply_to
    return Letterhead(from_, reply_to, sender.bcc, sender.mailbox_id)


async def draft_of(ctx: Context, head: Letterhead, fields: Fields, how: How) -> Draft:
    """Build the draft.

    An earlier version provides its Message-ID and the message that it replied to.

    Raises NotFound if an attachment or the referenced message is missing, and Invalid if the
    attachments are too large.
    """
    world = ctx.world
    room = Room(world.options.message_max)
    kept = await _kept(fields, how.previous, room) if how.previous else []
    files = await attachments.given(ctx, fields.attachments or (), room)
    files += await file_attachments.attached(ctx, fields.files, room)
    over = await _over(ctx, fields, how, room)
    filled = _filled(fields, over)
    to, cc = filled.to or (), filled.cc or ()
    return Draft(
        from_=head.from_,
        date=how.date,
        message_id=_message_id(ctx, head.from_, how),
        reply_to=head.reply_to,
        to=to,
        cc=cc,
        bcc=[*fields.bcc, *copied(head.bcc, [*to, *cc, *fields.bcc])],
        subject=filled.subject,
        text=filled.text,
        html=filled.html,
        headers=fields.headers,
        attachments=[*kept, *files, *over.attachments],
        in_reply_to=over.in_reply_to,
        references=over.references,
        priority=fields.priority,
        most=world.options.message_max,
    )


def _filled(fields: Fields, over: Taken) -> Fields:
    """Return the fields, with recipients, subject and quote of the referenced message added."""
    text, html = fields.text, fields.html
    if over.quote and fields.reference:
        above = fields.reference.quote is ReferenceQuote.ABOVE
        text, html = reply_quote.joined(text, html, over.quote, above=above)
    answers = fields.to is None and fields.cc is None
    return replace(
        fields,
        to=over.to if answers else fields.to,
        cc=over.cc if answers else fields.cc,
        subject=over.subject if fields.subject is None else fields.subject,
        text=text,
        html=html,
    )


async def taken_over(ctx: Context, fields: Fields) -> Fields:
    """Return the fields, with recipients, subject and quote of the referenced message.

    Attachments are not copied. Raises NotFound if the viewer has no such message.
    """
    if not fields.reference:
        return fields
    return _filled(fields, await taken(ctx, fields.reference, Room(ctx.world.options.message_max)))


def copied(always: Sequence[str], people: Sequence[Named]) -> list[Named]:
    """Return the addresses that are always copied and are not yet recipients.

    If the message has no recipient, the result is empty.
    """
    there = {person.address.casefold() for person in people}
    return [Named(text) for text in always if there and text.casefold() not in there]


def _message_id(ctx: Context, from_: Named, how: How) -> str:
    """Return the Message-ID of the earlier version, or a new one."""
    known = how.previous.message.row.message_id if how.previous else None
    if known and message_builder.is_id(known):
        return str(known)
    return new_message_id(ctx, from_.address)


def new_message_id(ctx: Context, sender: str) -> str:
    """Create a Message-ID in the domain of this host.

    If the host name has no dot, the domain of the sender is used.
    """
    hostname = ctx.world.options.hostname
    domain = hostname if "." in hostname else sender.rpartition("@")[2]
    return message_builder.message_id(ctx.world.random(16), domain)


async def _over(ctx: Context, fields: Fields, how: How, room: Room) -> Taken:
    """Read what the draft takes from the referenced message, or took when it was saved earlier."""
    if fields.reference:
        return await taken(ctx, fields.reference, room)
    if not how.previous:
        return Taken("")
    row = how.previous.message.row
    return Taken("", in_reply_to=row.in_reply_to, references=row.references)


async def _kept(fields: Fields, previous: Previous, room: Room) -> list[Attachment]:
    """Return the attachments of the earlier version that stay.

    Images stay if the new HTML shows them and no new attachment has their Content-ID.
    """
    message, path = previous.message, ["keepAttachments"]
    copies = fields.reference is not None and fields.reference.attachments is not None
    others = {file.cid for file in fields.attachments or ()}
    stay = {
        number
        for number, each in enumerate(message.row.attachments)
        if each["related"] and each["cid"] not in others and _shown(each["cid"], fields.html)
    }
    if previous.keep is not None:
        stay |= set(attachments.numbers(message, previous.keep, path))
    elif fields.attachments is None and not copies:
        stay |= set(attachments.numbers(message, Chosen(all=True), path))
    return await attachments.copied(message, sorted(stay), room, path)


def _shown(cid: str | None, html: str | None) -> bool:
    if not cid or not html:
        return False
    return f"cid:{cid}" in html or f"cid:{quote(cid)}" in html  # RFC 2392 writes it as a URL


async def built(draft: Draft) -> bytes:
    """Build the bytes of a message, in a thread if it is large.

    Raises Invalid if a field is wrong.
    """
    size = sum(len(each.content) for each in draft.attachments) + len(draft.html or "")
    if size < SMALL:
        return message_builder.build(draft)
    return await asyncio.to_thread(message_builder.build, draft)


async def main_address(ctx: Context, account: Picked) -> Named:
    """Return the main address of the account with its From name. Raises Invalid if it has none."""
    row = await main_of(ctx, account)
    return Named(row.shown, row.name or account.name)
