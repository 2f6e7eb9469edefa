"""Writing a message: what a client gives, and what is taken over, become a draft that is built."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlmodel import col

from mail import addresses, compose
from mail.compose import Attachment, Draft, HeaderLine, Priority
from mail.fields import Named
from models.addresses import Address
from models.columns import Picked, picked
from models.errors import Forbidden, Invalid, found
from models.users import User
from resolvers import attaching
from resolvers.attaching import Room, Uploaded
from resolvers.context import Context
from resolvers.references import Reference, Taken, taken
from resolvers.senders import permitted

SMALL = 64 * 1024  # bytes of a message that is built without a thread


@dataclass(frozen=True, slots=True)
class Fields:
    """What a message is made of. `to`, `cc` and `subject` may come from a reference."""

    from_: Named | None = None  # None: the main address
    to: Sequence[Named] | None = None
    cc: Sequence[Named] | None = None
    bcc: Sequence[Named] = ()
    reply_to: Sequence[Named] = ()
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    headers: Sequence[HeaderLine] = ()
    attachments: Sequence[Attachment | Uploaded] | None = None
    priority: Priority = Priority.NORMAL
    reference: Reference | None = None


async def account_of(ctx: Context, owner: int) -> Picked:
    """What is to be known of who writes."""
    names = {"id", "tenant_id", "name", "recipients", "from_whitelist"}
    mine = select(*picked(User, names)).where(col(User.id) == owner)
    account: Picked = found(next(iter(await ctx.read(mine)), None))
    return account


async def draft_of(
    ctx: Context, account: Picked, fields: Fields, *, date: datetime, checked: bool
) -> Draft:
    """The message to build. Where its sender is `checked`, Forbidden for somebody else's."""
    world = ctx.world
    from_ = fields.from_ or await _main(ctx, account)
    from_ = Named(compose.address(from_.address, "from"), from_.name)
    if checked:
        await may_send_as(ctx, account, from_.address, ["from"])
    room = Room(world.options.message_max)
    files = await attaching.given(ctx, fields.attachments or (), room)
    over = await taken(ctx, fields.reference, room) if fields.reference else Taken("")
    answers = fields.to is None and fields.cc is None
    hostname = world.options.hostname
    domain = hostname if "." in hostname else from_.address.rpartition("@")[2]
    return Draft(
        from_=from_,
        date=date,
        message_id=compose.message_id(world.random(16), domain),
        reply_to=fields.reply_to,
        to=over.to if answers else fields.to or (),
        cc=over.cc if answers else fields.cc or (),
        bcc=fields.bcc,
        subject=over.subject if fields.subject is None else fields.subject,
        text=fields.text,
        html=fields.html,
        headers=fields.headers,
        attachments=[*files, *over.attachments],
        in_reply_to=over.in_reply_to,
        references=over.references,
        priority=fields.priority,
        most=world.options.message_max,
    )


async def built(draft: Draft) -> bytes:
    """The message; in a thread where there is much of it."""
    size = sum(len(each.content) for each in draft.attachments) + len(draft.html or "")
    if size < SMALL:
        return compose.build(draft)
    return await asyncio.to_thread(compose.build, draft)


async def _main(ctx: Context, account: Picked) -> Named:
    mine = select(col(Address.shown), col(Address.name)).where(
        col(Address.user_id) == account.id, col(Address.main), col(Address.active)
    )
    row = next(iter(await ctx.read(mine)), None)
    if row is None:
        raise Invalid("there is no main address to send from", constraint="from", path=["from"])
    return Named(row.shown, row.name or account.name)


async def may_send_as(ctx: Context, account: Picked, address: str, path: Sequence[str]) -> None:
    """Refuse a sender that is somebody else's: it is never replaced."""
    if permitted(account.from_whitelist, address):
        return
    if await addresses.owner_of(ctx.world, address) != account.id:
        raise Forbidden(f"you may not send as {address}", path=path)
