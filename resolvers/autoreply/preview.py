"""Preview an autoreply without sending it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Select, case, false, select
from sqlmodel import col

from mail import autoreply as answering
from mail import mime
from mail.addresses import address_syntax
from mail.autoreply import Came, Silence
from models.addresses.tables import Address
from models.errors import Invalid, NotFound
from models.messages.tables import Message
from models.store.columns import Picked, picked
from models.users.tables import User
from resolvers.access import overseen_users, visible
from resolvers.addresses.loaders import visible_addresses
from resolvers.autoreply.autoreplies import Standing
from resolvers.context import Context
from resolvers.messages import content

COLUMNS = (
    *("id", "user_id", "subject", "message_id", "in_reply_to", "references", "content_type"),
    *("to", "cc", "envelope_from", "envelope_to", "verification"),
)


@dataclass(frozen=True, slots=True)
class Letter:
    """The message to reply to. None takes the value of the stored message or of the user."""

    sender: str | None = None
    subject: str | None = None
    to: str | None = None
    message_id: int | None = None  # a received message


@dataclass(frozen=True, slots=True)
class Preview:
    """The autoreply that a sender would receive, or the reason why none is sent."""

    silence: Silence | None
    internal: bool = False
    from_: str | None = None  # None if the user has no address
    name: str | None = None
    to: str | None = None  # None if there is no sender
    subject: str = ""
    text: str = ""
    html: str = ""


async def preview(ctx: Context, standing: Standing, letter: Letter) -> Preview:
    """Return the autoreply to a message without sending it or remembering the sender.

    Raises InvalidInput if the sender is missing or not an address, and NotFound if the user has
    no address `to` or no such message.
    """
    came = await _came(ctx, standing, letter)
    if letter.sender is None and not came.sender:
        if letter.message_id is None:
            raise Invalid("give a sender, or a message", constraint="required", path=["sender"])
        return Preview(Silence.NO_SENDER)
    batch = _known if standing.address is None else _of_address
    known = await ctx.load(batch, (standing.id, came.sender))
    if known is None:
        raise NotFound(str(standing.id), path=["user"])
    taker = await answering.taker(ctx.world, came.to) if came.to else None
    whose = (standing.id, 0) if standing.address is None else (None, standing.id)
    if letter.to is not None and (taker is None or not answering.is_of(taker, *whose)):
        raise NotFound(letter.to, path=["to"])
    as_it = standing.address is not None or taker is None or taker.send_as
    address = answering.writer(as_it, came.to, known.row.main)
    came = replace(
        came,
        to=came.to or known.row.main or "",
        address_id=taker.id if taker else known.row.main_id,
        own=known.by is not None and answering.is_of(known.by, *whose),
        internal=known.row.internal,
    )
    silence = _silence(ctx, standing, came, known.row)
    said = answering.written(standing.rule, came)
    shown = (came.internal, address, standing.rule.name or known.row.name, came.sender)
    if address is None or isinstance(said, Silence):
        return Preview(silence or Silence.OTHER_ADDRESS, *shown)
    text = said.text or mime.html_to_text(said.html)
    return Preview(silence, *shown, said.subject, text, said.html)


def _silence(ctx: Context, standing: Standing, came: Came, known: Picked) -> Silence | None:
    """Return why no reply would be sent, checked in the same order as for received mail."""
    answer = answering.answer(standing.rule, came, ctx.world.now())
    if known.suspended:
        return Silence.SUSPENDED
    if isinstance(answer, Silence):
        return answer
    if known.answered or known.spent:
        return Silence.ANSWERED if known.answered else Silence.LIMIT
    return None


async def _came(ctx: Context, standing: Standing, letter: Letter) -> Came:
    """Return the trigger for the input, or for the stored message that it names.

    Raises NotFound if there is no such message.
    """
    sender = None if letter.sender is None else address_syntax.checked(letter.sender, path="sender")
    if letter.message_id is None:
        return Came(sender or "", letter.to or "", letter.subject or "")
    mine = (visible(ctx, Message), col(Message.id) == letter.message_id)
    asked = select(*picked(Message, COLUMNS)).where(*mine, col(Message.user_id) == standing.id)
    row = next(iter(await ctx.read(asked)), None)
    stored = await content.one(ctx, letter.message_id) if row else None
    if row is None or stored is None:
        raise NotFound(str(letter.message_id), path=["message"])
    to = letter.to or next(iter(row.envelope_to), "")
    before: Sequence[Any] = [row.in_reply_to] if row.in_reply_to else []
    named = [address for _, address in (*row.to, *row.cc)]
    return Came(
        sender or row.envelope_from or "",
        to,
        row.subject if letter.subject is None else letter.subject,
        row.message_id,
        row.references or before,
        row.content_type == "multipart/report",
        await content.header_fields(stored),
        addressed=await answering.stands(ctx.world, (standing.id, 0), to, named),
        spam=(row.verification or {}).get("dmarc") == "fail",
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """Facts about a user or address and a sender, with the sender's own address record."""

    row: Picked
    by: Picked | None


async def _known(ctx: Context, keys: list[tuple[int, str]]) -> list[_Known | None]:
    """Load the facts about users and senders, with one statement for each sender."""
    asked = (
        select(
            *picked(User, ("id", "name", "suspended")),
            col(Address.shown).label("main"),
            col(Address.id).label("main_id"),
            answering.internal(col(User.domain_id)).label("internal"),
            answering.answered(col(User.id)).label("answered"),
            answering.spent().label("spent"),
        )
        .outerjoin(Address, (col(Address.user_id) == col(User.id)) & col(Address.main))
        .where(overseen_users(ctx))
    )
    return await _each(ctx, keys, asked, col(User.id))


async def _of_address(ctx: Context, keys: list[tuple[int, str]]) -> list[_Known | None]:
    """Load the facts about forwarding addresses and senders.

    A catch-all replies from the address that received the mail only.
    """
    whole = col(Address.shown).not_like("%*%")
    asked = select(
        *picked(Address, ("id", "name")),
        false().label("suspended"),
        case((whole, col(Address.shown))).label("main"),
        col(Address.id).label("main_id"),
        answering.internal(col(Address.domain_id)).label("internal"),
        answering.answered(col(Address.id)).label("answered"),
        answering.spent_by_address().label("spent"),
    ).where(visible_addresses(ctx))
    return await _each(ctx, keys, asked, col(Address.id))


async def _each(
    ctx: Context, keys: list[tuple[int, str]], asked: Select[Any], key: Any
) -> list[_Known | None]:
    found: dict[tuple[int, str], _Known] = {}
    for sender in dict.fromkeys(sender for _, sender in keys):
        theirs = asked.where(key.in_([one for one, by in keys if by == sender]))
        given = {
            "sender": answering.sender_key(sender),
            "domain": address_syntax.normal_domain(sender.rpartition("@")[2]),
            "now": ctx.world.now(),
        }
        by = await answering.taker(ctx.world, sender)
        for row in await ctx.read(theirs, given):
            found[row.id, sender] = _Known(row, by)
    return [found.get(one) for one in keys]
