"""Messages to users about storage above a warning level, sent after the delivery."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.compose import message_builder
from mail.compose.message_builder import Draft, HeaderLine
from mail.limits.user_limits import ALLOWED, LETTER, level
from mail.mime.header_encoding import Named
from mail.storage.blobs.blob_writer import Kept
from mail.storage.message_insert import Letter, Place, Way, place
from mail.storage.received_messages import read, stored
from mail.text.languages import closest
from models.addresses.tables import Address
from models.errors import NotFound
from models.mailboxes.tables import Mailbox, SpecialUse
from models.quantities import rounded
from models.runtime.environment import World
from models.store.columns import Picked
from models.users.tables import UsageLevel, User
from resolvers.access import own
from resolvers.admin.task_steps import Plan, Step
from resolvers.context import Context
from resolvers.users.quota.quota_warning_texts import ENGLISH, WORDS

log = logging.getLogger(__name__)

KIND = LETTER
ABOVE = list(UsageLevel)  # from the lowest


@dataclass(frozen=True, slots=True)
class Ready:
    """A message with stored bytes, and its place in a mailbox."""

    letter: Letter
    kept: Kept
    place: Place


async def plan(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Build the message, unless it was built, or storage is below the level again.

    If storage has passed the next level, only the message about that one is sent.
    """
    row = None if checkpoint else await account_written_to(ctx)
    if row is None:
        return Plan()
    now, told = level(ctx.world.options, row.used, row.allowed), UsageLevel(order["level"])
    if now is not told and not (order["refused"] and ABOVE.index(now) > ABOVE.index(told)):
        return Plan()
    draft = _draft(ctx.world, row, refused=order["refused"], full=now is UsageLevel.FULL)
    letter = await read(message_builder.build(draft))
    kept = await stored(ctx.world, row.tenant_id, letter)
    to = [person.address for person in draft.to]
    there = Place(row.id, row.box, ctx.world.now(), envelope_from="", envelope_to=to)
    return Plan(made=Ready(letter, kept, there))


async def step(
    ctx: Context, session: AsyncSession, _order: dict[str, Any], _: dict[str, Any], held: Plan
) -> Step:
    """Insert the message into the INBOX, even if the mailbox is full."""
    if held.made is None:
        return Step({})
    ready: Ready = held.made
    put = partial(place, letter=ready.letter, kept=ready.kept, to=ready.place, way=Way.NOTICE)
    try:
        async with session.begin_nested():
            await ctx.world.join(session, put)
    except NotFound:  # the user or its INBOX was deleted
        log.warning("no INBOX for a letter", extra={"user": ready.place.user_id})
        return Step({})
    return Step({"written": True}, done=1)


async def account_written_to(ctx: Context) -> Picked | None:
    """Load the user of the task with its INBOX; None if it was deleted."""
    asked = (
        select(
            *(getattr(User, name) for name in ("id", "tenant_id", "username", "name", "language")),
            col(User.used),
            ALLOWED.label("allowed"),
            col(Mailbox.id).label("box"),
            col(Address.shown),
        )
        .join(Mailbox, col(Mailbox.user_id) == col(User.id))
        .outerjoin(Address, (col(Address.user_id) == col(User.id)) & col(Address.main))
        .where(
            col(User.id) == own(ctx),
            col(User.deleted_at).is_(None),
            col(Mailbox.special_use) == SpecialUse.INBOX,
        )
    )
    rows = await ctx.read(asked, {"platform": ctx.world.options.default_quota})
    return next(iter(rows), None)


def _draft(world: World, row: Picked, *, refused: bool, full: bool) -> Draft:
    words = closest(row.language, WORDS) or ENGLISH
    name = row.shown or row.username
    address = name if "@" in name else f"{name}@{world.options.hostname}"
    domain = address.rpartition("@")[2]
    facts = {
        "percent": row.used * 100 // row.allowed,
        "address": address,
        "used": rounded(row.used).replace(".", words.point),
        "allowed": rounded(row.allowed).replace(".", words.point),
    }
    subject = words.full if full or refused else words.nearly
    said = [
        *([words.refused] if refused else []),
        words.use,
        words.now if full or refused else words.soon,
        words.advice,
    ]
    return Draft(
        from_=Named(f"postmaster@{domain}", "Postmaster"),
        date=world.now(),
        message_id=message_builder.message_id(world.random(16), domain),
        to=[Named(address, row.name)],
        subject=subject.format(**facts),
        text="\n\n".join(sentence.format(**facts) for sentence in said) + "\n",
        headers=[HeaderLine("Auto-Submitted", "auto-generated")],  # RFC 3834, section 5
    )
