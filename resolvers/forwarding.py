"""Handing a stored message on: as it is, to new recipients."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlmodel import col

from mail import addresses, audit, compose, messages
from mail.audit import SHOWN
from mail.contents import gathered
from mail.queue.entering import Handed
from models.blobs import MessageBlob
from models.columns import Picked, picked
from models.errors import Conflict, Invalid, NotFound
from models.messages import Message
from models.wakeups import QUEUE
from models.world import Turn, ring
from resolvers import composing, contents, flagging, moves, sentscan, submission, userlimits
from resolvers.access import own, visible
from resolvers.context import Context
from resolvers.messages import here
from resolvers.references import FORWARDED

HOPS = 30  # Received fields; a message with so many goes in circles
PATH = ["addresses"]


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The submission, and to whom it goes, each once."""

    submission: Picked
    recipients: Sequence[str]


async def forward(ctx: Context, message_id: int, to: Sequence[str]) -> Forwarded:
    """Queue a message, byte for byte, in the name of the account's main address.

    It is one that the viewer may read, and gets the keyword $Forwarded unless another shares it.
    NotFound; Conflict for a draft, and for what has gone through so many servers that it goes in
    circles; RateLimited as for what is sent; what `sentscan.checked` refuses.
    """
    owner = own(ctx)
    row = await _message(ctx, message_id)
    account = await composing.account_of(ctx, owner)
    await userlimits.may_write(ctx, account)
    recipients = await _recipients(ctx, owner, to)
    sender = (await composing.main_address(ctx, account)).address
    stored = await contents.one(ctx, message_id)
    if stored is None:
        raise NotFound(str(message_id), path=["message"])
    fields = messages.headers(stored.source, stored.structure)
    if sum(field.key.casefold() == "received" for field in fields) >= HOPS:
        text = f"it has gone through {HOPS} servers: it goes in circles"
        raise Conflict(text, path=["message"])

    if sentscan.looks(ctx):
        await sentscan.checked(ctx, account, await gathered(stored.whole()), sender, recipients)
    (copied,) = await submission.copies(ctx, account, [(sender, recipients)])

    def unit(turn: Turn) -> int:
        submission.check_able(turn, owner)
        userlimits.count_recipients(turn, owner, len(recipients))
        needs = select(col(MessageBlob.blob_id)).where(col(MessageBlob.message_id) == message_id)
        blobs = list(turn.connection.execute(needs).scalars())
        if row.blob_id not in blobs:  # it has gone meanwhile, or is another draft
            raise NotFound(str(message_id), path=["message"])
        at = turn.world.now()
        known = row.message_id
        handed = Handed(
            sender, recipients, row.size, row.blob_id, blobs, message_id, at=at, header_id=known
        )
        key = submission.hand_in(turn, ctx, handed, copied)
        facts = {name: getattr(row, name) for name in SHOWN}
        facts |= {"envelope_from": sender, "envelope_to": recipients, "received_at": at}
        audit.sent(turn, owner, key, facts, blobs)
        return key

    with userlimits.refusing(ctx):
        async with ctx.write(owner, *copied.streams) as session:
            key = await ctx.world.join(session, unit)
            kept = await moves.chosen(session, [message_id])
            mine = [row for row in kept if row.user_id == owner]  # another's stays as it is
            await flagging.change(ctx, session, mine, moves.Changes.of({}, add=[FORWARDED]))
            ring(session, QUEUE)
    sent = await ctx.load(submission.by_ids, key)
    if sent is None:
        raise NotFound(str(key), path=["message"])
    return Forwarded(sent, recipients)


async def _message(ctx: Context, key: int) -> Picked:
    mine = (visible(ctx, Message), here(), col(Message.id) == key)
    asked = select(*picked(Message, {"id", "draft", *SHOWN})).where(*mine)
    row = next(iter(await ctx.read(asked)), None)
    if row is None:
        raise NotFound(str(key), path=["message"])
    if row.draft:
        raise Conflict("a draft is sent, not forwarded", path=["message"])
    return row


async def _recipients(ctx: Context, owner: int, given: Sequence[str]) -> list[str]:
    """The addresses, each once. Invalid where one is none, or the account's own."""
    most = ctx.world.options.max_recipients
    if len(given) > most:
        raise Invalid(f"more than {most} recipients", constraint="max", path=PATH)
    if not given:
        raise Invalid("nobody to send it to", constraint="required", path=PATH)
    found: dict[str, str] = {}
    for nth, text in enumerate(given):
        address = compose.address(text, PATH[0], nth)
        if await addresses.owner_of(ctx.world, address) == owner:
            words = "this is your own address: messageCopy copies"
            raise Invalid(words, constraint="self", path=PATH, index=nth)
        found.setdefault(address.casefold(), address)
    return list(found.values())
