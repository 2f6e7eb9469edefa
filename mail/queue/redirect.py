"""Sending mail on to others: one message in the queue for an address, or account, that forwards."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from sqlalchemy import case, select, update
from sqlmodel import col

from mail import mime
from mail.addresses import srs
from mail.authentication import sealed
from mail.envelope.dsn_parameters import Wish
from mail.limits import user_limits
from mail.mime.header_encoding import on_wire
from mail.queue.enqueue import Sender, hand_in, handed
from mail.recipients.recipient_routes import Loop, Onward, Taken, check_limit
from mail.storage import received_messages
from mail.storage.blobs.blob_writer import Kept
from mail.storage.header_prepend import before, first
from mail.storage.message_insert import Letter, noted
from mail.storage.received_messages import with_bytes
from models.addresses.tables import Address
from models.errors import NotFound
from models.events.journal import PLATFORM
from models.messages.tables import Message, Receipt
from models.runtime.environment import Turn, World

HEAD = 1 << 20  # bytes of a large message that are searched for where it has been
HOPS = 30  # Received fields; a message with so many goes in circles
DAY = timedelta(days=1)  # in which what is forwarded is counted


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message as it is sent on, and as it came."""

    letter: Letter
    came: str  # the digest of what came
    sender: str  # envelope, as it came
    onward: Onward


async def check_loop(source: bytes | Path, letter: Letter, address: str | None) -> None:
    """Loop where the message has been at this address, or at many servers."""
    end = letter.facts.structure.body_start
    head = await first(source, end if isinstance(source, bytes) else min(end, HEAD))
    fields = mime.headers(head, letter.facts.structure)
    names = [field.key.casefold() for field in fields]
    was_here = address is not None and any(
        name == "delivered-to" and field.value.strip().casefold() == on_wire(address).casefold()
        for name, field in zip(names, fields, strict=True)
    )
    if was_here or names.count("received") >= HOPS:
        raise Loop("the mail goes in circles")


async def send_on(  # noqa: PLR0913, PLR0917 - the envelope, and what is known of it
    world: World,
    source: bytes | Path,
    came: tuple[str, str],
    onward: Onward,
    results: str | None = None,
    letter: Letter | None = None,
) -> None:
    """Queue a message, as it came, for the targets; on return it is durable.

    As `outgoing` and `enter`.
    """
    with ExitStack() as files:
        made = await outgoing(world, source, came, onward, files, results, letter)

        def unit(turn: Turn, kept: Kept) -> None:
            enter(turn, made, kept)

        whose = [] if onward.user_id is None else [onward.user_id]
        await with_bytes(world, onward.tenant_id, made.letter, unit, PLATFORM, *whose)


async def outgoing(  # noqa: PLR0913, PLR0917 - the same
    world: World,
    source: bytes | Path,
    came: tuple[str, str],
    onward: Onward,
    files: ExitStack,
    results: str | None = None,
    letter: Letter | None = None,
) -> Outgoing:
    """A message, as it came, made ready for the targets; what files it needs go with `files`.

    `came` is the digest by which a repeat within a day is known, as one of a delivery is, and the
    envelope sender; `results` is what was found out about it, for the seal of ARC; `letter` was
    read from `source`, where it has been read. Loop.
    """
    letter = letter or await received_messages.read(source)
    seal = b""
    if onward.relayed:  # as it came; the Received field on top is the trace of it
        await check_loop(source, letter, None)
        return Outgoing(letter, *came, onward)
    if not onward.returns:
        await check_loop(source, letter, onward.address)
        seal = await sealed(world, source, onward.address.rpartition("@")[2], results)
    prefix = f"Delivered-To: {on_wire(onward.address)}\r\n".encode() + seal
    return Outgoing(await before(source, letter, prefix, files), *came, onward)


async def put_off(
    world: World, source: bytes | Path, came: tuple[str, str], taken: Sequence[Taken]
) -> None:
    """Queue a message for addresses that could not take it now; on return it is durable.

    The queue delivers here as well; where it cannot, it tells the sender. `came` is the digest
    by which a repeat within a day is known, and the envelope sender.
    """
    letter = await received_messages.read(source)
    of: dict[int, dict[str, Wish]] = {}
    for each in taken:
        tenants = [person.to.tenant_id for person in each.people]
        tenants += [onward.tenant_id for onward in each.onward]
        of.setdefault(next(iter(tenants), PLATFORM), {})[each.address] = each.wish
    for tenant_id, addresses in of.items():
        await _put_off(world, letter, came, (tenant_id, addresses))


async def _put_off(
    world: World, letter: Letter, came: tuple[str, str], of: tuple[int, dict[str, Wish]]
) -> None:
    (digest, sender), (tenant_id, to) = came, of
    told = f"{sender}\0later\0{','.join(to)}\0{digest}"

    def unit(turn: Turn, kept: Kept) -> None:
        if new(turn, told):
            mail = handed(turn, letter, kept, sender, list(to), wishes=to)
            hand_in(turn, Sender(None, tenant_id), mail)

    await with_bytes(world, tenant_id, letter, unit, PLATFORM)


def new(turn: Turn, told: str) -> bool:
    """Whether this has not been done within a day; then it is noted, in the platform's unit."""
    known, now = hashlib.sha256(told.encode()).hexdigest(), turn.world.now()
    since = now - turn.world.options.receipts_for
    seen = select(col(Receipt.digest)).where(col(Receipt.digest) == known, col(Receipt.at) > since)
    if turn.connection.execute(seen).first():
        return False
    receipt = {"digest": known, "message_id": 0, "at": now}
    turn.send([(noted(turn.connection.dialect.name), receipt)])
    return True


def enter(turn: Turn, outgoing: Outgoing, kept: Kept) -> None:
    """Queue it, in the unit of the platform and of its account; RateLimited, NotFound.

    A repeat within a day is queued once.
    """
    onward = outgoing.onward
    to = [*onward.targets, *(via.shown for via in onward.via)]
    whose = onward.address_id if onward.user_id is None else f"user {onward.user_id}"
    told = f"{outgoing.sender}\0onward\0{whose}\0{','.join(to)}"
    if not new(turn, f"{told}\0{outgoing.came}"):
        return
    _count(turn, onward, len(to))
    sender = _sender(turn.world, outgoing)
    wishes = dict.fromkeys([*onward.targets, *(via.recipient for via in onward.via)], onward.wish)
    mail = handed(turn, outgoing.letter, kept, sender, onward.targets, wishes=wishes)
    platform = Sender(None, onward.tenant_id)
    if onward.targets:
        hand_in(turn, platform, mail)
    if onward.via:  # a relay of ours asks for no other sender
        bare = replace(mail, sender=outgoing.sender, recipients=())
        hand_in(turn, platform, replace(bare, via=onward.via))
    if onward.message_id is not None:
        _remember(turn, onward, to)


def _remember(turn: Turn, onward: Onward, to: Sequence[str]) -> None:
    """Note on the stored message where it went, each once, in the unit of its account."""
    mine = col(Message.id) == onward.message_id, col(Message.user_id) == onward.user_id
    row = turn.connection.execute(select(col(Message.forwarded_to)).where(*mine)).first()
    if row is None:  # it has gone meanwhile
        return
    known = {text.casefold(): text for text in reversed([*(row.forwarded_to or ()), *to])}
    noted = update(Message).where(*mine).values(forwarded_to=list(reversed(known.values())))
    turn.connection.execute(noted)


def _sender(world: World, outgoing: Outgoing) -> str:
    """The envelope sender for servers elsewhere; what is only relayed, or finds back, keeps it."""
    onward = outgoing.onward
    if onward.returns or onward.relayed:
        return outgoing.sender
    return srs.rewritten(world, outgoing.sender, onward.address.rpartition("@")[2])


def _count(turn: Turn, onward: Onward, many: int) -> None:
    """Count against the limit of the account or address, in the unit that sends on."""
    if onward.user_id is not None:
        user_limits.count_forwards(turn, onward.user_id, many)
    if onward.address_id is None:
        return
    now = turn.world.now()
    running = col(Address.forwarded_until) > now
    counted = update(Address).where(col(Address.id) == onward.address_id)
    rows = turn.connection.execute(
        select(
            col(Address.forwards_max), col(Address.forwarded), col(Address.forwarded_until)
        ).where(col(Address.id) == onward.address_id)
    ).all()
    if not rows:
        raise NotFound(onward.address, path=["address"])
    check_limit(turn.world, rows[0])
    turn.connection.execute(
        counted.values(
            forwarded=case((running, Address.forwarded + many), else_=many),
            forwarded_until=case((running, col(Address.forwarded_until)), else_=now + DAY),
        )
    )
