"""Send users a digest of quarantined messages that no earlier digest has listed."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.compose import message_builder
from mail.compose.message_builder import Draft, HeaderLine
from mail.delivery.quarantine import LETTER
from mail.mime.header_encoding import Named
from mail.storage.blobs.blob_writer import Kept
from mail.storage.message_insert import Letter, Place, Way, place
from mail.storage.received_messages import read, stored
from mail.text.languages import closest
from models.addresses.tables import Address
from models.errors import NotFound
from models.events.journal import ChangeKind
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import World
from models.spam.quarantine import QuarantineItem
from models.store.columns import Picked, picked
from models.users.tables import Frequency, User
from resolvers.access import own
from resolvers.admin.task_steps import Plan, Step
from resolvers.context import Context
from resolvers.spam.quarantine_digest_texts import ENGLISH, WORDS, Words

log = logging.getLogger(__name__)

KIND = LETTER
NAMED = 50  # messages that a digest lists
MOST = 10_000  # messages that it counts
LONGEST = 100  # characters of a subject or an author
_SPACE = re.compile(r"\s+")

SHOWN = ("id", "sender", "from_name", "from_address", "subject", "virus", "created_at",
         "expires_at")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ready:
    """A digest with stored blobs, its placement, and the IDs of the items it reports."""

    letter: Letter
    kept: Kept
    place: Place
    ids: Sequence[int]


async def plan(ctx: Context, _order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Compose the digest and store its blobs.

    Plans nothing if the digest was written already or no unreported message is left.
    """
    account = None if checkpoint else await _account(ctx)
    rows = await _untold(ctx) if account else []
    if account is None or not rows:
        return Plan()
    draft = _draft(ctx.world, account, rows)
    letter = await read(message_builder.build(draft))
    kept = await stored(ctx.world, account.tenant_id, letter)
    to = [person.address for person in draft.to]
    there = Place(account.id, account.box, ctx.world.now(), envelope_from="", envelope_to=to)
    return Plan(made=Ready(letter, kept, there, [row.id for row in rows]))


async def step(
    ctx: Context, session: AsyncSession, _order: dict[str, Any], _: dict[str, Any], held: Plan
) -> Step:
    """Insert the digest into INBOX regardless of the quota, and mark its items as reported."""
    if held.made is None:
        return Step({})
    ready: Ready = held.made
    told = (
        update(QuarantineItem)
        .where(col(QuarantineItem.id).in_(ready.ids), ~col(QuarantineItem.notified))
        .values(notified=True)
        .returning(col(QuarantineItem.id))
    )
    ids = sorted((await (await session.connection()).execute(told)).scalars())
    if not ids:  # all items were released or deleted meanwhile
        return Step({})
    await ctx.record(session, own(ctx), ChangeKind.QUARANTINE_CHANGED, ids, did="notified")
    put = partial(place, letter=ready.letter, kept=ready.kept, to=ready.place, way=Way.NOTICE)
    try:
        async with session.begin_nested():
            await ctx.world.join(session, put)
    except NotFound:  # the user or its INBOX was deleted meanwhile
        log.warning("no INBOX for a letter", extra={"user": ready.place.user_id})
        return Step({})
    return Step({"written": True}, done=1)


async def _account(ctx: Context) -> Picked | None:
    """Load the user with INBOX and address; None if deleted or if the digest is turned off."""
    names = {"id", "tenant_id", "username", "name", "language"}
    asked = (
        select(*picked(User, names), col(Mailbox.id).label("box"), col(Address.shown))
        .join(Mailbox, col(Mailbox.user_id) == col(User.id))
        .outerjoin(Address, (col(Address.user_id) == col(User.id)) & col(Address.main))
        .where(
            col(User.id) == own(ctx),
            col(User.deleted_at).is_(None),
            col(User.quarantine_notification) != Frequency.NEVER,
            col(Mailbox.special_use) == SpecialUse.INBOX,
        )
    )
    return next(iter(await ctx.read(asked)), None)


async def _untold(ctx: Context) -> Sequence[Picked]:
    """Load the quarantined messages that no digest has reported, newest first."""
    asked = select(*picked(QuarantineItem, SHOWN)).where(
        col(QuarantineItem.user_id) == own(ctx), ~col(QuarantineItem.notified)
    )
    order = col(QuarantineItem.created_at).desc(), col(QuarantineItem.id).desc()
    return await ctx.read(asked.order_by(*order).limit(MOST))


def _draft(world: World, account: Picked, rows: Sequence[Picked]) -> Draft:
    """Compose the digest in the user's language."""
    words = closest(account.language, WORDS) or ENGLISH
    name = account.shown or account.username
    address = name if "@" in name else f"{name}@{world.options.hostname}"
    domain = address.rpartition("@")[2]
    rest, page = len(rows) - NAMED, world.options.quarantine_url
    said = [
        words.intro.format(address=address),
        *(_told(words, row) for row in rows[:NAMED]),
        *([words.more.format(rest=rest)] if rest > 0 else []),
        words.advice,
        *([words.page.format(page=page)] if page else []),
    ]
    return Draft(
        from_=Named(f"postmaster@{domain}", "Postmaster"),
        date=world.now(),
        message_id=message_builder.message_id(world.random(16), domain),
        to=[Named(address, account.name)],
        subject=words.subject.format(many=len(rows)),
        text="\n\n".join(said) + "\n",
        headers=[HeaderLine("Auto-Submitted", "auto-generated")],  # RFC 3834, section 5
    )


def _told(words: Words, row: Picked) -> str:
    """Return three lines about a message. Their values come from an untrusted sender."""
    author = " ".join(filter(None, (row.from_name, f"<{row.from_address or row.sender}>")))
    until = words.until.format(date=f"{row.expires_at:%Y-%m-%d}")
    notes = [until, *([words.virus] if row.virus else [])]
    about = f"{row.created_at:%Y-%m-%d %H:%M} UTC, {', '.join(notes)}"
    return "\n".join([_line(row.subject) or "-", f"  {_line(author)}", f"  {about}"])


def _line(text: str) -> str:
    """Return a text as one short line, without control and bidirectional characters."""
    plain = "".join(sign for sign in _SPACE.sub(" ", text) if sign.isprintable()).strip()
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…"
